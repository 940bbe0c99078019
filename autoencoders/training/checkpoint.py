"""Model files: weights as a plain state dict, and `run.json`, the record of the run, beside them.

Loading runs no code (`weights_only`), checks the SHA-256 that `run.json` keeps of the weights, and compares every
shape with the recipe's model before any memory is taken for it.
"""

import hashlib
import io
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ae_models import Autoencoder
from autoencoders.data.sets import ImageSet, load_again
from autoencoders.recipes import Recipe
from autoencoders.runtime.errors import Fault, Mistake
from autoencoders.runtime.files import check_archive, read_bytes, read_json, write_atomic, write_json

RUN_FILE = "run.json"
CHECKPOINT_FILE = "checkpoint.pt"
_MAGIC = b"autoencoder checkpoint 1 sha256 "  # the number counts up when the format changes


def save_weights(path: Path, model: torch.nn.Module) -> str:
    """Write the model's state dict, on the CPU, so that anyone's PyTorch loads it anywhere; return its SHA-256."""
    data = to_bytes({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def to_bytes(value: Any) -> memoryview:
    """What torch.save would write, without a copy of it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getbuffer()


def from_bytes(data: bytes, path: Path, remedy: str) -> Any:
    """What `to_bytes` was given: tensors and plain containers only; anything else, or damage, is a Fault."""
    try:
        file = io.BytesIO(data)
        check_archive(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler of a hostile file fails in more ways than can be listed
        raise Fault(f"{path}: is damaged or is not a file of tensors; {remedy}") from error


def save_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json, with a checksum of itself, so that a number changed later is not taken for a result."""
    write_json(folder / RUN_FILE, {**record, "sha256": checksum(record)})


def read_record(folder: Path) -> dict[str, Any]:
    """What run.json says; Mistake when there is none, Fault when it was damaged or changed."""
    path, remedy = folder / RUN_FILE, f"train again with ae_train.py --output-dir {folder}"
    if not path.exists():
        raise Mistake(f"{path}: is not there; train first, with ae_train.py --output-dir {folder}")
    record = read_json(path, remedy)
    if record.pop("sha256", None) != checksum(record):
        raise Fault(f"{path}: was changed after the run wrote it: its checksum does not match; {remedy}")
    return record


def checksum(record: dict[str, Any]) -> str:
    """SHA-256 of a record of JSON types."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def load_run(folder: Path, device: torch.device) -> tuple[Autoencoder, Recipe, dict[str, Any]]:
    """The trained model in `folder`, its recipe, and the record in its run.json.

    Raises Mistake when there is no run, Fault when its files are damaged or do not belong together.
    """
    path, remedy = folder / RUN_FILE, f"train again with ae_train.py --output-dir {folder}"
    record = read_record(folder)
    try:
        recipe = Recipe.from_dict(record["recipe"])
        weights, digest = folder / Path(str(record["weights"])).name, record["weights_sha256"]
        with torch.device("meta"):
            model = recipe.build()
        if weights.name != recipe.weights_file or not isinstance(record["metrics"], dict):
            raise ValueError("its weights or metrics are not a recipe's")
        dataset = record["dataset"]
        named = [dataset[key] for key in ("name", "title", "fingerprint", "root")] + [record["precision"]]
        share, seed = dataset.get("test_fraction") or 0.1, dataset.get("split_seed", 0)
        if (
            not all(isinstance(text, str) for text in [*named, dataset.get("source", "")])
            or dataset.get("image_size", 28) != recipe.image_size
            or not (isinstance(share, float) and 0 < share < 1 and isinstance(seed, int) and seed >= 0)
        ):
            raise ValueError("its image set is none that can be loaded")
        if record["dataset"].get("leave_out") not in (None, *range(10)):
            raise ValueError("what it leaves out is no digit")
    except Exception as error:  # any other content than ours
        raise Fault(f"{path}: is not the record of a run ({error}); {remedy}") from error
    data = read_bytes(weights, remedy)
    if hashlib.sha256(data).hexdigest() != digest:
        raise Fault(f"{weights}: is not the file that {path} speaks of; {remedy}")
    load_state(model, from_bytes(data, weights, remedy), weights, remedy)
    return model.to(device).eval(), recipe, record


def images_of(folder: Path, dataset: dict[str, Any], name: str | None = None, root: Path | None = None) -> ImageSet:
    """The images that the run in `folder` was trained on, as its record says; Mistake when those found are others."""
    images = load_again(dataset, name, root)
    if dataset.get("leave_out") is not None:
        images = images.without(dataset["leave_out"])
    if images.fingerprint != dataset["fingerprint"]:
        raise Mistake(
            f"{folder}: was trained on other images ({dataset['title']}) than those found ({images.title}); "
            f"name them with --dataset and --data-root"
        )
    return images


def load_state(model: torch.nn.Module, state: Any, path: Path, remedy: str) -> None:
    """Give `model` the tensors of a state dict, if their names, shapes and types are the model's own."""
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    items = state.items() if isinstance(state, dict) else ()
    found = {name: (getattr(t, "shape", None), getattr(t, "dtype", None)) for name, t in items}
    if found != expected:
        name = min(str(name) for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise Fault(f"{path}: holds other weights than the recipe's model, see {name}; {remedy}")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        model.to_empty(device="cpu")
        for buffer in model.buffers():  # those of the training state are in no file: a model at rest has none
            buffer.zero_()
    model.load_state_dict(state)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain containers) behind a first line with the format and the SHA-256 of the rest."""
    data = to_bytes(state)
    write_atomic(path, _MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n", data)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote; a Fault when a single bit of it has changed, or it is another format."""
    remedy = "delete it, or train without --resume, to start afresh"
    first, _, data = read_bytes(path, remedy).partition(b"\n")
    if not first.startswith(_MAGIC):
        raise Fault(f"{path}: is not a checkpoint of this version of the suite; {remedy}")
    if hashlib.sha256(data).hexdigest().encode() != first.removeprefix(_MAGIC):
        raise Fault(f"{path}: is damaged: its checksum does not match; {remedy}")
    state = from_bytes(data, path, remedy)
    try:
        Recipe.from_dict(state["recipe"])
        state["fingerprint"], state["precision"], state["versions"]
        well = all(isinstance(row, dict) for row in state["trainer"]["history"])
    except Exception as error:  # any other content than ours
        raise Fault(f"{path}: does not hold a run ({error}); {remedy}") from error
    if not well:
        raise Fault(f"{path}: does not hold a run; {remedy}")
    return dict(state)


def versions() -> dict[str, Any]:
    """The versions that a result may depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
