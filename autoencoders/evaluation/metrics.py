"""Metrics of a trained model: each is a reduction over its outputs on a set of images.

Images are (n, 784) uint8, on the model's device; errors are squared differences of pixels in [0, 1], averaged over the
pixels, in doubles on the CPU (MPS has none). For an ensemble of S autoencoders arrays get a leading S, and numbers are
lists. A metric computes what it is given, on one process; the trainer and ae_eval.py add up the parts of several.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ae_models import Autoencoder, to_range
from autoencoders.runtime.device import seed_for

Numbers = dict[str, Any]
Sums = dict[str, Tensor]
Scores = dict[str, Tensor]  # of each image, (S, n) for S autoencoders
Output = tuple[Tensor, Tensor, Tensor]  # of a batch: images, reconstructions, codes
_BATCH = 500  # images per pass: large enough to be fast, small enough for any memory
_WINDOW = 11  # pixels along the side of SSIM's window; less for smaller images
_MIN_ERROR = 1e-14  # the rounding of single precision; PSNR is at most 140 dB


def to_pixels(images: Tensor, pixel_range: str) -> Tensor:
    """uint8 images as floats in [-1, 1] (`signed`) or [0, 1] (`unit`), on their device."""
    if pixel_range == "signed":
        return images.to(torch.float32).mul_(2 / 255).sub_(1)
    return images.to(torch.float32).mul_(1 / 255)


@torch.no_grad()
def outputs(model: Autoencoder, images: Tensor) -> Iterator[Output]:
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
    return torch.cat(list(_codes(model, images)), dim=-2)


def first_member_codes(model: Autoencoder, images: Tensor) -> Tensor:
    """Codes (n, code_size) on the CPU; of an ensemble those of its first autoencoder."""
    return torch.cat([code.reshape(-1, *code.shape[-2:])[0].cpu() for code in _codes(model, images)])


@torch.no_grad()
def _codes(model: Autoencoder, images: Tensor) -> Iterator[Tensor]:
    model.eval()
    yield from (model.encode(to_pixels(batch, model.input_range)) for batch in images.split(_BATCH))


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean over the pixels of (x - y)^2 for each image: (n,) of (n, 784)."""
    return (x.cpu().double() - y.cpu().double()).square().mean(dim=-1)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over the last dimension; nan where either side is constant."""
    constant = (a.amax(dim=-1) == a.amin(dim=-1)) | (b.amax(dim=-1) == b.amin(dim=-1))
    a, b = a - a.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True)
    lengths = a.square().sum(dim=-1).sqrt() * b.square().sum(dim=-1).sqrt()
    return ((a * b).sum(dim=-1) / lengths).masked_fill(constant, torch.nan)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each image, (n,) of (n, 784) (Wang, Bovik, Sheikh & Simoncelli 2004, as in the paper).

    The mean over the positions (18 x 18 of 28 x 28) of an 11 x 11 Gaussian window of standard deviation 1.5 inside the
    image; K1 = 0.01, K2 = 0.03, for pixels in [0, 1].
    """
    side = math.isqrt(x.shape[-1])
    width = min(_WINDOW, side - (side + 1) % 2)
    window = torch.exp(-0.5 * ((torch.arange(width, dtype=x.dtype) - width // 2) / 1.5).square())
    positions = side - width + 1
    slide = torch.stack([F.pad(window / window.sum(), (i, positions - 1 - i)) for i in range(positions)])

    def local(image: Tensor) -> Tensor:
        """The window's mean at every position: (n, pixels) -> (n, positions, positions)."""
        return slide @ image.unflatten(-1, (side, side)) @ slide.T

    mean_x, mean_y = local(x), local(y)
    var_x, var_y, cov = local(x * x) - mean_x**2, local(y * y) - mean_y**2, local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean(dim=(-2, -1))


def image_scores(batches: Iterable[Output]) -> Scores:
    """`mse`, `psnr` (dB), `ssim` and `pearson` (nan where undefined) of each image."""
    parts = []
    for x, y, _ in batches:
        x, y = x.cpu().double(), y.cpu().double().reshape(-1, *x.shape)
        mse = squared_error(x, y)
        parts.append((mse, -10 * mse.clamp(min=_MIN_ERROR).log10(), ssim(x, y), pearson(x, y)))
    return {name: torch.cat(of, dim=-1) for name, of in zip(("mse", "psnr", "ssim", "pearson"), zip(*parts))}


def summary(scores: Scores, labels: np.ndarray) -> Numbers:
    """The means of `image_scores` by their names in `evaluation.json`; lists for more than one autoencoder."""
    each = []
    for mse, psnr, similarity, correlation in zip(*scores.values()):
        by_label = {int(label): mse[torch.from_numpy(labels == label)].mean().item() for label in np.unique(labels)}
        each.append({
            "test_mse_unit": mse.mean().item(), "test_mse_signed": 4 * mse.mean().item(), "psnr": psnr.mean().item(),
            "ssim": similarity.mean().item(), "pearson": correlation.nanmean().nan_to_num().item(),
            "undefined_pearson": int(correlation.isnan().sum()), "mse_by_label": by_label,
        })  # fmt: skip
    return each[0] if len(each) == 1 else {name: [member[name] for member in each] for name in each[0]}


def reconstruction_error(model: Autoencoder, images: Tensor) -> Numbers:
    """`test_mse` per pixel in the range of the model's output, and `test_mse_unit`."""
    # Only the sum is stored: small tensors kept between large temporaries fragment the heap.
    total = sum(squared_error(x, y).sum(dim=-1) for x, y, _ in outputs(model, images))
    unit = torch.as_tensor(total) / len(images)
    return {"test_mse": (unit * mse_scale(model)).tolist(), "test_mse_unit": unit.tolist()}


@torch.no_grad()
def evaluation_sums(model: Autoencoder, images: Tensor, seed: int, part: int = 0, parts: int = 1) -> Sums:
    """Sums over batch `part`, `part + parts`, ...: the model's loss, its parts and the counts behind `epoch_metrics`.

    The sums of all parts give `evaluation_means`. The noise of a batch depends on the seed and its number alone, so the
    sums do not depend on `parts`.
    """
    model.eval()
    totals: Sums = {}
    for number, batch in enumerate(images.split(_BATCH)):
        mine = number % parts == part
        if not mine and number:  # the first batch is computed by every part: it names the sums
            continue
        torch.manual_seed(seed_for(seed, len(images), number))
        loss, values = model.loss(to_pixels(batch, model.input_range))
        sums = {f"test_{name}": value * len(batch) for name, value in {"loss": loss, **values}.items()}
        if model.epoch_metrics:
            sums |= _code_sums(*next(outputs(model, batch)))
        totals = _added(totals, {name: value * mine for name, value in sums.items()})
    return totals


def evaluation_means(sums: Sums, images: int, names: tuple[str, ...] = ()) -> Numbers:
    """The means over the test images, as a row of history, of the sums of all parts; `names` are `epoch_metrics`."""
    means = {name: (total / images).tolist() for name, total in sums.items() if name.startswith("test_")}
    measured = _code_means(sums, images) if names else {}
    return means | {name: measured[name] for name in names}


def evaluate(model: Autoencoder, images: Tensor, seed: int) -> Numbers:
    """The model's loss and its parts, prefixed `test_`, and its `epoch_metrics`."""
    return evaluation_means(evaluation_sums(model, images, seed), len(images), model.epoch_metrics)


def code_statistics(model: Autoencoder, images: Tensor) -> Numbers:
    """`pearson`, `undefined_pearson`, `l0`, `dead_features` and `mean_activity`.

    `l0` is the mean number of non-zero features of a code, `dead_features` the fraction of features that fire for no
    image, `mean_activity` the mean firing rate.
    """
    return _code_means(_total_code_sums(model, images), len(images))


def firing_rates(model: Autoencoder, images: Tensor) -> Tensor:
    """The fraction of the images that each feature fires for, (features,)."""
    return _total_code_sums(model, images)["fired"] / len(images)


def _total_code_sums(model: Autoencoder, images: Tensor) -> Sums:
    totals: Sums = {}
    for output in outputs(model, images):
        totals = _added(totals, _code_sums(*output))
    return totals


def _added(totals: Sums, sums: Sums) -> Sums:
    """Running totals by name, in doubles on the CPU."""
    return {name: totals.get(name, 0) + value.cpu().double() for name, value in sums.items()}


def _code_sums(x: Tensor, y: Tensor, code: Tensor) -> Sums:
    """Sums over a batch: correlation, images where it is undefined, and how often each feature fires."""
    correlation = pearson(y, x)
    return {"pearson": correlation.nansum(dim=-1), "undefined": correlation.isnan().sum(dim=-1),
            "fired": (code != 0).sum(dim=-2)}  # fmt: skip


def _code_means(sums: Sums, images: int) -> Numbers:
    rates = sums["fired"] / images
    return {
        "pearson": (sums["pearson"] / (images - sums["undefined"])).nan_to_num().tolist(),  # 0 where none is defined
        "undefined_pearson": sums["undefined"].long().tolist(),
        "l0": rates.sum(dim=-1).tolist(),
        "dead_features": (rates == 0).double().mean(dim=-1).tolist(),
        "mean_activity": rates.mean(dim=-1).tolist(),
    }


def loss_analysis(model: Autoencoder, images: Tensor, chosen: Tensor) -> Numbers:
    """An ensemble's squared error on the chosen images, beside that of the mean image of all images.

    `mean_image` is the mean image's error on the chosen images, their variance; `mean_image_all` that on all images.
    `scale` is the number a that minimises |x - a y|^2, one for all reconstructions y of an autoencoder, `scaled_mse`
    the error that remains. Explained is 1 - MSE / variance.
    """
    mean = sum(batch.sum(dim=0) for batch in images.split(_BATCH)) / (255 * len(images))
    deviation = torch.cat([squared_error(to_pixels(batch, "unit"), mean) for batch in images.split(_BATCH)])
    variance = deviation[chosen].mean()
    picked = images[chosen.to(images.device)]
    x, y = to_pixels(picked, "unit").cpu().double(), reconstruct(model, picked).cpu().double()
    scale = (x * y).sum(dim=(1, 2)) / y.square().sum(dim=(1, 2)).clamp(min=1e-12)
    mse, scaled = (squared_error(x, a * y).mean(dim=-1) for a in (1, scale[:, None, None]))
    return {
        "mean_image_all": deviation.mean().item(), "mean_image": variance.item(), "scale": scale.tolist(),
        "mse": mse.tolist(), "explained": (1 - mse / variance).tolist(),
        "scaled_mse": scaled.tolist(), "scaled_explained": (1 - scaled / variance).tolist(),
    }  # fmt: skip


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


def range_label(model: Autoencoder) -> str:
    """The range of the model's output, for labels and tables."""
    return "pixels in [-1, 1]" if model.output_range == "signed" else "pixels in [0, 1]"
