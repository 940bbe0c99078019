"""What is measured on a trained model: losses and errors over a whole set of images."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ae_models import Autoencoder, to_range
from ae_runtime import seed_for

Numbers = dict[str, Any]
_BATCH = 1000  # images per pass: large enough to be quick, small enough for any memory


def to_pixels(images: Tensor, pixel_range: str) -> Tensor:
    """uint8 images as floats in [-1, 1] (`signed`) or [0, 1] (`unit`), on the device where they are."""
    if pixel_range == "signed":
        return images.to(torch.float32).mul_(2 / 255).sub_(1)
    return images.to(torch.float32).mul_(1 / 255)


def _in_batches(model: Autoencoder, images: Tensor) -> Iterator[Tensor]:
    model.eval()
    for part in images.split(_BATCH):
        yield to_pixels(part, model.input_range)


@torch.no_grad()
def evaluate(model: Autoencoder, images: Tensor, seed: int) -> Numbers:
    """The model's own loss and its parts on images (n, 784) uint8, prefixed `test_`, in fp32.

    Models that draw random numbers in their loss draw the same ones every time.
    """
    torch.manual_seed(seed_for(seed, len(images)))
    totals: dict[str, Tensor] = {}
    for x in _in_batches(model, images):
        loss, parts = model.loss(x)
        for name, value in {"loss": loss, **parts}.items():
            totals[name] = totals.get(name, 0) + value.cpu().double() * (len(x) / len(images))  # MPS has no float64
    return {f"test_{name}": value.tolist() for name, value in totals.items()}


@torch.no_grad()
def reconstruct(model: Autoencoder, images: Tensor) -> Tensor:
    """Reconstructions (n, 784) of uint8 images (n, 784), in unit range."""
    return torch.cat([to_range(model(x)[0], model.output_range, "unit") for x in _in_batches(model, images)])


def reconstruction_error(model: Autoencoder, images: Tensor) -> Numbers:
    """`test_mse` per pixel in the range of the model's output, and `test_mse_unit`, for uint8 images (n, 784)."""
    unit = mean_square(reconstruct(model, images) - to_pixels(images, "unit"))
    return {"test_mse": unit * range_factor(model), "test_mse_unit": unit}


@torch.no_grad()
def encode(model: Autoencoder, images: Tensor) -> Tensor:
    """Codes (n, code_size) of uint8 images (n, 784)."""
    return torch.cat([model.encode(x) for x in _in_batches(model, images)])


@torch.no_grad()
def denoise(model: Autoencoder, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy copies of uint8 images (n, 784), and what the model restores from them, both in unit range."""
    torch.manual_seed(seed_for(seed, len(images), 1))
    noisy = [model.corrupt(x) for x in _in_batches(model, images)]
    restored = [to_range(model(x)[0], model.output_range, "unit") for x in noisy]
    return to_range(torch.cat(noisy), model.input_range, "unit"), torch.cat(restored)


def restoration_error(model: Autoencoder, images: Tensor, seed: int) -> Numbers:
    """Squared error per unit-range pixel to the clean images: of noisy images, and of what is restored from them."""
    clean = to_pixels(images, "unit")
    noisy, restored = denoise(model, images, seed)
    return {name: mean_square(x - clean)
            for name, x in (("noisy_mse", noisy), ("restored_mse", restored))}  # fmt: skip


def mean_square(difference: Tensor) -> float:
    """The mean of the squares, summed in double precision."""
    return difference.square().mean(dim=1).cpu().double().mean().item()


def range_factor(model: Autoencoder) -> float:
    """What a squared error in unit range is multiplied by to be one in the model's output range."""
    return 4.0 if model.output_range == "signed" else 1.0
