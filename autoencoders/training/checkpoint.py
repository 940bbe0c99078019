"""A run's files: weights as a plain state dict, `run.json` (the record of a finished run), and `checkpoint.pt`.

Loading runs no code (`weights_only`) and verifies SHA-256 checksums. A run is finished when `run.json`, written last,
names the checksum of the checkpoint beside it.
"""

import hashlib
import io
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoencoders.recipes import RECIPES
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import read_bytes, read_json, write_atomic, write_json

RUN_FILE = "run.json"
CHECKPOINT_FILE = "checkpoint.pt"
RESULT_FILES = ("history.csv", "training_loss.png", "reconstructions.png")  # of every run on images, with the weights
FORMAT = 2  # of run.json and of checkpoints; counts up when either changes
_MAGIC = f"autoencoder checkpoint {FORMAT} sha256 ".encode()


def save_weights(path: Path, model: torch.nn.Module) -> str:
    """Write the model's state dict, on the CPU, so that any PyTorch loads it anywhere; return its SHA-256."""
    data = to_bytes({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def to_bytes(value: Any) -> memoryview:
    """What torch.save writes, without another copy."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getbuffer()


def from_bytes(data: bytes, path: Path, hint: str) -> Any:
    """The value passed to `to_bytes`: tensors and plain containers only; RunError for anything else, or damage."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in more ways than can be listed
        raise RunError(f"{path}: is damaged or is not a file of tensors; {hint}") from error


def save_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json with a checksum of itself, which detects accidental changes."""
    record = {**record, "format": FORMAT}
    write_json(folder / RUN_FILE, {**record, "sha256": checksum(record)})


def read_record(folder: Path, script: str = "ae_train.py") -> dict[str, Any]:
    """The content of run.json, which `script` has written; UsageError when there is none, RunError when it was damaged
    or changed."""
    path, hint = folder / RUN_FILE, f"train again with {script} --output-dir {folder}"
    if not path.exists():
        named = f" --recipe {folder.name}" if folder.name in RECIPES else ""
        first = f"train first, with {script}{named} --output-dir {folder}"
        unfinished = "the run is not finished: repeat its command with --resume"
        raise UsageError(f"{path}: does not exist; {unfinished if (folder / CHECKPOINT_FILE).exists() else first}")
    record = read_json(path, hint)
    if record.get("format") != FORMAT:
        raise RunError(f"{path}: was written by another version of the suite; {hint}")
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
    hint = "delete it, or train without --resume, to start again"
    first, _, data = read_bytes(path, hint).partition(b"\n")
    if not first.startswith(_MAGIC):
        raise RunError(f"{path}: is not a checkpoint of this version of the suite; {hint}")
    digest = hashlib.sha256(data).hexdigest()
    if digest.encode() != first.removeprefix(_MAGIC):
        raise RunError(f"{path}: is damaged: its checksum does not match; {hint}")
    return from_bytes(data, path, hint), digest


def is_finished(folder: Path, digest: str) -> bool:
    """Whether `folder` holds all results of the run whose checkpoint has this SHA-256, its weights and history
    undamaged."""
    try:
        record = read_record(folder)
        results = RESULT_FILES[: 2 if record["recipe"].get("vector_size") else 3]
        if record.get("checkpoint_sha256") != digest or not all((folder / name).exists() for name in results):
            return False
        digests = {record["weights"]: record["weights_sha256"], "history.csv": record["history_sha256"]}
        return all(hashlib.sha256(read_bytes(folder / name, "")).hexdigest() == of for name, of in digests.items())
    except (RunError, UsageError, KeyError):
        return False


def versions() -> dict[str, Any]:
    """The versions that a result may depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
