"""K-fold cross-validation: each fold is trained by `Trainer`, measured, and its result stored in a file of its own.

A result depends on the recipe, the images, the fold, the precision, the kind of device, the number of threads and the
versions of torch and numpy; the file is named by a hash of these. Test images are never used.
"""

import logging
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import PicklingError
from typing import Any

import joblib
import torch
from sklearn.model_selection import KFold
from tqdm import tqdm

from autoencoders.data.images import ImageSet
from autoencoders.evaluation.metrics import reconstruction_error
from autoencoders.recipes import Recipe
from autoencoders.runtime import cli, signals
from autoencoders.runtime.device import Precision, flush_denormals, keep_freed_memory, seed_for
from autoencoders.runtime.errors import RunError
from autoencoders.runtime.files import prepare_folder, read_json, write_json
from autoencoders.training.checkpoint import checksum, versions
from autoencoders.training.trainer import Diverged, Trainer

log = logging.getLogger(__name__)

Result = dict[str, Any]  # `val_mse_unit` per pixel in [0, 1], None and `diverged` if training failed; `seconds`


@dataclass(frozen=True)
class Fold:
    """Fold `number` of `of`, drawn by scikit-learn's KFold from `seed`: held out while `recipe` is trained."""

    name: str  # for people
    recipe: Recipe
    number: int  # from 0
    of: int
    seed: int
    device: torch.device
    threads: int

    def train(self, images: ImageSet) -> Result:
        """Train on the training images of the other folds, and measure on those of this fold."""
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        trainer = Trainer(self.seeded_recipe, self.split(images), self.device, "auto")
        result: Result = {"val_mse_unit": None}
        try:
            for _ in trainer.epochs():
                pass
            result["val_mse_unit"] = reconstruction_error(trainer.model, trainer.test_images)["test_mse_unit"]
        except Diverged as error:
            result["diverged"] = str(error)
        return result | {"seconds": round(trainer.log.seconds + sum(row["seconds"] for row in trainer.history), 3)}

    @property
    def seeded_recipe(self) -> Recipe:
        """The recipe with a seed of this fold, or the luck of weights and order would be the same in every fold."""
        return replace(self.recipe, seed=seed_for(self.recipe.seed, self.number))

    def split(self, images: ImageSet) -> ImageSet:
        """The other folds of the training images as training images, this fold as test images."""
        splits = list(KFold(self.of, shuffle=True, random_state=self.seed).split(images.train_labels))
        train, held_out = splits[self.number]
        return replace(
            images, train_images=images.train_images[train], train_labels=images.train_labels[train],
            test_images=images.train_images[held_out], test_labels=images.train_labels[held_out],
        )  # fmt: skip

    def cache_key(self, images: ImageSet) -> dict[str, Any]:
        """Everything the result depends on, in JSON types."""
        return {
            "recipe": self.seeded_recipe.settings(), "fingerprint": images.fingerprint,
            "fold": [self.number, self.of, self.seed], "threads": self.threads, "device": self.device.type,
            "precision": str(Precision("auto", self.device)),
            "versions": {name: versions()[name] for name in ("torch", "numpy")},
        }  # fmt: skip


def cross_validate(folds: list[Fold], images: ImageSet, folder: Path, jobs: int) -> list[Result]:
    """The result of every fold: read from `folder`, or trained, `jobs` folds at a time, and stored there.

    If the process is asked to stop, the finished folds stay stored.
    """
    if folder.is_symlink():
        raise RunError(f"{folder}: is a link, which is not followed; delete it")
    prepare_folder(folder)
    keys = [fold.cache_key(images) for fold in folds]
    results = {index: result for index, key in enumerate(keys) if (result := load_result(key, folder))}
    missing = {index: fold for index, fold in enumerate(folds) if index not in results}
    if results:
        log.info(f"{len(results)} of {len(folds)} folds are in {folder} already")
    progress = tqdm(train_folds(missing, images, jobs), total=len(missing), desc="folds", leave=False,
                    disable=None if cli.is_verbose() else True)  # fmt: skip
    try:
        for index, result in progress:
            save_result(result, keys[index], folder)
            results[index] = result
            progress.clear()  # the line about the fold comes next
            error = "diverged" if result["val_mse_unit"] is None else f"MSE {result['val_mse_unit']:.5f}"
            name = f"{folds[index].name}, fold {folds[index].number + 1}"
            log.info(f"{len(results)}/{len(folds)} {name}: {error}, {result['seconds']:.1f} s")
    except (KeyboardInterrupt, signals.Stopped) as stop:
        stored = sum(_path(key, folder).exists() for key in keys)
        message = f"stopped; {stored} of {len(folds)} folds are in {folder}; the same command continues"
        raise signals.Stopped(message, getattr(stop, "status", 130)) from stop
    return [results[index] for index in range(len(folds))]


def train_folds(folds: dict[int, Fold], images: ImageSet, jobs: int) -> Iterator[tuple[int, Result]]:
    """Train every fold, in `jobs` processes; yield each fold's key and result as it ends."""
    jobs = max(1, min(jobs, len(folds)))
    with joblib.parallel_config("loky", initializer=_start_worker):
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    if (granted := joblib.effective_n_jobs(jobs)) < jobs:
        log.info(f"--jobs {jobs}: this system allows {granted}")
    # joblib's warnings when we are stopped, and when it replaces a process that holds much memory.
    warnings.filterwarnings("ignore", r"\d+ tasks which were|A worker stopped while some jobs", UserWarning)
    try:
        yield from parallel(joblib.delayed(_train)(key, fold, images) for key, fold in folds.items())
    except PicklingError as error:
        raise RunError(f"the images cannot be given to --jobs {jobs} processes ({error}); free some space in the "
                       "temporary folder, or use --jobs 1") from error  # fmt: skip
    except BrokenProcessPool as error:
        raise RunError("the system ended a process, most likely for lack of memory; use fewer --jobs") from error


def _train(key: int, fold: Fold, images: ImageSet) -> tuple[int, Result]:
    return key, fold.train(images)


def _start_worker() -> None:
    flush_denormals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one ends the others


def _path(key: dict[str, Any], folder: Path) -> Path:
    return folder / f"{checksum(key)[:16]}.json"


def save_result(result: Result, key: dict[str, Any], folder: Path) -> None:
    """Write a fold's result with a checksum, which detects a number that was changed later."""
    record = {"facts": key, "result": result}
    write_json(_path(key, folder), {**record, "sha256": checksum(record)})


def load_result(key: dict[str, Any], folder: Path) -> Result | None:
    """The stored result of the fold with this key; None if there is none, or it is damaged."""
    path = _path(key, folder)
    if not path.exists():
        return None
    try:
        record = read_json(path, "delete it")
        if record.pop("sha256", None) == checksum(record) and record["facts"] == key:
            return {name: record["result"][name] for name in ("val_mse_unit", "seconds")}
    except (RunError, KeyError):
        pass
    log.warning(f"{path}: is damaged; this fold is trained again")
    return None
