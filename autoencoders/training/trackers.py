"""Experiment trackers: TensorBoard, Weights & Biases and SwanLab log a training, in addition to the files it writes.

A tracker changes no bit of a result and ends no run: its output goes to a log, and its first error drops it. Below
OUTPUT/trackers are NAME.log, and NAME.json with the id of the tracker's run and the number of epochs it holds, with
which a resumed training continues the same run. Values have the names of `run.json`, and are logged at their step.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from autoencoders.runtime import cli
from autoencoders.runtime.errors import RunError
from autoencoders.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from autoencoders.training.run import Run

log = logging.getLogger(__name__)


def flatten_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row by name; those of an ensemble, which are lists, as name_1, name_2, ..."""
    return {f"{name}_{i}" if isinstance(value, list) else name: number
            for name, value in row.items()
            for i, number in enumerate(value if isinstance(value, list) else [value], start=1)}  # fmt: skip


class Trackers:
    """The trackers of one run, which end with the block; they log every `interval`-th batch's loss."""

    def __init__(self, run: "Run", names: Iterable[str], project: str, interval: int) -> None:
        self.trainer, self.interval, self.folder = run.trainer, interval, run.folder.resolve() / "trackers"
        where = {"device": str(run.trainer.device), "precision": str(run.trainer.precision)}
        self.settings = {**run.trainer.recipe.as_dict(), "dataset": run.images.title, **where}
        self.active: dict[str, _Tracker] = {}
        for name in dict.fromkeys(names):
            self._guarded(name, self._start, name, project, bool(run.digest))

    def _start(self, name: str, project: str, resumed: bool) -> None:
        path = self.folder / f"{name}.json"
        id = f"{self.settings['name']}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        state: dict[str, Any] = {"id": id, "epochs": 0}
        if resumed and path.exists():
            state = read_json(path, "delete it to start a new one")
            state["epochs"] = min(state["epochs"], len(self.trainer.history))  # those after the checkpoint come again
        first_step = state["epochs"] * len(self.trainer.batch_sizes) + 1
        tracker = TRACKERS[name](state["id"], self.folder, project, self.settings, first_step)
        tracker.path, tracker.state, self.active[name] = path, state, tracker

    def _guarded(self, name: str, act: Callable[..., None], *args: Any) -> None:
        """Call a tracker; its output, its random numbers and its errors stay away from the training."""
        from torch.random import fork_rng  # here: ae_train.py imports this module before torch

        logging.getLogger(name).propagate = False
        try:
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f"{name}.log"
            if self.folder.is_symlink() or path.is_symlink() or (path.exists() and not path.is_file()):
                raise RunError(f"{path}: is a link or no file; delete it")
            with path.open("a") as file, redirect_stdout(file), redirect_stderr(file), fork_rng([]):
                act(*args)
        except Exception as error:  # a tracker may fail in any way
            self.active.pop(name, None)
            log.warning(f"--tracker {name}: {type(error).__name__}: {error}; the run continues without it")

    def _each(self, act: "Callable[[_Tracker], None]") -> None:
        for name, tracker in list(self.active.items()):
            self._guarded(name, act, tracker)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._each(lambda tracker: tracker.close(failed=kind is not None))

    def log_epochs(self) -> None:
        """Log every finished epoch that a tracker does not hold yet; in a resumed run some may be from before."""
        self._each(self._log_epochs)

    def _log_epochs(self, tracker: "_Tracker") -> None:
        history, steps = self.trainer.history, len(self.trainer.batch_sizes)
        for row in history[tracker.state["epochs"] :]:
            last_step = row["epoch"] * steps
            for step in range(last_step - steps + 1, last_step + 1):
                if step % self.interval == 0:
                    tracker.log({"batch_loss": self.trainer.batch_losses[step - 1]}, step)
            # Of an epoch before the resume only the last learning rate is known, unless it is constant.
            known = row is history[-1] or not self.trainer.schedule
            rate = {"lr": self.trainer.optimizer.param_groups[0]["lr"]} if known else {}
            tracker.log(flatten_lists(row) | rate, last_step)
            tracker.state["epochs"] = row["epoch"]
            write_json(tracker.path, tracker.state)

    def log_picture(self, path: Path, name: str = "") -> None:
        """Log the picture in a file, at the last step of training."""
        self.log_epochs()  # first: W&B takes nothing for an earlier step than the last
        step = len(self.trainer.batch_losses)
        self._each(lambda tracker: tracker.log_picture(name or path.stem, path, step))

    def log_summary(self, metrics: Mapping[str, Any]) -> None:
        """Log the metrics of the finished run that are not among the values of its last epoch."""
        last, step = flatten_lists(self.trainer.history[-1]), len(self.trainer.batch_losses)
        new = {name: value for name, value in flatten_lists(metrics).items() if name not in last}
        self._each(lambda tracker: tracker.log(new, step))


class _Tracker:
    """One tracker: `run` takes values by name and step, `image` packs a picture."""

    path: Path  # of the file with the state
    state: dict[str, Any]
    run: Any
    image: Any

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self.run.log({name: self.image(str(path))}, step=step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class TensorBoard(_Tracker):
    """Event files in trackers/tensorboard/ID; the file of a resumed run replaces all from `first_step` on."""

    def __init__(self, id: str, folder: Path, project: str, settings: dict[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = SummaryWriter(str(folder / "tensorboard" / id), purge_step=first_step)
        rows = [(name, str(value)) for name, value in {"project": project, **settings}.items()]
        self.run.add_text("recipe", cli.format_table(("setting", "value"), rows, markdown=True))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.run.add_scalar(name, value, step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self.run.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        self.run.close()


class Wandb(_Tracker):
    """A Weights & Biases run, online when the environment says so or the user is logged in, else offline."""

    def __init__(self, id: str, folder: Path, project: str, settings: dict[str, Any], first_step: int) -> None:
        for name in ("CACHE", "DATA"):  # which would be in the home folder
            os.environ.setdefault(f"WANDB_{name}_DIR", str(folder / "wandb" / name.lower()))
        import wandb

        online = "WANDB_MODE" in os.environ or wandb.login(prompt=False, verify=False)
        if not online:
            log.info("wandb: not logged in: the run is stored offline (wandb login, then wandb sync)")
        self.image = wandb.Image
        self.run = wandb.init(project=project, id=id, name=id, dir=folder, config=settings, resume="allow",
                              mode=None if online else "offline",
                              settings=wandb.Settings(console="off", silent=True, save_code=False))  # fmt: skip


class SwanLab(_Tracker):
    """A SwanLab run, online unless the environment says otherwise or the user is not logged in."""

    def __init__(self, id: str, folder: Path, project: str, settings: dict[str, Any], first_step: int) -> None:
        import swanlab

        options = swanlab.Settings(interactive=False, terminal=swanlab.Settings.Terminal(proxy_type="none"))
        mode: Any = options.mode
        if mode == "online" and options.api_key is None:
            mode = "offline"
            log.info("swanlab: not logged in: the run is stored offline (swanlab login, then swanlab sync)")
        self.image = swanlab.Image
        self.run = swanlab.init(project=project, id=id, name=id, log_dir=str(folder / "swanlab"), config=settings,
                                resume="allow", mode=mode, settings=options)  # fmt: skip

    def close(self, failed: bool) -> None:
        self.run.finish(*(["crashed", "the training was stopped or failed"] if failed else []))


TRACKERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb, "swanlab": SwanLab}
