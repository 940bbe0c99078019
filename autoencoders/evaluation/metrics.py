"""What is measured on a trained model: losses and errors over a whole set of images."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ae_models import Autoencoder, to_range
from autoencoders.runtime.device import seed_for

Numbers = dict[str, Any]
_BATCH = 500  # images per pass: large enough to be quick, small enough for any memory


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
def evaluation_sums(model: Autoencoder, images: Tensor, seed: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
    """Sums over batch `part`, `part + parts`, ... of images (n, 784) uint8, in doubles: the model's loss, its parts and
    the counts behind `epoch_metrics`; the sums of all parts give `evaluation_means`.

    The noise of a batch depends on the seed and its number alone, so the sums do not depend on `parts`.
    """
    totals: dict[str, Tensor] = {}
    for number, x in enumerate(_in_batches(model, images)):
        mine = number % parts == part
        if not mine and number:  # the first batch is computed everywhere: it names the sums
            continue
        torch.manual_seed(seed_for(seed, len(images), number))
        loss, values = model.loss(x)
        sums = {f"test_{name}": value * len(x) for name, value in {"loss": loss, **values}.items()}
        if model.epoch_metrics:
            sums |= _code_sums(model, x)
        for name, value in sums.items():
            totals[name] = totals.get(name, 0) + value.cpu().double() * mine  # MPS has no float64
    return totals


def evaluation_means(sums: dict[str, Tensor], images: int, names: tuple[str, ...] = ()) -> Numbers:
    """The means over the test images, as a row of history, of the sums of all parts; `names` are `epoch_metrics`."""
    means = {name: (total / images).tolist() for name, total in sums.items() if name.startswith("test_")}
    measured = _code_means(sums, images) if names else {}
    return means | {name: measured[name] for name in names}


def evaluate(model: Autoencoder, images: Tensor, seed: int) -> Numbers:
    """The model's own loss and its parts on images (n, 784) uint8, prefixed `test_`, and its `epoch_metrics`."""
    return evaluation_means(evaluation_sums(model, images, seed), len(images), model.epoch_metrics)


def _code_sums(model: Autoencoder, x: Tensor) -> dict[str, Tensor]:
    """Sums over the images x: correlation, images where it is undefined, and how often each feature fires."""
    rebuilt, code = model(x)
    unit = to_range(x, model.input_range, "unit")
    correlation = pearson(to_range(rebuilt, model.output_range, "unit"), unit)
    return {"pearson": correlation.nansum(dim=-1), "undefined": correlation.isnan().sum(dim=-1),
            "fired": (code != 0).sum(dim=-2)}  # fmt: skip


def _code_means(sums: dict[str, Tensor], images: int) -> Numbers:
    rates = sums["fired"] / images
    return {
        "pearson": (sums["pearson"] / (images - sums["undefined"])).nan_to_num().tolist(),  # 0 where none is defined
        "undefined_pearson": sums["undefined"].long().tolist(),
        "l0": rates.sum(dim=-1).tolist(),
        "dead_features": (rates == 0).double().mean(dim=-1).tolist(),
        "mean_activity": rates.mean(dim=-1).tolist(),
    }


@torch.no_grad()
def code_statistics(model: Autoencoder, images: Tensor) -> Numbers:
    """`pearson`, `undefined_pearson`, `l0`, `dead_features` and `mean_activity` on uint8 images (n, 784).

    For an ensemble each is a list. `l0` is the mean number of non-zero features of a code, `dead_features` the share of
    features that fire for no image, `mean_activity` the mean firing rate.
    """
    totals: dict[str, Tensor] = {}
    for x in _in_batches(model, images):
        for name, value in _code_sums(model, x).items():
            totals[name] = totals.get(name, 0) + value.cpu().double()
    return _code_means(totals, len(images))


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over the last dimension; nan where either side is constant."""
    constant = (a.amax(dim=-1) == a.amin(dim=-1)) | (b.amax(dim=-1) == b.amin(dim=-1))
    a, b = a - a.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True)
    lengths = a.square().sum(dim=-1).sqrt() * b.square().sum(dim=-1).sqrt()
    return ((a * b).sum(dim=-1) / lengths).masked_fill(constant, torch.nan)


@torch.no_grad()
def firing_rates(model: Autoencoder, images: Tensor) -> Tensor:
    """The share of uint8 images (n, 784) that each feature fires for: (features,), of an ensemble (S, features)."""
    fired = torch.zeros((), dtype=torch.long)
    for x in _in_batches(model, images):
        fired = fired.to(x.device) + (model.encode(x) != 0).sum(dim=-2)
    return fired / len(images)


@torch.no_grad()
def reconstruct(model: Autoencoder, images: Tensor) -> Tensor:
    """Reconstructions (n, 784), of an ensemble (S, n, 784), of uint8 images (n, 784), in unit range."""
    parts = [to_range(model(x)[0], model.output_range, "unit") for x in _in_batches(model, images)]
    return torch.cat(parts, dim=-2)


def reconstruction_error(model: Autoencoder, images: Tensor) -> Numbers:
    """`test_mse` per pixel in the range of the model's output, and `test_mse_unit`, for uint8 images (n, 784)."""
    # In parts: the answers of an ensemble to all images would be the largest array of its run. And none of the parts'
    # errors is kept, for it would come to lie between the large blocks which the next part takes, and the heap grow.
    total = torch.zeros((), dtype=torch.double)
    for part in images.split(_BATCH):
        squares = (reconstruct(model, part) - to_pixels(part, "unit")).square().mean(dim=-1)
        total = total + squares.cpu().double().sum(dim=-1)
    unit = (total / len(images)).tolist()
    signed = [4 * error for error in unit] if isinstance(unit, list) else 4 * unit
    return {"test_mse": signed if model.output_range == "signed" else unit, "test_mse_unit": unit}


@torch.no_grad()
def loss_analysis(model: Autoencoder, images: Tensor, chosen: Tensor) -> Numbers:
    """What an ensemble's loss is worth: its squared error on the chosen images beside that of the mean image.

    The mean image is that of all images (n, 784) uint8; `mean_image` is its error on the chosen ones, which is their
    variance, `mean_image_all` that on all. `scale` is the number a that makes |x - a y|^2 least, one for all
    reconstructions y of an autoencoder, `scaled_mse` what it leaves. Explained is 1 - MSE / variance. In unit range.
    """
    mean = sum(part.sum(dim=0) for part in images.split(_BATCH)) / (255 * len(images))
    around = torch.cat([(to_pixels(part, "unit") - mean).square().mean(dim=1) for part in images.split(_BATCH)])
    around = around.cpu().double()
    variance = around[chosen].mean()
    picked = images[chosen.to(images.device)]
    x, y = to_pixels(picked, "unit").cpu().double(), reconstruct(model, picked).cpu().double()
    scale = (x * y).sum(dim=(1, 2)) / y.square().sum(dim=(1, 2)).clamp(min=1e-12)
    mse, scaled = ((x - a * y).square().mean(dim=(1, 2)) for a in (1, scale[:, None, None]))
    return {
        "mean_image_all": around.mean().item(), "mean_image": variance.item(), "scale": scale.tolist(),
        "mse": mse.tolist(), "explained": (1 - mse / variance).tolist(),
        "scaled_mse": scaled.tolist(), "scaled_explained": (1 - scaled / variance).tolist(),
    }  # fmt: skip


@torch.no_grad()
def encode(model: Autoencoder, images: Tensor) -> Tensor:
    """Codes (n, code_size), of an ensemble (S, n, features), of uint8 images (n, 784)."""
    return torch.cat([model.encode(x) for x in _in_batches(model, images)], dim=-2)


@torch.no_grad()
def first_member_codes(model: Autoencoder, images: Tensor) -> Tensor:
    """Codes (n, code_size), on the CPU, of uint8 images (n, 784); of an ensemble those of its first autoencoder."""
    return torch.cat([codes[0] if (codes := model.encode(x)).ndim == 3 else codes
                      for x in _in_batches(model, images)]).cpu()  # fmt: skip


@torch.no_grad()
def denoise(model: Autoencoder, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy copies of uint8 images (n, 784), and what the model restores from them, both in unit range."""
    torch.manual_seed(seed_for(seed, len(images), 1))
    noisy = [model.corrupt(x) for x in _in_batches(model, images)]
    restored = [to_range(model(x)[0], model.output_range, "unit") for x in noisy]
    return to_range(torch.cat(noisy), model.input_range, "unit"), torch.cat(restored)


def restoration_error(model: Autoencoder, images: Tensor, seed: int) -> Numbers:
    """Squared error per unit-range pixel to the clean images: of noisy images, and of what is restored from them."""
    totals = {"noisy_mse": 0.0, "restored_mse": 0.0}
    for number, part in enumerate(images.split(_BATCH)):
        clean = to_pixels(part, "unit")
        for name, x in zip(totals, denoise(model, part, seed_for(seed, number))):
            totals[name] += (x - clean).square().mean(dim=-1).cpu().double().sum().item() / len(images)
    return totals


def mse_scale(model: Autoencoder) -> float:
    """What a squared error in unit range is multiplied by to be one in the model's output range."""
    return 4.0 if model.output_range == "signed" else 1.0


def range_label(model: Autoencoder) -> str:
    """The range of the model's output, for people."""
    return "pixels in [-1, 1]" if model.output_range == "signed" else "pixels in [0, 1]"
