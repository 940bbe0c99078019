"""The runs behind a report: each trains one recipe in a folder of its own, unless its results are there already."""

import argparse
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from autoencoders.data.images import ImageSet
from autoencoders.evaluation.loss_analysis import analyse_untrained
from autoencoders.evaluation.pca import Pca
from autoencoders.recipes import RECIPES, Recipe, add_setting_flags, recipe_of
from autoencoders.reproduction.claims import Claim
from autoencoders.runtime import signals
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import locked
from autoencoders.training import health, report
from autoencoders.training.checkpoint import read_record
from autoencoders.training.run import Run, training_progress
from autoencoders.training.trackers import Trackers
from autoencoders.training.trainer import Row, Trainer

log = logging.getLogger(__name__)

Flags = tuple[str, ...]  # a recipe's name, then flags of ae_train.py


@dataclass(frozen=True)
class Setup:
    """What all runs of a report share."""

    images: ImageSet
    pca: Pca  # of these images
    folder: Path
    device: torch.device
    amp: str = "auto"


@dataclass
class Training:
    """One run of a recipe; `train` sets `record` (the content of run.json) and `history`."""

    flags: Flags
    recipe: Recipe
    setup: Setup
    record: dict[str, Any] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " ".join(self.flags).replace("--", "")

    @property
    def command(self) -> str:
        """The command that trains the same."""
        images, epochs = self.setup.images.name, str(self.recipe.epochs)
        others = [] if images == "mnist" else ["--dataset", images, "--epochs", epochs]  # a small set would get more
        return " ".join(["python", "ae_train.py", "--recipe", *self.flags, *others])

    @property
    def folder(self) -> Path:
        name = "-".join(flag.strip("-") for flag in self.flags)
        return self.setup.folder / self.setup.images.name / name / f"seed-{self.recipe.seed}"

    def restore(self) -> tuple[Run, bool]:
        """The run, resumed from the folder's checkpoint if that is of the same run, and whether it is finished."""
        trainer = Trainer(self.recipe, self.setup.images, self.setup.device, self.setup.amp)
        run = Run(trainer, self.setup.images, self.folder)
        try:
            return run, run.path.exists() and run.resume()
        except UsageError as error:  # other settings or images; nothing was restored
            log.info(f"{error}: training it anew")
            return Run(trainer, self.setup.images, self.folder), False

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
        report.write_results(run, self.setup.pca, Trackers(run, [], "", 1))
        log.info(f"{self.name}, seed {self.recipe.seed}: done in {time.monotonic() - started:.0f} s")

    @cached_property
    def analysis(self) -> dict[str, Any]:
        """`loss_analysis` of the untrained ensemble."""
        return analyse_untrained(self.recipe, self.setup.images.train_images, self.setup.device)

    def measured(self, metric: str) -> float:
        """The value of a metric as `Claim.metric` names it; of an ensemble the mean."""
        try:
            return self._measured(*metric.partition(".")[::2])
        except (KeyError, IndexError) as error:
            raise RunError(f"{self.folder}: holds no {metric}; delete it and run again") from error

    def _measured(self, kind: str, name: str) -> float:
        if kind == "pca":
            return self.setup.pca.components_for(0.95)
        if kind == "compression":
            model = self.recipe.override({"code_size": int(name)}).build()
            return self.recipe.pixels / model.encode(torch.zeros(1, self.recipe.pixels)).shape[-1]
        if kind == "analysis":
            value = self.analysis[name]
        elif kind == "metrics":
            value = self.record["metrics"][name]
        else:
            value = self.history[int(kind) - 1][name]
        return fmean(value) if isinstance(value, list) else float(value)


def make_training(flags: Flags, number: int, setup: Setup) -> Training:
    """Run `number` (from 0) of the recipe under `flags`: its seed is that many above the recipe's."""
    parser = argparse.ArgumentParser()
    for group in ("model", "training"):
        add_setting_flags(parser.add_argument_group(), group, RECIPES[flags[0]])
    recipe = recipe_of(parser.parse_args(flags[1:], argparse.Namespace(recipe=flags[0])))
    recipe = replace(recipe, seed=recipe.seed + number, image_size=setup.images.side)
    if recipe.code_size is None:
        recipe = recipe.override({"code_size": setup.pca.components_for(0.95)})
    return Training(flags, recipe, setup)


def plan(claims: Mapping[str, Sequence[Claim]], seeds: int, setup: Setup) -> dict[Flags, list[Training]]:
    """The runs that the claims need, one per seed, by their flags; a recipe without claims is run too."""
    needed = [(name, *claim.flags) for name, its in claims.items() for claim in its or (Claim("", ""),)]
    needed += [claim.baseline for its in claims.values() for claim in its if claim.baseline]
    return {flags: [make_training(flags, number, setup) for number in range(seeds)] for flags in dict.fromkeys(needed)}


def machine_name() -> str:
    """Processor, number of cores and torch version, to print with a measured time."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line] or [platform.processor()]
    return f"{names[0]}, {os.cpu_count()} cores, torch {torch.__version__}"
