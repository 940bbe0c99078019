"""What is measured on a trained model: losses and errors over a whole set of images."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ae_models import Autoencoder, to_range
from autoencoders.data.stream import Images
from autoencoders.runtime import processes
from autoencoders.runtime.device import seed_for

Numbers = dict[str, Any]
_BATCH = 500  # images per pass: large enough to be quick, small enough for any memory


def to_pixels(images: Tensor, pixel_range: str) -> Tensor:
    """uint8 images as floats in [-1, 1] (`signed`) or [0, 1] (`unit`), on the device where they are."""
    if pixel_range == "signed":
        return images.to(torch.float32).mul_(2 / 255).sub_(1)
    return images.to(torch.float32).mul_(1 / 255)


def _in_batches(model: Autoencoder, images: Images) -> Iterator[Tensor]:
    model.eval()
    for part in images.split(_BATCH):
        yield to_pixels(part, model.input_range)


def _in_shares(model: Autoencoder, images: Images) -> Iterator[tuple[Tensor, int]]:
    """Of every batch what this process takes, and how many of these images count."""
    model.eval()
    for part in images.split(_BATCH):
        share = processes.share(len(part))
        model.share = share if processes.size() > 1 else None
        yield to_pixels(part[share.first : share.last], model.input_range), share.images
    model.share = None


@torch.no_grad()
def evaluate(model: Autoencoder, images: Images, seed: int) -> Numbers:
    """The model's own loss and its parts on images (n, 784) uint8, prefixed `test_`, in fp32.

    Models that draw random numbers in their loss draw the same ones every time. Several processes share the work.
    """
    torch.manual_seed(seed_for(seed, len(images)))
    totals: dict[str, Tensor] = {}
    for x, counted in _in_shares(model, images):
        loss, parts = model.loss(x)
        for name, value in {"loss": loss, **parts}.items():
            totals[name] = totals.get(name, 0) + value.cpu().double() * (counted / len(images))  # MPS has no float64
    totals = dict(zip(totals, processes.summing(*totals.values())()))
    measured = quality(model, images) if model.epoch_metrics else {}
    return {f"test_{name}": value.tolist() for name, value in totals.items()} | {
        name: measured[name] for name in model.epoch_metrics
    }


@torch.no_grad()
def quality(model: Autoencoder, images: Images) -> Numbers:
    """`pearson`, `undefined_pearson`, `l0`, `dead_features` and `mean_activity` on uint8 images (n, 784).

    Of an ensemble each is a list. `l0` is the mean number of features of a code that are not zero, `dead_features`
    the share of features that no image makes fire, `mean_activity` the mean share of images that a feature fires for.
    Several processes share the work.
    """
    total, undefined, fired = torch.zeros(()), torch.zeros((), dtype=torch.long), torch.zeros(())
    for x, counted in _in_shares(model, images):
        rebuilt, code = (part[..., :counted, :] for part in model(x))
        correlation = pearson(to_range(rebuilt, model.output_range, "unit"), x[:counted]).cpu().double()
        total, undefined = total + correlation.nansum(dim=-1), undefined + correlation.isnan().sum(dim=-1)
        fired = fired + (code != 0).sum(dim=-2).cpu().double()
    total, undefined, fired = processes.summing(total, undefined, fired)()
    rates = fired / len(images)
    return {
        "pearson": (total / (len(images) - undefined)).nan_to_num().tolist(),  # 0 where none is defined
        "undefined_pearson": undefined.tolist(),
        "l0": rates.sum(dim=-1).tolist(),
        "dead_features": (rates == 0).double().mean(dim=-1).tolist(),
        "mean_activity": rates.mean(dim=-1).tolist(),
    }


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over the last dimension; nan where either side is constant."""
    constant = (a.amax(dim=-1) == a.amin(dim=-1)) | (b.amax(dim=-1) == b.amin(dim=-1))
    a, b = a - a.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True)
    lengths = a.square().sum(dim=-1).sqrt() * b.square().sum(dim=-1).sqrt()
    return ((a * b).sum(dim=-1) / lengths).masked_fill(constant, torch.nan)


@torch.no_grad()
def firing_rates(model: Autoencoder, images: Images) -> Tensor:
    """The share of uint8 images (n, 784) that each feature fires for: (features,), of an ensemble (S, features)."""
    fired = torch.zeros((), dtype=torch.long)
    for x in _in_batches(model, images):
        fired = fired.to(x.device) + (model.encode(x) != 0).sum(dim=-2)
    return fired / len(images)


@torch.no_grad()
def reconstruct(model: Autoencoder, images: Images) -> Tensor:
    """Reconstructions (n, 784), of an ensemble (S, n, 784), of uint8 images (n, 784), in unit range."""
    parts = [to_range(model(x)[0], model.output_range, "unit") for x in _in_batches(model, images)]
    return torch.cat(parts, dim=-2)


def reconstruction_error(model: Autoencoder, images: Images) -> Numbers:
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
def loss_analysis(model: Autoencoder, images: Images, chosen: Tensor) -> Numbers:
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
def encode(model: Autoencoder, images: Images) -> Tensor:
    """Codes (n, code_size), of an ensemble (S, n, features), of uint8 images (n, 784)."""
    return torch.cat([model.encode(x) for x in _in_batches(model, images)], dim=-2)


@torch.no_grad()
def single_codes(model: Autoencoder, images: Images) -> Tensor:
    """Codes (n, code_size), on the CPU, of uint8 images (n, 784); of an ensemble those of its first autoencoder."""
    return torch.cat([codes[0] if (codes := model.encode(x)).ndim == 3 else codes
                      for x in _in_batches(model, images)]).cpu()  # fmt: skip


@torch.no_grad()
def denoise(model: Autoencoder, images: Images, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy copies of uint8 images (n, 784), and what the model restores from them, both in unit range."""
    torch.manual_seed(seed_for(seed, len(images), 1))
    noisy = [model.corrupt(x) for x in _in_batches(model, images)]
    restored = [to_range(model(x)[0], model.output_range, "unit") for x in noisy]
    return to_range(torch.cat(noisy), model.input_range, "unit"), torch.cat(restored)


def restoration_error(model: Autoencoder, images: Images, seed: int) -> Numbers:
    """Squared error per unit-range pixel to the clean images: of noisy images, and of what is restored from them."""
    totals = {"noisy_mse": 0.0, "restored_mse": 0.0}
    for number, part in enumerate(images.split(_BATCH)):
        clean = to_pixels(part, "unit")
        for name, x in zip(totals, denoise(model, part, seed_for(seed, number))):
            totals[name] += (x - clean).square().mean(dim=-1).cpu().double().sum().item() / len(images)
    return totals


def mean_square(difference: Tensor) -> Any:
    """The mean of the squares of a (n, 784) difference in double precision; of a (S, n, 784) one a list."""
    return difference.square().mean(dim=-1).cpu().double().mean(dim=-1).tolist()


def range_factor(model: Autoencoder) -> float:
    """What a squared error in unit range is multiplied by to be one in the model's output range."""
    return 4.0 if model.output_range == "signed" else 1.0


def spoken_range(model: Autoencoder) -> str:
    """The range of the model's output, for people."""
    return "pixels in [-1, 1]" if model.output_range == "signed" else "pixels in [0, 1]"
