"""Autoencoders for flat 28 x 28 images, and their objectives. This module imports torch and nothing of ours.

Images are (batch, 784) floats, `signed` in [-1, 1] or `unit` in [0, 1]. Every model answers
    encode(x) -> code (batch, code_size)        decode(code) -> images (batch, 784)
    forward(x) -> (reconstruction, code)        loss(x) -> (scalar, parts to log)
and names the range of pixels it takes (`input_range`) and gives (`output_range`).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = dict[str, Tensor]

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "leaky-relu": nn.LeakyReLU}
_OUTPUTS: dict[str, tuple[type[nn.Module], str]]
_OUTPUTS = {"tanh": (nn.Tanh, "signed"), "sigmoid": (nn.Sigmoid, "unit"), "linear": (nn.Identity, "unit")}


def to_range(x: Tensor, source: str, target: str) -> Tensor:
    """Pixels in the range `source` expressed in the range `target` (`signed` or `unit`)."""
    if source == target:
        return x
    return x.add(1).div(2) if target == "unit" else x.mul(2).sub(1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), up to the rounding of 1; on a CPU torch's own takes five times as long."""
    return torch.exp(-x.abs()).add_(1).log_().add_(x.clamp(min=0))


class CrossEntropy(torch.autograd.Function):
    """-sum x log y + (1 - x) log(1 - y) over the pixels, with y = sigmoid(logits): logits (..., 784) and unit pixels x
    -> (...). x gets no gradient. On a CPU it takes half the time of `F.binary_cross_entropy_with_logits`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        return softplus(logits).addcmul_(x, logits, value=-1).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, x = ctx.saved_tensors
        return logits.sigmoid().sub_(x).mul_(grads[0][..., None]), None


class Autoencoder(nn.Module):
    """What the trainer, the metrics and the figures may ask of a model.

    `members` is the number of autoencoders it holds: with more than one, codes and reconstructions get a leading
    dimension. A model that `selects` keeps the largest entries of its `dense_code` alone. A `generative` model also has
    `posterior(x)` and `sample(count)`. `noise_factor` is the standard deviation of the noise on training images.
    `epoch_metrics` names the values of `metrics.code_statistics` that are measured after every epoch.
    """

    members = 1
    selects = False
    generative = False
    input_range = "unit"
    output_range = "unit"
    noise_factor = 0.0
    epoch_metrics: tuple[str, ...] = ()
    loss_unit = "mean squared error"

    def randn_like(self, x: Tensor) -> Tensor:
        """N(0, I) of the shape of x; replaced while several processes share a batch."""
        return torch.randn_like(x)

    def rand_like(self, x: Tensor) -> Tensor:
        """U(0, 1) of the shape of x; replaced as `randn_like` is."""
        return torch.rand_like(x)

    def encode(self, x: Tensor) -> Tensor:
        """Codes (batch, code_size) of images (batch, 784)."""
        raise NotImplementedError

    def dense_code(self, x: Tensor) -> Tensor:
        """The activations before the selection, in the shape of `encode`, of a model with `selects`."""
        raise NotImplementedError

    def decode(self, code: Tensor) -> Tensor:
        """Images (batch, 784) in the output range, of codes (batch, code_size)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (batch, 784) and code (batch, code_size) of images (batch, 784)."""
        code = self.encode(x)
        return self.decode(code), code

    def dictionaries(self) -> Tensor | None:
        """Features (members, F, 784): the rows that the last layer adds up to an image, if it is fully connected."""
        return None

    def activations(self, x: Tensor) -> list[Tensor]:
        """The images x, the activations of the encoder's layers, and the code: (batch, n) each, of an ensemble those of
        its first autoencoder."""
        return [x, self.encode(x).reshape(self.members, len(x), -1)[0]]

    def loss(self, x: Tensor) -> tuple[Tensor, Parts]:
        """The scalar to minimise over the images x, and its detached parts by name, each a mean over the images.

        Parts of at most one dimension are logged; all of them reach `after_step`.
        """
        raise NotImplementedError

    def sample(self, count: int, temperature: float = 1.0) -> Tensor:
        """Images (count, 784) decoded from codes drawn from N(0, temperature^2 I), of a `generative` model."""
        raise NotImplementedError

    def corrupt(self, x: Tensor) -> Tensor:
        """Noisy copies of the images x, within the input range."""
        noisy = x + self.noise_factor * self.randn_like(x)
        return noisy.clamp_(-1 if self.input_range == "signed" else 0, 1)

    def on_start(self, moments: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Called before the first step, with a function that gives mean and standard deviation (784,) of the training
        images, pixels in [0, 1]."""

    def normalized(self, x: Tensor) -> Tensor:
        """Images as the features see them, such as without the mean."""
        return x

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Called before epoch `epoch` (from 0) of `epochs`."""

    def after_step(self, parts: Parts) -> Sequence[int]:
        """Called after every update of the weights, with the parts of the whole batch's loss; returns the autoencoders
        of an ensemble whose weights are new, each one slice of every parameter."""
        return ()


class LayeredAutoencoder(Autoencoder):
    """An encoder and a decoder, both `nn.Sequential`, and the objective they are trained with.

    output        last layer of the decoder: `tanh` (signed pixels), `sigmoid` (unit pixels) or `linear` (unit pixels)
    loss          `mse`: squared error averaged over pixels and images;
                  `bce`: cross-entropy against unit pixels, summed over pixels, averaged over images (nats)
    pixels        range of the images taken in; None is the range of the output
    shift         training images are moved by up to so many pixels in each direction, drawn for each image
    noise_factor  training images are corrupted to clamp(x + noise_factor * N(0, I)), and the loss compares with
                  the clean ones (Vincent et al. 2010); with `test_noise` test images are corrupted too
    """

    def __init__(
        self, encoder: Sequence[nn.Module], decoder: Sequence[nn.Module], output: str, loss: str = "mse",
        pixels: str | None = None, noise_factor: float = 0.0, test_noise: bool = False, shift: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if loss == "bce" and output != "sigmoid":
            raise ValueError(f"the loss bce needs an output layer sigmoid, not {output}; use --recipe simple")
        if test_noise and not noise_factor:
            raise ValueError("test_noise needs a noise_factor above 0")
        last_layer, self.output_range = _OUTPUTS[output]
        if loss == "bce":
            self.loss_unit = "nats per image"
        self.input_range = pixels or self.output_range
        self.noise_factor, self.test_noise, self.loss_name, self.shift = noise_factor, test_noise, loss, shift
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder, last_layer())

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, code: Tensor) -> Tensor:
        return self.decoder(code)

    def dictionaries(self) -> Tensor | None:
        last = self.decoder[-2]
        last = last.layers[-1] if isinstance(last, _WithLinearPath) else last
        return last.weight.T[None] if isinstance(last, nn.Linear) else None

    def activations(self, x: Tensor) -> list[Tensor]:
        hidden: list[Tensor] = []
        functions = [part for part in self.encoder.modules() if isinstance(part, tuple(ACTIVATIONS.values()))]
        hooks = [part.register_forward_hook(lambda *call: hidden.append(call[-1].flatten(1))) for part in functions]
        code = self.encode(x)
        for hook in hooks:
            hook.remove()
        return [x, *(layer for layer in hidden if layer.shape != code.shape or not torch.equal(layer, code)), code]

    def loss(self, x: Tensor) -> tuple[Tensor, Parts]:
        if self.shift and self.training:
            x = self.shifted(x)
        noisy = self.corrupt(x) if self.noise_factor and (self.training or self.test_noise) else x
        return self.reconstruction_loss(self.encode(noisy), x), {}

    def shifted(self, x: Tensor) -> Tensor:
        """The images x, each moved by -shift to shift pixels along both sides; what moves in is black."""
        side, black = math.isqrt(x.shape[1]), -1.0 if self.input_range == "signed" else 0.0
        padded = F.pad(x.view(-1, side, side), [self.shift] * 4, value=black)
        row, column = (self.rand_like(x[:, :2]) * (2 * self.shift + 1)).long().T
        windows = padded.unfold(1, side, 1).unfold(2, side, 1)
        return windows[torch.arange(len(x), device=x.device), row, column].flatten(1)

    def reconstruction_loss(self, code: Tensor, x: Tensor) -> Tensor:
        """The loss, `mse` or `bce`, between the images decoded from `code` and the images x."""
        target = to_range(x, self.input_range, self.output_range)
        if self.loss_name == "mse":
            return F.mse_loss(self.decode(code).to(target.dtype), target)
        return self.cross_entropy(code, target).sum() / len(x)

    def cross_entropy(self, code: Tensor, target: Tensor) -> Tensor:
        """-sum x log y + (1 - x) log(1 - y) over the pixels, (...), of codes (..., code_size) and images (..., 784)."""
        # From the logits: log(sigmoid(z)) loses all its digits for a z far from 0.
        return CrossEntropy.apply(self.decoder[:-1](code).to(target.dtype), target)


class SymmetricAutoencoder(LayeredAutoencoder):
    """Fully connected autoencoder whose decoder mirrors its encoder (Hinton & Salakhutdinov 2006).

    `layer_sizes` runs from the pixels to the code, such as [784, 2500, 154]; fewer than two entries, or one below 1, is
    a ValueError. `activation` (`relu`; `gelu`: Hendrycks & Gimpel 2016) follows every layer but the last of encoder and
    decoder, `code_activation` (`relu` or `none`) the code. With `linear_path` encoder and decoder each add one linear
    map to their layers (He et al. 2016). Further arguments: `LayeredAutoencoder`.
    """

    def __init__(
        self, layer_sizes: Sequence[int], activation: str = "relu", code_activation: str = "relu",
        linear_path: bool = False, output: str = "tanh", **objective: Any,
    ) -> None:  # fmt: skip
        encoder, decoder = (linear_layers(sizes, activation) for sizes in (layer_sizes, layer_sizes[::-1]))
        if linear_path:
            pixels, code_size = layer_sizes[0], layer_sizes[-1]
            encoder = [_WithLinearPath(encoder, pixels, code_size)]
            decoder = [_WithLinearPath(decoder, code_size, pixels)]
        encoder += [nn.ReLU()] if code_activation == "relu" else []
        super().__init__(encoder, decoder, output, **objective)


class _WithLinearPath(nn.Module):
    """layers(x) + linear(x)."""

    def __init__(self, layers: Sequence[nn.Module], inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers, self.linear = nn.Sequential(*layers), nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.linear(x)


class ConvAutoencoder(LayeredAutoencoder):
    """Convolutional autoencoder whose code is `code_size` channels at a single position (Masci et al. 2011).

    28 x 28 -> 14 x 14 -> 7 x 7 -> 1 x 1 by strided convolutions, back by transposed ones; no activation on the code.
    Further arguments: `LayeredAutoencoder`.
    """

    def __init__(self, code_size: int = 64, inputs: int = 784, **objective: Any) -> None:
        if inputs != 784:
            raise ValueError(f"the convolutions take 28 x 28 images, not {inputs:,} pixels; use another recipe")
        halve: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1}
        encoder = [
            _Images(),
            nn.Conv2d(1, 16, **halve), nn.ReLU(),
            nn.Conv2d(16, 32, **halve), nn.ReLU(),
            _WholeConv2d(32, code_size, kernel_size=7),
        ]  # fmt: skip
        decoder = [
            nn.Unflatten(1, (code_size, 1, 1)),
            _WholeConvTranspose2d(code_size, 32, kernel_size=7), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, **halve, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(16, 1, **halve, output_padding=1), nn.Flatten(),
        ]  # fmt: skip
        super().__init__(encoder, decoder, "sigmoid", **objective)


class _Images(nn.Module):
    """(batch, 784) -> (batch, 1, 28, 28) with the channels last in memory, where oneDNN's convolutions are faster."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (28, 28, 1)).permute(0, 3, 1, 2)


class _WholeConv2d(nn.Conv2d):
    """A convolution whose kernel covers the image: (batch, 32, 7, 7) -> (batch, code_size). As one matrix product it
    takes half of the time."""

    def forward(self, x: Tensor) -> Tensor:
        images, kernels = (t.permute(0, 2, 3, 1).flatten(1) for t in (x, self.weight))  # images as they lie in memory
        return F.linear(images, kernels, self.bias)


class _WholeConvTranspose2d(nn.ConvTranspose2d):
    """The transposed convolution of one position, as one product: (batch, code_size, 1, 1) -> (batch, 32, 7, 7)."""

    def forward(self, code: Tensor) -> Tensor:  # type: ignore[override]
        kernels = self.weight.permute(0, 2, 3, 1)
        images = (code.flatten(1) @ kernels.flatten(1)).view(-1, *kernels.shape[1:])
        return (images + self.get_parameter("bias")).permute(0, 3, 1, 2)


def linear_layers(sizes: Sequence[int], activation: str = "relu") -> list[nn.Module]:
    """Linear layers through `sizes` with an activation between any two."""
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"layer sizes: expected at least two of at least 1, got {list(sizes)}")
    layers: list[nn.Module] = []
    for width, next_width in pairwise(sizes):
        layers += [nn.Linear(width, next_width), ACTIVATIONS[activation]()]
    return layers[:-1]
