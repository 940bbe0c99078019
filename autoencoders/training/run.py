"""A run and its folder: the place it has reached is saved, found again, compared, and never written over.

A checkpoint belongs to one recipe, one image set and one precision; only the number of epochs may grow. What is said
here goes to stderr.
"""

import contextlib
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoders.data.sets import ImageSet
from autoencoders.recipes import TRAINING, Recipe
from autoencoders.runtime import cli, processes
from autoencoders.runtime.errors import Fault, Mistake
from autoencoders.training.checkpoint import (
    CHECKPOINT_FILE,
    from_bytes,
    load_checkpoint,
    load_run,
    save_checkpoint,
    to_bytes,
    versions,
)
from autoencoders.training.trainer import Diverged, OnStep, Row, Trainer

RESULTS = ("history.csv", "training_loss.png", "reconstructions.png")  # of every run, beside run.json and weights


class Run:
    """A trainer and the folder its checkpoints go to."""

    def __init__(self, trainer: Trainer, images: ImageSet, folder: Path) -> None:
        self.trainer, self.images, self.folder = trainer, images, folder
        self.path = folder / CHECKPOINT_FILE
        self.facts: dict[str, Any] = {
            "recipe": trainer.recipe.as_dict(), "fingerprint": images.fingerprint,
            "precision": str(trainer.precision), "versions": versions(), "launch": processes.launch(),
        }  # fmt: skip
        self.signals = cli.Signals()
        self.saved, self.kept = time.monotonic(), False  # when the last checkpoint was written, and whether by us

    def epochs(self, on_step: OnStep, keep: Callable[[], None], minutes: float) -> Iterator[Row]:
        """Train to the end; after each epoch call `keep`, save the place, and yield the row of history.

        The place is saved every so many minutes inside of an epoch too, and when the process is asked to stop.
        """
        self.signals.listen()

        def watch(epoch: int, step: int, steps: int, loss: Tensor) -> None:
            on_step(epoch, step, steps, loss)
            if self.signals.received or time.monotonic() - self.saved > 60 * minutes:
                self.trainer.check_finite()
                self.save()

        try:
            for row in self.trainer.epochs(watch):
                keep()
                self.save()
                yield row
        except Diverged as fault:
            kept = f"{self.path} keeps the epoch before" if self.kept else "no checkpoint was written before"
            raise Fault(f"{fault}; {kept}") from fault
        except Fault as fault:
            raise Fault(f"{fault}; {self._where()}") from fault
        self.signals.restore()

    def save(self) -> None:
        """Write the checkpoint; when the process was asked to stop, stop."""
        save_checkpoint(self.path, {**self.facts, "trainer": self.trainer.state_dict()})
        self.saved, self.kept = time.monotonic(), True
        if self.signals.received:
            raise cli.Stopped(f"stopped; {self._where()}", 128 + self.signals.received)

    def _where(self) -> str:
        """What is kept, and how to go on from it."""
        if not self.kept:
            return "this run has written no checkpoint yet"
        return f"{self.path} keeps what was done; the same command with --resume goes on from it"

    def begin(self, resume: bool) -> bool:
        """Resume, or start fresh, on every process alike; True when there is nothing left to do.

        A run whose processes torchrun has started again resumes by itself.
        """
        if processes.first(partial(self._begin, resume)):
            return True
        if processes.size() > 1:
            state = processes.first(lambda: bytes(to_bytes(self.trainer.state_dict())))
            if not processes.is_first():
                self.trainer.load_state_dict(from_bytes(state, self.path, ""))
        return False

    def _begin(self, resume: bool) -> bool:
        if resume or self._restarted():
            return self.resume()
        self.set_aside()
        return False

    def _restarted(self) -> bool:
        """Whether the checkpoint was written under this very launch of torchrun."""
        launch = self.facts["launch"]
        with contextlib.suppress(Fault):
            return bool(launch) and self.path.exists() and load_checkpoint(self.path).get("launch") == launch
        return False

    def resume(self) -> bool:
        """Go to where the folder's checkpoint is; True when there is nothing left to do."""
        if not self.path.exists():
            cli.note(f"Nothing to resume in {self.folder}: starting fresh")
            return False
        state = load_checkpoint(self.path)
        try:
            self._compare(state)
            self.trainer.load_state_dict(state["trainer"])
        except (Mistake, Fault):
            raise
        except Exception as error:  # whatever a checkpoint holds that is none of ours
            raise Fault(f"{self.path}: does not fit the recipe's model ({error}); train without --resume") from error
        self.kept = True
        if state["versions"] != self.facts["versions"]:
            cli.warn("resuming on other versions than before: the last bits may differ")
        done, epochs = len(self.trainer.history), self.trainer.recipe.epochs
        if done == epochs and self._results_stand(state):
            cli.note(f"Finished already: {self.folder} holds the results of all {epochs} epochs")
            return True
        place = f"epoch {done + 1}, step {self.trainer.steps_done + 1}" if done < epochs else "the last results"
        cli.note(f"Resuming {self.path} at {place}")
        return False

    def _compare(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint of other images or settings; only the number of epochs may grow."""
        if state["fingerprint"] != self.facts["fingerprint"]:
            raise Mistake(f"{self.path}: was trained on other images than these ({self.images.title})")
        theirs, ours = (flatten(s["recipe"]) | {"precision": s["precision"]} for s in (state, self.facts))
        differences = [k for k in sorted(ours.keys() | theirs.keys()) if ours.get(k) != theirs.get(k)]
        if differences == ["epochs"] and ours["epochs"] > theirs["epochs"]:
            fixed = self.trainer.recipe.length_dependence
            if not fixed:
                return
            raise Mistake(f"{self.path}: cannot be given more epochs: {fixed} depends on their number; train afresh")
        if differences:
            listed = ", ".join(f"{k} {theirs.get(k)} (now {ours.get(k)})" for k in differences)
            raise Mistake(f"{self.path}: was trained with other settings: {listed}; use those, or train afresh")

    def _results_stand(self, state: dict[str, Any]) -> bool:
        """Whether the folder's results are those of the very run whose checkpoint this is."""
        try:
            model, recipe, record = load_run(self.folder, torch.device("cpu"))
        except (Fault, Mistake):
            return False
        weights, theirs = model.state_dict(), state["trainer"]["model"]
        return (
            flatten(recipe.as_dict()) == flatten(state["recipe"])
            and (record["dataset"]["fingerprint"], record["precision"]) == (state["fingerprint"], state["precision"])
            and all(torch.equal(weights[name], theirs[name]) for name in weights)
            and all((self.folder / name).exists() for name in RESULTS)
            and record.get("history_sha256") == hashlib.sha256((self.folder / RESULTS[0]).read_bytes()).hexdigest()
        )

    def set_aside(self) -> None:
        """Before a fresh start: keep the checkpoint of a run whose results are not all here under another name."""
        if not self.path.exists():
            return
        try:
            state = load_checkpoint(self.path)
            finished = len(state["trainer"]["history"]) >= state["recipe"]["epochs"] and self._results_stand(state)
        except (Fault, KeyError, TypeError):
            finished = False  # one we cannot read may matter to somebody
        if not finished:
            numbered = (self.folder / f"checkpoint.previous{n}.pt" for n in itertools.chain([""], itertools.count(2)))
            previous = next(path for path in numbered if not path.exists())
            self.path.replace(previous)
            cli.note(f"Kept the checkpoint of an unfinished run as {previous}")


def flatten(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a result depends on, by name: how it was trained, and the arguments of the model.

    A setting that there was not yet when the recipe was written down had its default.
    """
    trained = {name: recipe.get(name, getattr(Recipe, name, None)) for name in ("name", "model", *TRAINING)}
    return trained | dict(recipe["model_args"])
