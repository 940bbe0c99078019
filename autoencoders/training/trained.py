"""A finished run, loaded from its folder: verified checksums, and every shape compared before memory is allocated."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ae_models import Autoencoder
from autoencoders.data.images import ImageSet
from autoencoders.data.sets import load_images
from autoencoders.recipes import Recipe
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import read_bytes
from autoencoders.training.checkpoint import RUN_FILE, from_bytes, read_record


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


def load_recorded(dataset: Mapping[str, Any], source: str | None = None, root: Path | None = None) -> ImageSet:
    """The image set described by `dataset` in a run's record; `source` and `root` replace locations that changed."""
    arguments = {key: dataset[key] for key in ("image_size", "test_fraction", "split_seed") if key in dataset}
    arguments["stream"] = "on" if dataset.get("stream") is True else "off"  # the order of the images depends on it
    return load_images(source or dataset.get("source", dataset["name"]), root or Path(dataset["root"]), **arguments)


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
