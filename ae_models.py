"""Autoencoders for flat 28 x 28 images, and their objectives.

Images are (batch, 784) floats, `signed` in [-1, 1] or `unit` in [0, 1]. Every model answers
    encode(x) -> code (batch, code_size)        decode(code) -> images (batch, 784)
    forward(x) -> (reconstruction, code)        loss(x) -> (scalar, parts to log)
and names the range of pixels it takes (`input_range`) and gives (`output_range`). The training loop calls
`on_epoch` before an epoch and `after_step` after each update; both do nothing unless a model needs them.
This module imports torch and nothing of ours.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

Parts = dict[str, Tensor]

_OUTPUTS = {"tanh": (nn.Tanh, "signed"), "sigmoid": (nn.Sigmoid, "unit")}


def to_range(x: Tensor, source: str, target: str) -> Tensor:
    """Pixels in the range `source` expressed in the range `target` (`signed` or `unit`)."""
    if source == target:
        return x
    return x.add(1).div(2) if target == "unit" else x.mul(2).sub(1)


class Autoencoder(nn.Module):
    """What the training loop, the metrics and the figures may ask of a model."""

    input_range = "unit"
    output_range = "unit"

    def encode(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, code: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (batch, 784) and code (batch, code_size) of images x (batch, 784)."""
        code = self.encode(x)
        return self.decode(code), code

    def loss(self, x: Tensor) -> tuple[Tensor, Parts]:
        """The scalar to minimise over the images x, and its parts, detached, by the name they are logged under."""
        raise NotImplementedError

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Called before epoch `epoch` (from 0) of `epochs`."""

    def after_step(self) -> None:
        """Called after every update of the weights."""


class SymmetricAutoencoder(Autoencoder):
    """Fully connected autoencoder whose decoder mirrors its encoder (Hinton & Salakhutdinov 2006).

    `layer_sizes` runs from the pixels to the code, such as [784, 2500, 154]; fewer than two entries, or one
    below 1, is a ValueError. ReLU follows every layer of the encoder, the one into the code included, and every
    layer of the decoder but the last, which ends in Tanh and so gives signed pixels. The loss is the squared
    error, averaged over pixels and images.
    """

    def __init__(self, layer_sizes: Sequence[int]) -> None:
        super().__init__()
        if len(layer_sizes) < 2 or min(layer_sizes) < 1:
            raise ValueError(f"layer_sizes needs at least two sizes of at least 1, got {list(layer_sizes)}")
        output_layer, self.output_range = _OUTPUTS["tanh"]
        self.input_range = self.output_range
        self.encoder = nn.Sequential(*_layers(layer_sizes), nn.ReLU())
        self.decoder = nn.Sequential(*_layers(layer_sizes[::-1]), output_layer())

    def encode(self, x: Tensor) -> Tensor:
        code: Tensor = self.encoder(x)
        return code

    def decode(self, code: Tensor) -> Tensor:
        images: Tensor = self.decoder(code)
        return images

    def loss(self, x: Tensor) -> tuple[Tensor, Parts]:
        return F.mse_loss(self.decode(self.encode(x)), x), {}


def _layers(sizes: Sequence[int]) -> list[nn.Module]:
    """Linear layers through `sizes` with a ReLU between each two."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return layers[:-1]
