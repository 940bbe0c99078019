"""Metrics of a trained model, without knowledge of other processes: the trainer adds up the parts of several.

Images are (n, 784) uint8, on the model's device; errors are mean squared differences of pixels in [0, 1], in doubles
on the CPU (MPS has none). For an ensemble of S autoencoders arrays get a leading S, and numbers are lists.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ae_models import Autoencoder, to_range
from autoencoders.runtime.device import seed_for

Numbers = dict[str, Any]
Sums = dict[str, Tensor]
_BATCH = 500  # images per pass: large enough to be fast, small enough for any memory


def to_pixels(images: Tensor, pixel_range: str) -> Tensor:
    """uint8 images as floats in [-1, 1] (`signed`) or [0, 1] (`unit`), on their device; vectors as they are."""
    if images.is_floating_point():
        return images
    pixels = images.to(torch.float32)
    return pixels.mul_(2 / 255).sub_(1) if pixel_range == "signed" else pixels.mul_(1 / 255)


@torch.no_grad()
def outputs(model: Autoencoder, images: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of images (b, 784) and reconstructions (b, 784), both in unit range, and codes (b, code_size)."""
    model.eval()
    for batch in images.split(_BATCH):
        y, code = model(to_pixels(batch, model.input_range))
        yield to_pixels(batch, "unit"), to_range(y, model.output_range, "unit"), code


def reconstruct(model: Autoencoder, images: Tensor) -> Tensor:
    """Reconstructions (n, 784) in unit range."""
    return torch.cat([y for _, y, _ in outputs(model, images)], dim=-2)


def encode(model: Autoencoder, images: Tensor) -> Tensor:
    """Codes (n, code_size)."""
    return torch.cat([code for _, _, code in outputs(model, images)], dim=-2)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean over the pixels of (x - y)^2 for each image: (n,) of (n, 784)."""
    return (x.cpu().double() - y.cpu().double()).square().mean(dim=-1)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over the last dimension; nan where either side is constant."""
    constant = (a.amax(dim=-1) == a.amin(dim=-1)) | (b.amax(dim=-1) == b.amin(dim=-1))
    a, b = a - a.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True)
    lengths = a.square().sum(dim=-1).sqrt() * b.square().sum(dim=-1).sqrt()
    return ((a * b).sum(dim=-1) / lengths).masked_fill(constant, torch.nan)


def reconstruction_error(model: Autoencoder, images: Tensor) -> Numbers:
    """`test_mse` per pixel in the range of the model's output, and `test_mse_unit`."""
    # Only the sum is stored: small tensors kept between large temporaries fragment the heap.
    total = sum(squared_error(x, y).sum(dim=-1) for x, y, _ in outputs(model, images))
    unit = torch.as_tensor(total) / len(images)
    return {"test_mse": (unit * mse_scale(model)).tolist(), "test_mse_unit": unit.tolist()}


@torch.no_grad()
def evaluation_sums(model: Autoencoder, images: Tensor, seed: int, part: int = 0, parts: int = 1) -> Sums:
    """Sums over batch `part`, `part + parts`, ...: the model's loss, its parts and the counts behind `epoch_metrics`.

    The noise of a batch depends on the seed and its number alone: the sums of all parts do not depend on `parts`.
    """
    model.eval()
    totals: Sums = {}
    for number, batch in enumerate(images.split(_BATCH)):
        mine = number % parts == part
        if mine or number == 0:  # the first batch is computed by every part: it names the sums
            torch.manual_seed(seed_for(seed, len(images), number))
            loss, values = model.loss(to_pixels(batch, model.input_range))
            sums = {f"test_{name}": value * len(batch) for name, value in {"loss": loss, **values}.items()}
            if model.epoch_metrics:
                sums |= _code_sums(model, batch)
            totals = _added(totals, {name: value * mine for name, value in sums.items()})
    return totals


def evaluation_means(sums: Sums, images: int, names: tuple[str, ...] = ()) -> Numbers:
    """The means over the test images, as a row of history, of the sums of all parts; `names` are `epoch_metrics`."""
    means = {name: (total / images).tolist() for name, total in sums.items() if name.startswith("test_")}
    return means | {name: _code_means(sums, images)[name] for name in names}


def code_statistics(model: Autoencoder, images: Tensor) -> Numbers:
    """`pearson`, `undefined_pearson`, `l0` (non-zero features per code), `dead_features` (the fraction of features that
    fire for no image) and `mean_activity` (the mean firing rate)."""
    return _code_means(_code_sums(model, images), len(images))


def firing_rates(model: Autoencoder, images: Tensor) -> Tensor:
    """The fraction of the images that each feature fires for, (features,)."""
    return _code_sums(model, images)["fired"] / len(images)


def _code_sums(model: Autoencoder, images: Tensor) -> Sums:
    """Sums over images: correlation, images where it is undefined, and how often each feature fires."""
    totals: Sums = {}
    for x, y, code in outputs(model, images):
        r = pearson(y, x)
        sums = {"pearson": r.nansum(dim=-1), "undefined": r.isnan().sum(dim=-1), "fired": (code != 0).sum(dim=-2)}
        totals = _added(totals, sums)
    return totals


def _added(totals: Sums, sums: Sums) -> Sums:
    """Running totals by name, in doubles on the CPU."""
    return {name: totals.get(name, 0) + value.cpu().double() for name, value in sums.items()}


def _code_means(sums: Sums, images: int) -> Numbers:
    rates = sums["fired"] / images
    return {
        "pearson": (sums["pearson"] / (images - sums["undefined"])).nan_to_num().tolist(),  # 0 where none is defined
        "undefined_pearson": sums["undefined"].long().tolist(),
        "l0": rates.sum(dim=-1).tolist(),
        "dead_features": (rates == 0).double().mean(dim=-1).tolist(),
        "mean_activity": rates.mean(dim=-1).tolist(),
    }


def mmcs(dictionaries: Tensor | Sequence[Tensor]) -> Tensor:
    """Mean max cosine similarity between two or more dictionaries (features, pixels): a differentiable scalar.

    MMCS(A, B) = mean_f max_g cos(A_f, B_g), averaged over both directions and over all pairs
    (Sharkey et al. 2022, "Taking features out of superposition with sparse autoencoders").
    """
    cosines = (a @ b.T for a, b in combinations([F.normalize(rows, dim=-1) for rows in dictionaries], 2))
    return torch.stack([(c.amax(0).mean() + c.amax(1).mean()) / 2 for c in cosines]).mean()


@torch.no_grad()
def denoise(model: Autoencoder, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy copies of a batch of images and the reconstructions of these, both in unit range."""
    model.eval()
    torch.manual_seed(seed_for(seed, len(images), 1))
    noisy = model.corrupt(to_pixels(images, model.input_range))
    return to_range(noisy, model.input_range, "unit"), to_range(model(noisy)[0], model.output_range, "unit")


def restoration_error(model: Autoencoder, images: Tensor, seed: int) -> Numbers:
    """`noisy_mse` and `restored_mse`: errors, against the clean images, of noisy images and their reconstructions."""
    totals = torch.zeros(2, dtype=torch.double)
    for number, batch in enumerate(images.split(_BATCH)):
        x = to_pixels(batch, "unit")
        totals += torch.stack([squared_error(x, y).sum() for y in denoise(model, batch, seed_for(seed, number))])
    return dict(zip(("noisy_mse", "restored_mse"), (totals / len(images)).tolist()))


def mse_scale(model: Autoencoder) -> float:
    """The factor from a squared error in unit range to one in the model's output range."""
    return 4.0 if model.output_range == "signed" else 1.0
