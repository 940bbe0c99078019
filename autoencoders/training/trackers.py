"""Experiment trackers: TensorBoard, Weights & Biases and SwanLab, each in a process of its own.

A tracker is somebody else's program: it starts threads, takes over signals and streams, asks questions and waits for
networks. None of that can reach a training that only puts rows into a queue: its result is the same bits, and a tracker
that fails or hangs is reported once and dropped.

Everything lands below OUTPUT/trackers. TRACKER.json there keeps the id of the run and how many epochs have been told,
so that a resumed run goes on as the same one. Numbers have the names of `run.json`, an ensemble's with _1, _2, ...;
`batch_loss`, `lr` and `epoch` are the tracker's own. Every number stands at the step of the training it belongs to.
"""

import contextlib
import importlib.util
import json
import logging
import os
import secrets
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from autoencoders.training.run import Run

# The tracker's process runs this file: nothing here may import torch.

log = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds that a tracker gets for its last words
_CHILD = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\nfrom autoencoders.training.trackers import _serve\n_serve(sys.argv[1])"  # fmt: skip  # noqa: E501
_REPORTED = 3  # exit status of a tracker's process that has said itself why it ends


def flatten_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a row by name; those of an ensemble, which are lists, as name_1, name_2, ..."""
    return {f"{name}_{i}" if isinstance(value, list) else name: number
            for name, value in row.items()
            for i, number in enumerate(value if isinstance(value, list) else [value], start=1)}  # fmt: skip


def check_installed(names: Iterable[str]) -> None:
    """Raise UsageError when the package of a tracker is not installed."""
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a mere folder of that name, such as wandb leaves behind
            raise UsageError(f"--tracker {name}: its package is not installed; python -m pip install {name}")


class Trackers:
    """The trackers of one run. Nobody waits for what they do with what they are told, until the run ends."""

    def __init__(self, owner: "Run", names: Iterable[str], project: str, interval: int) -> None:
        """Start the trackers called `names` for a run; every `interval`-th batch's loss is logged."""
        trainer, folder, resume = owner.trainer, owner.folder, bool(owner.digest)
        self.trainer = trainer
        where = {"dataset": owner.images.title, "device": str(trainer.device), "precision": str(trainer.precision)}
        config = {**trainer.recipe.as_dict(), **where}
        place = folder.resolve() / "trackers"
        self.interval = interval
        run = f"{config['name']}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        facts = {"id": run, "folder": str(place), "project": project, "config": config}
        self.feeds: list[_Feed] = []
        for name in dict.fromkeys(names):
            try:
                place.mkdir(exist_ok=True)
                self.feeds.append(_Feed(name, facts, resume))
            except (RunError, OSError, ValueError, TypeError) as error:  # what an earlier run has left, or the disk
                log.warning(f"--tracker {name}: {error}; the run goes on without it")

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        for feed in self.feeds:
            feed.close(status=0 if kind is None else 1)

    def log_epochs(self) -> None:
        """Tell of every epoch that is done and has not been told: of a resumed run, perhaps, some of before."""
        trainer = self.trainer
        history, losses = trainer.history, trainer.batch_losses
        steps = len(losses) // max(len(history), 1)
        for feed in self.feeds:
            for number in range(feed.told, len(history)):
                first, last = number * steps, (number + 1) * steps
                batches = [(step, losses[step - 1]) for step in range(first + 1, last + 1) if not step % self.interval]
                # Of an epoch before the resume only the last learning rate is known, and only when it is constant.
                now = number == len(history) - 1 or not trainer.schedule
                rate = {"lr": trainer.optimizer.param_groups[0]["lr"]} if now else {}
                feed.tell("epoch", number + 1, last, flatten_lists(history[number]) | rate, batches)
            feed.told = max(feed.told, len(history))

    def log_picture(self, path: Path, name: str = "") -> None:
        """Tell of a picture that was written where training stands."""
        trainer = self.trainer
        self.log_epochs()  # first: to some trackers nothing can be told of earlier steps later on
        for feed in self.feeds:
            feed.tell("picture", len(trainer.batch_losses), name or path.stem, str(path.resolve()))

    def log_summary(self, metrics: Mapping[str, Any]) -> None:
        """Tell the metrics of the finished run, those that its last epoch has not told."""
        trainer = self.trainer
        new = {
            name: value
            for name, value in flatten_lists(metrics).items()
            if name not in flatten_lists(trainer.history[-1])
        }
        for feed in self.feeds:
            feed.tell("summary", len(trainer.batch_losses), new)


class _Feed:
    """What one tracker is told, the thread that hands it over, and the process that takes it."""

    def __init__(self, name: str, facts: dict[str, Any], resume: bool) -> None:
        path = Path(facts["folder"]) / f"{name}.json"
        kept = read_json(path, "delete it to have the tracker begin a new run") if resume and path.exists() else {}
        self.name, self.told = name, int(kept.get("epochs", 0))
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.tell({**facts, "id": kept.get("id", facts["id"])})
        # In a session of its own, Ctrl-C in the terminal does not reach it: it ends after us, having heard it all.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, name], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        threading.Thread(target=self._hand_over, daemon=True).start()

    def tell(self, *message: Any) -> None:
        self.queue.put(message)

    def _hand_over(self) -> None:
        with contextlib.suppress(OSError), self.process.stdin as pipe:  # type: ignore[union-attr]
            while message := self.queue.get():
                pipe.write(json.dumps(message) + "\n")
                pipe.flush()

    def close(self, status: int) -> None:
        """Let the tracker finish, or end it when that takes too long."""
        self.tell("close", status)
        self.tell()
        try:
            ended = self.process.wait(_PATIENCE)
            why = f"its process ended with status {ended}" if ended not in (0, _REPORTED) else ""
        except subprocess.TimeoutExpired:
            self.process.kill()
            why = f"it did not finish within {_PATIENCE:.0f} seconds and was ended"
        if why:
            log.warning(f"--tracker {self.name}: {why}; the run itself is not touched by it")


def _serve(name: str) -> None:
    """Be the process of one tracker: messages in on stdin, one line each; whatever the tracker prints, into a log."""
    messages, stderr = os.fdopen(os.dup(0)), os.fdopen(os.dup(2), "w")
    try:
        facts = json.loads(messages.readline())[0]
        folder = Path(facts["folder"])
        log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream, place in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(place, stream)
        tracker = TRACKERS[name](**facts)
        if tracker.remark:
            print(f"{name}: {tracker.remark}", file=stderr, flush=True)
        for line in messages:
            message, *values = json.loads(line)
            getattr(tracker, message)(*values)
            if message == "epoch":
                write_json(folder / f"{name}.json", {"id": facts["id"], "epochs": values[0]})
        status = 0
    except BaseException as error:  # whatever it is, the training shall not know
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"warning: --tracker {name}: {reason}; the run goes on without it", file=stderr, flush=True)
        status = _REPORTED
    os._exit(status)  # past the hooks that a tracker may have left for the end


class TensorBoard:
    """Event files in trackers/tensorboard/ID; a resumed run adds a file to those of its folder."""

    remark = ""

    def __init__(self, id: str, folder: str, project: str, config: dict[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(Path(folder, "tensorboard", id)))
        lines = "\n".join(f"| {key} | {value} |" for key, value in {"project": project, **config}.items())
        table = TensorProto(dtype="DT_STRING", string_val=[f"| setting | value |\n| --- | --- |\n{lines}".encode()])
        text = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        self._write(0, [Summary.Value(tag="recipe", metadata=text, tensor=table)])

    def _write(self, step: int, values: list[Any]) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def epoch(self, epoch: int, step: int, numbers: dict[str, float], batches: list[tuple[int, float]]) -> None:
        for place, loss in batches:
            self._write(place, [self._summary.Value(tag="batch_loss", simple_value=loss)])
        self.summary(step, numbers)
        self._writer.flush()

    def picture(self, step: int, name: str, path: str) -> None:
        png = Path(path).read_bytes()
        width, height = struct.unpack(">II", png[16:24])  # where every PNG keeps them
        image = self._summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._write(step, [self._summary.Value(tag=name, image=image)])

    def summary(self, step: int, metrics: dict[str, float]) -> None:
        self._write(step, [self._summary.Value(tag=name, simple_value=number) for name, number in metrics.items()])

    def close(self, status: int) -> None:
        self._writer.close()


class _Logged:
    """What the two that are told by `log(numbers, step)` share; `_run` and `_image` are the tracker's own."""

    _run: Any
    _image: Any

    def epoch(self, epoch: int, step: int, numbers: dict[str, float], batches: list[tuple[int, float]]) -> None:
        for place, loss in batches:
            self._run.log({"batch_loss": loss}, step=place)
        self._run.log(numbers, step=step)

    def picture(self, step: int, name: str, path: str) -> None:
        self._run.log({name: self._image(path)}, step=step)


class Wandb(_Logged):
    """A Weights & Biases run; online when the environment says so or somebody is logged in, else offline."""

    remark = ""

    def __init__(self, id: str, folder: str, project: str, config: dict[str, Any]) -> None:
        for name in ("CACHE", "DATA"):  # which would be somewhere in the home folder
            os.environ.setdefault(f"WANDB_{name}_DIR", str(Path(folder, "wandb", name.lower())))
        import wandb

        mode: Any = None
        if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
            mode, self.remark = "offline", "not logged in, so the run is kept offline (wandb login, wandb sync)"
        settings = wandb.Settings(console="off", silent=True, save_code=False, x_stats_pid=os.getppid())
        self._image = wandb.Image
        self._run = wandb.init(
            project=project, id=id, name=id, dir=folder, config=config, mode=mode, resume="allow", settings=settings
        )

    def summary(self, step: int, metrics: dict[str, float]) -> None:
        self._run.summary.update(metrics)

    def close(self, status: int) -> None:
        self._run.finish(exit_code=status)


class SwanLab(_Logged):
    """A SwanLab run; online when the environment does not say otherwise and somebody is logged in, else offline."""

    remark = ""

    def __init__(self, id: str, folder: str, project: str, config: dict[str, Any]) -> None:
        import swanlab

        settings = swanlab.Settings(
            interactive=False, terminal=swanlab.Settings.Terminal(proxy_type="none"),
        )  # fmt: skip
        mode: Any = settings.mode
        if mode == "online" and settings.api_key is None:
            mode, self.remark = "offline", "not logged in, so the run is kept offline (swanlab login, swanlab sync)"
        self._image = swanlab.Image
        self._run = swanlab.init(
            project=project, id=id, name=id, log_dir=str(Path(folder, "swanlab")), config=config, mode=mode,
            resume="allow", settings=settings,
        )  # fmt: skip

    def summary(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self, status: int) -> None:
        self._run.finish(*(["crashed", "the training was stopped or has failed"] if status else []))


TRACKERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb, "swanlab": SwanLab}

if __name__ == "__main__":
    _serve(sys.argv[1])
