"""A run's files: weights as a plain state dict, `run.json` (the record of a finished run), and `checkpoint.pt`.

Loading runs no code (`weights_only`), verifies SHA-256 checksums, and compares every shape with the recipe's model
before memory is allocated for it. A run is finished when `run.json`, written last, names the checksum of the
checkpoint beside it.
"""

import hashlib
import io
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ae_models import Autoencoder
from autoencoders.data.images import ImageSet
from autoencoders.data.sets import load_recorded
from autoencoders.recipes import Recipe
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import check_archive, read_bytes, read_json, write_atomic, write_json

RUN_FILE = "run.json"
CHECKPOINT_FILE = "checkpoint.pt"
RESULT_FILES = ("history.csv", "training_loss.png", "reconstructions.png")  # of every run, beside run.json and weights
_MAGIC = b"autoencoder checkpoint 1 sha256 "  # the number counts up when the format changes


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its folder, the model in evaluation mode on its device, the recipe, and `run.json`."""

    folder: Path
    model: Autoencoder
    recipe: Recipe
    record: dict[str, Any]
    device: torch.device

    @property
    def title(self) -> str:
        """Image set and recipe, for figures and messages."""
        return f"{self.record['dataset']['title']}, {self.recipe.name}"

    def load_images(self, name: str | None = None, root: Path | None = None) -> ImageSet:
        """The images of the run, found as its record says or as given; UsageError when they are different images."""
        dataset = self.record["dataset"]
        images = load_recorded(dataset, name, root)
        if dataset.get("leave_out") is not None:
            images = images.leaving_out(dataset["leave_out"])
        if images.fingerprint != dataset["fingerprint"]:
            raise UsageError(
                f"{self.folder}: was trained on other images ({dataset['title']}) than those found ({images.title}); "
                f"name them with --dataset and --data-root"
            )
        return images


def load_run(folder: Path, device: torch.device) -> TrainedRun:
    """The finished run in `folder`; UsageError when there is none, RunError when its files are damaged or mixed up."""
    path, hint = folder / RUN_FILE, f"train again with ae_train.py --output-dir {folder}"
    record = read_record(folder)
    try:
        recipe = Recipe.from_dict(record["recipe"])
        weights, digest = folder / Path(str(record["weights"])).name, record["weights_sha256"]
        with torch.device("meta"):
            model = recipe.build()
        texts = [record["dataset"][key] for key in ("name", "title", "fingerprint", "root")]
        if weights.name != recipe.weights_file or not all(isinstance(text, str) for text in texts):
            raise ValueError("its weights or images are not those of a recipe")
        if (label := record["dataset"].get("leave_out")) is not None and label not in range(2**16):
            raise ValueError("it leaves out no label")
    except Exception as error:  # any content that we did not write
        raise RunError(f"{path}: is not the record of a run ({error}); {hint}") from error
    data = read_bytes(weights, hint)
    if hashlib.sha256(data).hexdigest() != digest:
        raise RunError(f"{weights}: is not the file that {path} describes; {hint}")
    load_state(model, from_bytes(data, weights, hint), weights, hint)
    return TrainedRun(folder, model.to(device).eval(), recipe, record, device)


def save_weights(path: Path, model: torch.nn.Module) -> str:
    """Write the model's state dict, on the CPU, so that any PyTorch loads it anywhere; return its SHA-256."""
    data = to_bytes({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def load_state(model: torch.nn.Module, state: Any, path: Path, hint: str) -> None:
    """Load a state dict into `model`, which may be on the meta device; RunError for other names, shapes or types."""
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    items = state.items() if isinstance(state, dict) else ()
    found = {name: (getattr(t, "shape", None), getattr(t, "dtype", None)) for name, t in items}
    if found != expected:
        name = min(str(name) for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise RunError(f"{path}: does not hold the weights of the recipe's model, see {name}; {hint}")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        model.to_empty(device="cpu")
        for buffer in model.buffers():  # those that belong to training are in no file
            buffer.zero_()
    model.load_state_dict(state)


def to_bytes(value: Any) -> memoryview:
    """What torch.save writes, without another copy."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getbuffer()


def from_bytes(data: bytes, path: Path, hint: str) -> Any:
    """The value passed to `to_bytes`: tensors and plain containers only; RunError for anything else, or damage."""
    try:
        file = io.BytesIO(data)
        check_archive(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails on a hostile file in more ways than can be listed
        raise RunError(f"{path}: is damaged or is not a file of tensors; {hint}") from error


def save_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json with a checksum of itself, which detects accidental changes."""
    write_json(folder / RUN_FILE, {**record, "sha256": checksum(record)})


def read_record(folder: Path) -> dict[str, Any]:
    """The content of run.json; UsageError when there is none, RunError when it was damaged or changed."""
    path, hint = folder / RUN_FILE, f"train again with ae_train.py --output-dir {folder}"
    if not path.exists():
        raise UsageError(f"{path}: does not exist; train first, with ae_train.py --output-dir {folder}")
    record = read_json(path, hint)
    if record.pop("sha256", None) != checksum(record):
        raise RunError(f"{path}: was changed after the run wrote it: its checksum does not match; {hint}")
    return record


def checksum(record: dict[str, Any]) -> str:
    """SHA-256 of a record of JSON types."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def save_checkpoint(path: Path, state: dict[str, Any]) -> str:
    """Write `state` (tensors and plain containers) after a first line with its SHA-256; return that."""
    data = to_bytes(state)
    digest = hashlib.sha256(data).hexdigest()
    write_atomic(path, _MAGIC + digest.encode() + b"\n", data)
    return digest


def load_checkpoint(path: Path) -> tuple[dict[str, Any], str]:
    """The state that `save_checkpoint` wrote and its SHA-256; RunError for damage or another format."""
    hint = "delete it, or train without --resume, to start afresh"
    first, _, data = read_bytes(path, hint).partition(b"\n")
    if not first.startswith(_MAGIC):
        raise RunError(f"{path}: is not a checkpoint of this version of the suite; {hint}")
    digest = hashlib.sha256(data).hexdigest()
    if digest.encode() != first.removeprefix(_MAGIC):
        raise RunError(f"{path}: is damaged: its checksum does not match; {hint}")
    state = from_bytes(data, path, hint)
    try:
        Recipe.from_dict(state["recipe"])
        state["fingerprint"], state["precision"], state["versions"]
        if not all(isinstance(row, dict) for row in state["trainer"]["history"]):
            raise TypeError("its history is not a list of rows")
    except Exception as error:  # any content that we did not write
        raise RunError(f"{path}: does not hold a run ({error}); {hint}") from error
    return dict(state), digest


def is_finished(folder: Path, digest: str) -> bool:
    """Whether `folder` holds all results of the run whose checkpoint has this SHA-256."""
    try:
        record = read_record(folder)
        files = [*RESULT_FILES, Path(str(record["weights"])).name]
        return record.get("checkpoint_sha256") == digest and all((folder / name).exists() for name in files)
    except (RunError, UsageError, KeyError):
        return False


def versions() -> dict[str, Any]:
    """The versions that a result may depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
