"""The runs behind a report: each trains one recipe in a folder of its own, unless its results are there already."""

import argparse
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from autoencoders.data.binary import binarized
from autoencoders.data.images import ImageSet
from autoencoders.data.sets import load_images
from autoencoders.evaluation.loss_analysis import analyse_untrained
from autoencoders.evaluation.pca import Pca, fit_pca
from autoencoders.recipes import RECIPES, Recipe, add_setting_flags, recipe_of
from autoencoders.reproduction.claims import EACH, Claim, Flags, runs_of
from autoencoders.runtime import signals
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import locked, read_json
from autoencoders.training import health, report
from autoencoders.training.checkpoint import read_record
from autoencoders.training.run import Run, training_progress
from autoencoders.training.trackers import Trackers
from autoencoders.training.trainer import Row, Trainer

log = logging.getLogger(__name__)

_LABEL_FLAGS = {"--leave-out": ImageSet.leaving_out, "--only": ImageSet.keeping_only}


@dataclass(frozen=True)
class Setup:
    """What all runs of a report share."""

    images: ImageSet
    pca: Pca  # of these images
    folder: Path
    device: torch.device
    amp: str = "auto"
    root: Path = Path("data")

    def images_for(self, recipe: Recipe, flags: Flags) -> ImageSet:
        """The report's images, or those that the recipe names instead of MNIST, as the flags and the recipe select."""
        named = self.images.name == "mnist" != recipe.dataset
        images = load_images(recipe.dataset, self.root) if named else self.images
        images = binarized(images, recipe.model_args.get("binarize"))
        for flag, select in _LABEL_FLAGS.items():
            if flag in flags:
                images = select(images, int(flags[flags.index(flag) + 1]))
        return images


@dataclass
class Training:
    """One run of a recipe; `train` sets `record` (the content of run.json) and `history`."""

    flags: Flags
    recipe: Recipe
    setup: Setup
    record: dict[str, Any] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)

    @cached_property
    def images(self) -> ImageSet:
        """The images that the flags and the recipe name."""
        return self.setup.images_for(self.recipe, self.flags)

    @cached_property
    def pca(self) -> Pca:
        """Of the run's images; of the report's own it is the report's."""
        return self.setup.pca if self.images is self.setup.images else fit_pca(self.images)

    @property
    def name(self) -> str:
        return " ".join(self.flags).replace("--", "")

    @property
    def command(self) -> str:
        """The command that trains the same."""
        images = self.setup.images.name
        others = [] if images == "mnist" else ["--dataset", images]
        if others and "--epochs" not in self.flags:  # a small set would get more
            others += ["--epochs", str(self.recipe.epochs)]
        return " ".join(["python", "ae_train.py", "--recipe", *self.flags, *others])

    @property
    def folder(self) -> Path:
        name = "-".join(flag.strip("-") for flag in self.flags)
        return self.setup.folder / self.setup.images.name / name / f"seed-{self.recipe.seed}"

    def restore(self) -> tuple[Run, bool]:
        """The run, resumed from the folder's checkpoint if that is of the same run, and whether it is finished."""

        def start() -> Run:
            trainer = Trainer(self.recipe, self.images, self.setup.device, self.setup.amp)
            return Run(trainer, self.images, self.folder)

        run = start()
        try:
            return run, run.path.exists() and run.resume()
        except (UsageError, RunError) as error:  # other settings or images, or damaged
            log.info(f"{str(error).partition('; ')[0]}: training it anew")
            return start(), False

    def train(self) -> None:
        """Train what the folder's checkpoint does not have, and write the results; nothing to do for a finished run."""
        with locked(self.folder):
            run, finished = self.restore()
            if not finished:
                if not run.digest:
                    run.start_anew()
                self._finish(run)
        self.record, self.history = read_record(self.folder), run.trainer.history

    def _finish(self, run: Run) -> None:
        """Train the remaining epochs, and write the results."""
        done, epochs, started = len(run.trainer.history), self.recipe.epochs, time.monotonic()
        log.info(f"{self.name}, seed {self.recipe.seed}: training, {epochs - done} epochs to go")
        with training_progress(run.trainer, None) as on_step:
            try:
                for _ in run.epochs(on_step, minutes=10):
                    health.check(run.trainer, run.reported)
            except signals.Stopped as stop:
                raise signals.Stopped(f"stopped; {run.path} holds the progress; the same command continues it",
                                  stop.status) from stop  # fmt: skip
        report.write_results(run, self.pca, Trackers(run, [], "", 1))
        log.info(f"{self.name}, seed {self.recipe.seed}: done in {time.monotonic() - started:.0f} s")

    @cached_property
    def analysis(self) -> dict[str, Any]:
        """`loss_analysis` of the untrained ensemble."""
        return analyse_untrained(self.recipe, self.images.train_images, self.setup.device)

    def evaluation(self, flags: Flags) -> dict[str, Any]:
        """evaluation.json of ae_eval.py with `flags`, which is run unless its results are there."""
        folder = self.folder / "-".join(("evaluation", *(flag.strip("-") for flag in flags)))
        path, hint = folder / "evaluation.json", f"delete {folder} and run again"
        if not self._is_evaluated(path):
            log.info(f"{self.name}, seed {self.recipe.seed}: evaluating")
            script, root = Path(__file__).parents[2] / "ae_eval.py", self.setup.root
            command = [sys.executable, script, "--run", self.folder, "--output-dir", folder, "--data-root", root,
                       "--device", self.setup.device, *flags]  # fmt: skip
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
                raise RunError(f"{self.folder}: the evaluation failed: {reason}")
        return read_json(path, hint)

    def _is_evaluated(self, path: Path) -> bool:
        """Whether the file at `path` holds an evaluation of these weights."""
        try:
            return read_json(path, "").get("weights_sha256") == self.record["weights_sha256"]
        except (RunError, UsageError):  # damaged, or missing
            return False

    def value_of(self, claim: Claim, applicable: bool = True) -> float:
        """What the claim is about, measured; where it is `applicable`, RunError for a likelihood under another
        protocol than the claim's."""
        if not claim.metric.startswith("evaluation."):
            return self.measured(claim.metric)
        found: Any = self.evaluation(claim.evaluate)
        if claim.protocol and applicable and found["likelihood"]["protocol"] != claim.protocol:
            raise RunError(f"{self.folder}: likelihoods of two protocols do not compare: {claim.name} is of "
                           f"{claim.protocol}, this run of {found['likelihood']['protocol']}")  # fmt: skip
        for name in claim.metric.split(".")[1:]:
            found = found[name]
        return float(found)

    def measured(self, metric: str) -> float:
        """The value of a metric as `Claim.metric` names it; of an ensemble the mean."""
        try:
            return self._measured(*metric.partition(".")[::2])
        except (KeyError, IndexError) as error:
            raise RunError(f"{self.folder}: holds no {metric}; delete it and run again") from error

    def _measured(self, kind: str, name: str) -> float:
        if kind == "pca":
            return self.pca.components_for(0.95)
        if kind == "compression":
            model = self.recipe.override({"code_size": int(name)}).build()
            return self.recipe.pixels / model.encode(torch.zeros(1, self.recipe.pixels)).shape[-1]
        if kind == "analysis":
            value = self.analysis[name]
        elif kind == "metrics":
            value = self.record["metrics"][name]
        elif kind == "image_error":
            value = self.record["metrics"][name] * self.recipe.pixels
        else:
            value = self.history[int(kind) - (int(kind) > 0)][name]
        return fmean(value) if isinstance(value, list) else float(value)


def make_training(flags: Flags, number: int, setup: Setup) -> Training:
    """Run `number` (from 0) of the recipe under `flags`: its seed is that many above the recipe's."""
    parser = argparse.ArgumentParser()
    for flag in _LABEL_FLAGS:
        parser.add_argument(flag)
    for group in ("model", "training"):
        add_setting_flags(parser.add_argument_group(), group, RECIPES[flags[0]])
    recipe = recipe_of(parser.parse_args(flags[1:], argparse.Namespace(recipe=flags[0])))
    recipe = replace(recipe, seed=recipe.seed + number, image_size=setup.images.side)
    if recipe.code_size is None:
        recipe = recipe.override({"code_size": setup.pca.components_for(0.95)})
    return Training(flags, recipe, setup)


def plan(claims: Mapping[str, Sequence[Claim]], seeds: int, setup: Setup) -> dict[Flags, list[Training]]:
    """The runs that the claims need, one per seed, by their flags; a recipe without claims is run too. UsageError where
    a claim is about each digit and the images lack some."""
    needed = [(name, *claim.flags) for name, its in claims.items() for claim in its or (Claim("", ""),)]
    needed += [claim.baseline for its in claims.values() for claim in its if claim.baseline]
    for recipe, *flags in needed:
        if EACH in flags and not np.isin(range(10), setup.images.train_labels).all():
            raise UsageError(f"{setup.images.title}: {recipe} is about each of the labels 0 to 9, some are missing; "
                             "choose other recipes with --only")  # fmt: skip
    return {
        flags: [make_training(each, number, setup) for number in range(seeds) for each in runs_of(flags)]
        for flags in dict.fromkeys(needed)
    }


def machine_name() -> str:
    """Processor, number of cores and torch version, to print with a measured time."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line] or [platform.processor()]
    return f"{names[0]}, {os.cpu_count()} cores, torch {torch.__version__}"
