"""K-fold cross-validation: a fold is trained by the suite's own loop, measured, and kept in a file of its own.

What comes out depends on the recipe, the images, the fold, the precision, the kind of device, the number of threads and
the versions of torch and numpy alone. The file is named by a hash of them, so that whoever asks the same finds it. No
test image is looked at.
"""

import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.model_selection import KFold

from autoencoders.data.sets import ImageSet
from autoencoders.evaluation.metrics import reconstruction_error
from autoencoders.recipes import Recipe
from autoencoders.runtime import processes
from autoencoders.runtime.device import Precision, keep_freed_memory
from autoencoders.runtime.errors import RunError
from autoencoders.runtime.files import read_json, write_json
from autoencoders.training.checkpoint import checksum, versions
from autoencoders.training.run import flatten
from autoencoders.training.trainer import Diverged, Trainer

Result = dict[str, Any]


@dataclass(frozen=True)
class Fold:
    """Fold `number` of `of`, drawn by `seed` as scikit-learn's KFold draws them, held out from training `recipe`."""

    recipe: Recipe
    number: int
    of: int
    seed: int
    device: torch.device
    threads: int

    @processes.alone()
    def train(self, images: np.ndarray) -> Result:
        """Train on the other folds of images (N, 784) uint8; `val_mse` per pixel, in the recipe's range, and `seconds`.

        Where training diverges `val_mse` is None, and `diverged` says how.
        """
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        splits = list(KFold(self.of, shuffle=True, random_state=self.seed).split(images))
        train, held_out = (images[rows] for rows in splits[self.number])
        torch.manual_seed(self.recipe.seed)
        precision = Precision("auto", self.device)
        trainer = Trainer(self.recipe.build(), self.recipe, train, held_out, self.device, precision)
        result: Result = {"val_mse": None}
        try:
            for _ in trainer.epochs():
                pass
            result["val_mse"] = reconstruction_error(trainer.model, trainer.test_images)["test_mse"]
        except Diverged as fault:
            result["diverged"] = str(fault)
        return result | {"seconds": round(trainer.seconds + sum(row["seconds"] for row in trainer.history), 3)}

    def facts(self, images: ImageSet) -> dict[str, Any]:
        """All that the result depends on, in JSON types."""
        return {
            "recipe": flatten(self.recipe.as_dict()), "fingerprint": images.fingerprint,
            "fold": [self.number, self.of, self.seed], "threads": self.threads, "device": self.device.type,
            "precision": str(Precision("auto", self.device)),
            "versions": {name: versions()[name] for name in ("torch", "numpy")},
        }  # fmt: skip


def path_of(facts: dict[str, Any], folder: Path) -> Path:
    """The file that keeps the result which these facts lead to."""
    return folder / f"{checksum(facts)[:16]}.json"


def keep(result: Result, facts: dict[str, Any], folder: Path) -> None:
    """Write a fold's result, with a checksum, so that a number changed later is not taken for one."""
    record = {"facts": facts, "result": result}
    write_json(path_of(facts, folder), {**record, "sha256": checksum(record)})


def kept(facts: dict[str, Any], folder: Path) -> Result | None:
    """The result that was kept of a fold, or None; a damaged file is as good as none."""
    path = path_of(facts, folder)
    if not path.exists():
        return None
    try:
        record = read_json(path, "it is trained again")
        if record.pop("sha256", None) == checksum(record) and record["facts"] == facts:
            return dict(record["result"])
    except (RunError, KeyError, TypeError):
        pass
    print(f"warning: {path}: is damaged; this fold is trained again", file=sys.stderr)
    return None


def train_all(folds: Mapping[int, Fold], images: np.ndarray, jobs: int) -> Iterator[tuple[int, Result]]:
    """Train every fold, `jobs` processes at a time, and yield each one's key with its result as it ends."""
    with joblib.parallel_config("loky", initializer=_leave_signals_to_the_parent):
        work = joblib.Parallel(n_jobs=max(1, min(jobs, len(folds))), return_as="generator_unordered")
    # joblib's, when we are stopped, and when it replaces a process that has kept much memory: which is its right.
    warnings.filterwarnings("ignore", r"\d+ tasks which were|A worker stopped while some jobs", UserWarning)
    try:
        yield from work(joblib.delayed(_train)(key, fold, images) for key, fold in folds.items())
    except BrokenProcessPool as error:
        raise RunError("a process was ended by the system, most likely for want of memory; use fewer --jobs") from error


def _train(key: int, fold: Fold, images: np.ndarray) -> tuple[int, Result]:
    return key, fold.train(images)


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
