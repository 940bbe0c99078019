"""A run's folder: saves checkpoints, resumes from them, and never overwrites an unfinished run.

A checkpoint belongs to one recipe, one image set and one precision; only the number of epochs may grow.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from autoencoders.data.images import ImageSet
from autoencoders.evaluation.pca import Pca, fit_pca, load_or_fit_pca, n_components_file, read_pca
from autoencoders.recipes import Recipe
from autoencoders.runtime import cli, processes, signals
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import read_n_components
from autoencoders.training import checkpoint
from autoencoders.training.trainer import Diverged, OnStep, Row, Trainer

log = logging.getLogger(__name__)


def resolve_code_size(recipe: Recipe, images: ImageSet, folder: Path) -> tuple[Recipe, Pca, bool]:
    """The recipe with its code size, the PCA to compare with, and whether `write_pca` has yet to write that PCA.

    A code size that the recipe does not give comes from the files in `folder`, or from a new fit where there are none;
    UsageError when these files contradict each other or belong to other images.
    """
    if recipe.code_size is not None:
        return recipe, load_or_fit_pca(folder, images, recipe.code_size), False
    path, stored = n_components_file(folder, 0.95), read_pca(folder, images)
    pca = stored or fit_pca(images)
    code_size = pca.components_for(0.95)
    if path.exists():
        hint = f"run ae_pca.py --output-dir {folder} again, or give a --code-size"
        count = read_n_components(path, recipe.pixels, hint)
        if stored and count != code_size:
            raise UsageError(f"{path}: says {count}, but pca.npz next to it says {code_size}; {hint}")
        code_size = count
    return recipe.override({"code_size": code_size}), pca, not path.exists()


class Run:
    """A trainer and the folder of its checkpoints."""

    def __init__(self, trainer: Trainer, images: ImageSet, folder: Path) -> None:
        self.trainer, self.images, self.folder = trainer, images, folder
        self.path = folder / checkpoint.CHECKPOINT_FILE
        self.identity: dict[str, Any] = {
            "recipe": trainer.recipe.as_dict(), "fingerprint": images.fingerprint,
            "precision": str(trainer.precision), "versions": checkpoint.versions(), "launch": processes.launch_id(),
        }  # fmt: skip
        self.signals = signals.Signals()
        self.saved_at, self.next_save, self.is_saved = time.monotonic(), 0.0, False
        self.digest = ""  # SHA-256 of the checkpoint that this run wrote or resumed
        # Problems that health.check does not warn about (again); with --only the test images are of other labels, too.
        self.reported: set[str] = set() if images.only is None else {"rising_test_loss"}

    def resume_or_start(self, resume: bool) -> bool:
        """Resume, as after a restart by torchrun, or start anew, on every process; True for a finished run."""
        if processes.on_main(lambda: self.resume() if resume or self._restarted_by_torchrun() else self.start_anew()):
            return True
        if processes.size() > 1:
            state = processes.on_main(lambda: bytes(checkpoint.to_bytes(self.trainer.state_dict())))
            self.trainer.load_state_dict(checkpoint.from_bytes(state, self.path, ""))
        return False

    def _restarted_by_torchrun(self) -> bool:
        """Whether the checkpoint was written under this very launch of torchrun."""
        launch = self.identity["launch"]
        try:
            return bool(launch) and self.path.exists() and checkpoint.load_checkpoint(self.path)[0]["launch"] == launch
        except (RunError, KeyError):
            return False

    def resume(self) -> bool:
        """Restore the folder's checkpoint, if there is one; True when the run is finished already."""
        if not self.path.exists():
            log.info(f"Nothing to resume in {self.folder}: starting from scratch")
            return False
        state, self.digest = checkpoint.load_checkpoint(self.path)
        self._check_same_run(state)
        try:
            self.trainer.load_state_dict(state["trainer"])
        except Exception as error:  # whatever the file holds
            raise RunError(f"{self.path}: does not fit ({error}); train again, without --resume") from error
        if state["versions"] != self.identity["versions"]:
            log.warning("the versions of the libraries have changed: the resumed run may not be bit-identical")
        done, epochs = len(self.trainer.history), self.trainer.recipe.epochs
        if done == epochs and checkpoint.is_finished(self.folder, self.digest):
            log.info(f"Finished already: {self.folder} holds the results of all {epochs} epochs")
            return True
        at = f"epoch {done + 1}, step {self.trainer.log.steps + 1}" if done < epochs else "its results"
        log.info(f"Resuming {self.path} at {at}")
        return False

    def _check_same_run(self, state: dict[str, Any]) -> None:
        """UsageError for other images or settings; more epochs are allowed if no schedule depends on their number."""
        if state["fingerprint"] != self.identity["fingerprint"]:
            kind, flags = "images", "--dataset, --leave-out, --only"
            if self.trainer.recipe.vector_size:
                kind, flags = "vectors", "VECTORS, --test-fraction, --split-seed"
            raise UsageError(f"{self.path}: was trained on other {kind} than these ({self.images.title}); name "
                             f"those ({flags}), or train without --resume")  # fmt: skip
        recipe, reason = self.trainer.recipe, ""
        theirs = {**Recipe.from_dict(state["recipe"]).settings(), "precision": state["precision"]}
        ours = {**recipe.settings(), "precision": self.identity["precision"]}
        differences = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
        if "epochs" in differences and ours["epochs"] > theirs["epochs"] and not recipe.length_dependence:
            differences.remove("epochs")
        if differences == ["epochs"] and recipe.length_dependence:
            reason = f" ({recipe.length_dependence} depends on their number)"
        if differences:
            listed = ", ".join(f"{name} {theirs.get(name)} (now {ours.get(name)})" for name in differences)
            raise UsageError(f"{self.path}: was trained with other settings: {listed}{reason}; "
                             "use those, or train without --resume")  # fmt: skip

    def start_anew(self) -> bool:
        """Rename the checkpoint of an unfinished run, so that nothing overwrites it."""
        matters = self.path.exists()
        with contextlib.suppress(RunError):  # an unreadable checkpoint may still matter to somebody
            matters = matters and not checkpoint.is_finished(self.folder, checkpoint.load_checkpoint(self.path)[1])
        if matters:
            names = (f"checkpoint.previous{n}.pt" for n in itertools.chain([""], itertools.count(2)))
            previous = next(path for name in names if not (path := self.folder / name).exists())
            self.path.replace(previous)
            log.info(f"Renamed the checkpoint of an unfinished run to {previous}")
        return False

    def epochs(self, on_step: OnStep, minutes: float) -> Iterator[Row]:
        """Train to the end; yield the row of history after each epoch.

        A checkpoint is saved after the first and the last epoch, and after others if that takes at most a twentieth of
        the time; every `minutes` inside an epoch; and when the process is asked to stop.
        """
        self.signals.listen()

        def watch(epoch: int, step: int, steps: int, loss: Tensor) -> None:
            self.is_saved = False
            on_step(epoch, step, steps, loss)
            if self.signals.received or time.monotonic() - self.saved_at > 60 * minutes:
                self.trainer.check_finite()
                self._stop_if_asked()
                self.save()

        try:
            for row in self.trainer.epochs(watch):
                if row["epoch"] == self.trainer.recipe.epochs or time.monotonic() >= self.next_save:
                    self.save()
                yield row
                self._stop_if_asked()
        except RunError as error:
            raise RunError(f"{error}; {self._resume_hint(isinstance(error, Diverged))}") from error
        self.signals.restore()
        self._stop_if_asked()  # by a signal since the last epoch's check

    def follow(self) -> None:
        """The training of a process other than the main one, which alone saves, prints and reports errors."""
        with contextlib.suppress(Diverged):
            for _ in self.trainer.epochs():
                pass

    def save(self) -> None:
        """Write the checkpoint."""
        started = time.monotonic()
        self.digest = checkpoint.save_checkpoint(self.path, {**self.identity, "trainer": self.trainer.state_dict()})
        self.saved_at = time.monotonic()
        self.next_save = self.saved_at + 19 * (self.saved_at - started)
        self.is_saved = True

    def _stop_if_asked(self) -> None:
        """After a signal: save a checkpoint, unless that is done, and raise Stopped."""
        if self.signals.received:
            if not self.is_saved:
                self.save()
            raise signals.Stopped(f"stopped; {self._resume_hint()}", 128 + self.signals.received)

    def _resume_hint(self, diverged: bool = False) -> str:
        if not self.digest:
            return "no checkpoint was written yet"
        what = "an earlier, good state" if diverged else "the progress; the same command with --resume continues it"
        return f"{self.path} holds {what}"


@contextlib.contextmanager
def training_progress(trainer: Trainer, log_interval: int | None) -> Iterator[OnStep]:
    """A function to call after each step: draws a progress bar, and prints every `log_interval`-th batch's loss."""
    images, epochs = len(trainer.train_images), trainer.recipe.epochs
    done = round((len(trainer.history) + trainer.log.steps / len(trainer.batch_sizes)) * images)
    layout = "{desc} {percentage:3.0f}%|{bar}| {rate_noinv_fmt}{postfix}, {remaining} left"
    with tqdm(total=epochs * images, initial=done, unit=" images", unit_scale=True, leave=False, bar_format=layout,
              mininterval=0.3, dynamic_ncols=True, disable=None if cli.is_verbose() else True) as bar:  # fmt: skip

        def on_step(epoch: int, step: int, steps: int, loss: Any) -> None:
            if bar.update(round((epoch - 1 + step / steps) * images) - bar.n):  # drawn anew, a few times a second
                bar.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)  # reading a loss makes a GPU wait
                bar.set_description(f"epoch {epoch}/{epochs}")
            if step == steps:
                bar.clear()  # the line about the epoch comes next
            if log_interval and cli.is_verbose() and step % log_interval == 0:
                tqdm.write(f"Epoch {epoch}, step {step}/{steps} ({step / steps:.0%}): batch loss {loss.item():.4f}")

        yield on_step
