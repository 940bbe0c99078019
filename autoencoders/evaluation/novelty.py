"""Novelty of images by their reconstruction along the layers of the encoder (Kim et al. 2020, "RaPP", ICLR).

With h_0(x) = x, h_1(x), ..., h_L(x) the input, the activations of the encoder's layers and the code, and x' the
reconstruction of x, d(x) is the concatenation of h_i(x) - h_i(x'). SAP(x) = |d(x)|^2. NAP(x) is the squared length of
d(x) in units of its spread over the training images: (d - mean)^T C^-1 (d - mean) with their covariance C. The hidden
NAP is ours: it leaves h_0 out, whose hundreds of pixels with little spread outweigh the layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ae_models import Autoencoder, to_range
from autoencoders.data.images import Images
from autoencoders.evaluation.metrics import to_pixels

_BATCH = 500  # images at a time
_MOST = 8192  # numbers of an image in all layers; the covariance of more takes gigabytes and many minutes


@torch.no_grad()
def layer_differences(model: Autoencoder, images: Images, device: torch.device) -> Iterator[Tensor]:
    """d(x), float32 (b, widths of all layers), of batches of uint8 images (n, 784); of an ensemble's first member."""
    model.eval()
    for start in range(0, len(images), _BATCH):
        x = to_pixels(torch.tensor(images[start : start + _BATCH], device=device), model.input_range)
        y = model(x)[0].reshape(-1, *x.shape)[0]
        layers = zip(model.activations(x), model.activations(to_range(y, model.output_range, model.input_range)))
        yield torch.cat([a - b for a, b in layers], dim=1)


@dataclass(frozen=True)
class Novelty:
    """SAP and NAP of a model, the latter by the differences of its training images; SAP alone for very wide layers."""

    model: Autoencoder
    device: torch.device
    mean: Tensor  # (d,)
    whitenings: dict[str, Tensor]  # by score: W (n, rank) with W W^T = C^-1 of the last n entries of d

    @staticmethod
    def fit(model: Autoencoder, train_images: Images, device: torch.device) -> "Novelty":
        total, products, count = torch.zeros(()), torch.zeros(()), len(train_images)
        for difference in layer_differences(model, train_images, device):
            if difference.shape[1] > _MOST:
                return Novelty(model, device, total, {})
            d = difference.cpu().double()  # in single precision the products would add noise to the smallest directions
            total, products = total + d.sum(dim=0), products + d.T @ d
        mean, pixels = total / count, train_images.shape[1]
        covariance = products / count - torch.outer(mean, mean)
        hidden = whitening(covariance[pixels:, pixels:])
        return Novelty(model, device, mean, {"nap": whitening(covariance), "nap_hidden": hidden})

    def scores(self, images: Images) -> dict[str, np.ndarray]:
        """`sap`, `nap` and `nap_hidden` (n,) of uint8 images (n, 784)."""
        found: dict[str, list[Tensor]] = {name: [] for name in ("sap", *self.whitenings)}
        for difference in layer_differences(self.model, images, self.device):
            d = difference.cpu().double()
            found["sap"].append(d.square().sum(dim=1))
            for name, matrix in self.whitenings.items():
                found[name].append(((d - self.mean)[:, -len(matrix) :] @ matrix).square().sum(dim=1))
        return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def whitening(covariance: Tensor) -> Tensor:
    """W (d, rank) with W W^T the pseudo-inverse of a covariance (d, d) of numbers in single precision.

    Directions whose spread is rounding alone are left out, as `numpy.linalg.matrix_rank` does.
    """
    values, vectors = torch.linalg.eigh(covariance)
    rounding = (len(values) * torch.finfo(torch.float32).eps) ** 2
    kept = values > values[-1] * rounding
    return vectors[:, kept] / values[kept].sqrt()
