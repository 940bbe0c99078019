"""A finished run, loaded from its folder by verified checksums."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ae_models import Autoencoder, to_range
from autoencoders.data.binary import binarized
from autoencoders.data.images import ImageSet
from autoencoders.data.sets import DATASETS, load_images
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

    def load_images(self, source: str | None = None, root: Path = Path("data")) -> ImageSet:
        """The images of the run, at `source` or where its record says; UsageError for different images."""
        dataset = self.record["dataset"]
        source = source or dataset["source"]
        if source not in DATASETS and not Path(source).exists():
            raise UsageError(f"{self.folder}: was trained on images of your own, which are no longer at {source}; name "
                             "their folder or file with --dataset")  # fmt: skip
        arguments: dict[str, Any] = {}
        if source not in DATASETS:
            arguments = {"test_fraction": dataset["test_fraction"], "split_seed": dataset["split_seed"],
                         "stream": "on" if dataset["stream"] else "off"}  # fmt: skip  # the order depends on it
        images = load_images(source, root, self.recipe.image_size, **arguments)
        images = binarized(images, self.recipe.model_args.get("binarize"))
        if dataset["leave_out"] is not None:
            images = images.leaving_out(dataset["leave_out"])
        if dataset["only"] is not None:
            images = images.keeping_only(dataset["only"])
        if images.fingerprint != dataset["fingerprint"]:
            raise UsageError(
                f"{self.folder}: was trained on other images ({dataset['title']}) than those found ({images.title}); "
                f"name them with --dataset and --data-root"
            )
        return images


class UnitPixels(torch.nn.Module):
    """A trained model that takes and gives pixels in [0, 1], whatever its own ranges; what it gives is clipped."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def encode(self, x: Tensor) -> Tensor:
        """Codes (n, code_size) of images (n, 784)."""
        return self.model.encode(to_range(x, "unit", self.model.input_range))

    def decode(self, code: Tensor) -> Tensor:
        """Images (n, 784) of codes (n, code_size)."""
        return to_range(self.model.decode(code), self.model.output_range, "unit").clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def load_run(folder: Path, device: torch.device, vectors: bool = False) -> TrainedRun:
    """The finished run in `folder`; UsageError when there is none, or one on vectors where `vectors` does not allow it;
    RunError when its files are damaged or mixed up."""
    script = "ae_vectors.py" if vectors else "ae_train.py"
    path, hint = folder / RUN_FILE, f"train again with {script} --output-dir {folder}"
    record = read_record(folder, script)
    try:
        recipe = Recipe.from_dict(record["recipe"])
        weights, digest = folder / record["weights"], record["weights_sha256"]
        with torch.device("meta"):
            model = recipe.build()
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: does not fit this suite's recipes ({error}); {hint}") from error
    if recipe.vector_size and not vectors:
        raise UsageError(f"{folder}: was trained on vectors, not on images; measure it with ae_vectors.py --resume")
    data = read_bytes(weights, hint)
    if hashlib.sha256(data).hexdigest() != digest:
        raise RunError(f"{weights}: is not the file that {path} describes; {hint}")
    load_state(model, from_bytes(data, weights, hint), weights, hint)
    return TrainedRun(folder, model.to(device).eval(), recipe, record, device)


def load_state(model: torch.nn.Module, state: Any, path: Path, hint: str) -> None:
    """Load a state dict into `model`, which is on the meta device; RunError for one of another model."""
    model.to_empty(device="cpu")
    for buffer in model.buffers():  # those that belong to training are in no file
        buffer.zero_()
    try:
        model.load_state_dict(state)
    except Exception as error:  # whatever the file holds
        raise RunError(f"{path}: does not fit the recipe's model ({str(error).splitlines()[0]}); {hint}") from error
