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

_ACTIVATIONS: dict[str, type[nn.Module]]
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "leaky-relu": nn.LeakyReLU}
_OUTPUTS: dict[str, tuple[type[nn.Module], str]] = {"tanh": (nn.Tanh, "signed"), "sigmoid": (nn.Sigmoid, "unit")}


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

    def on_start(self, mean_image: Callable[[], Tensor]) -> None:
        """Called before the first step, with a function that gives the mean training image (784,) in [0, 1]."""

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Called before epoch `epoch` (from 0) of `epochs`."""

    def after_step(self, parts: Parts) -> Sequence[int]:
        """Called after every update of the weights, with the parts of the whole batch's loss; returns the autoencoders
        of an ensemble whose weights are new, each one slice of every parameter."""
        return ()

    def check_state(self) -> None:
        """Raise ValueError when the buffers, restored from a file, hold what training could not have left there."""


class LayeredAutoencoder(Autoencoder):
    """An encoder and a decoder, both `nn.Sequential`, and the objective they are trained with.

    output        last layer of the decoder: `tanh` (signed pixels) or `sigmoid` (unit pixels)
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

    def activations(self, x: Tensor) -> list[Tensor]:
        hidden: list[Tensor] = []
        functions = [part for part in self.encoder.modules() if isinstance(part, tuple(_ACTIVATIONS.values()))]
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
        encoder, decoder = (_layers(sizes, activation) for sizes in (layer_sizes, layer_sizes[::-1]))
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

    def __init__(self, code_size: int = 64, image_size: int = 28, **objective: Any) -> None:
        if image_size != 28:
            raise ValueError(f"the convolutions take 28 x 28 images, not {image_size}; use another recipe")
        halve: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1}
        encoder = [
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 16, **halve), nn.ReLU(),
            nn.Conv2d(16, 32, **halve), nn.ReLU(),
            nn.Conv2d(32, code_size, kernel_size=7), nn.Flatten(),
        ]  # fmt: skip
        decoder = [
            nn.Unflatten(1, (code_size, 1, 1)),
            nn.ConvTranspose2d(code_size, 32, kernel_size=7), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, **halve, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(16, 1, **halve, output_padding=1), nn.Flatten(),
        ]  # fmt: skip
        super().__init__(encoder, decoder, "sigmoid", **objective)


class VAE(LayeredAutoencoder):
    """Variational autoencoder with a Gaussian code (Kingma & Welling 2014).

    `layer_sizes` and `activation` as in `SymmetricAutoencoder`; the encoder ends in two heads, the code's mean and
    log-variance, and `encode` gives the mean. The loss, in nats per image, is -log p(x | z) plus beta times
    KL(N(mean, var) || N(0, I)). -log p(x | z) is the cross-entropy of Bernoulli pixels (`loss="bce"`) or, up to a
    constant, the squared error of Gaussian pixels of variance 1/2 (`mse`), summed over unit pixels. beta is `kl_weight`
    (Higgins et al. 2017), with `kl_anneal="linear"` times epoch / epochs.

    binarize            `dynamic`: images are binary, drawn anew at every step with the grey levels as probabilities
                        (Salakhutdinov & Murray 2008)
    init                `mean-image`: the weights of Glorot & Bengio 2010, and a decoder that starts at the mean image
    importance_samples  K > 1: the loss is minus the bound log 1/K sum_k p(x, z_k) / q(z_k | x) (Burda et al. 2016), and
                        beta weighs log q(z | x) - log p(z). Its gradient for the encoder is the doubly reparameterised
                        one (Tucker et al. 2019), whose noise does not grow with K
    """

    generative = True

    def __init__(
        self, layer_sizes: Sequence[int], activation: str = "relu", loss: str = "bce", kl_weight: float = 1.0,
        kl_anneal: str = "linear", binarize: str = "none", importance_samples: int = 1, init: str = "default",
    ) -> None:  # fmt: skip
        *hidden, code_size = layer_sizes
        encoder = [*_layers(hidden, activation), _ACTIVATIONS[activation]()] if len(hidden) > 1 else []
        super().__init__(encoder, _layers(layer_sizes[::-1], activation), "sigmoid", loss=loss)
        self.mean, self.logvar = (nn.Linear(hidden[-1], code_size) for _ in range(2))
        self.kl_weight, self.kl_anneal, self.beta = kl_weight, kl_anneal, kl_weight
        self.binarize, self.importance_samples, self.init = binarize, importance_samples, init
        self.loss_unit = "nats per image"

    def on_start(self, mean_image: Callable[[], Tensor]) -> None:
        if self.init == "mean-image":
            *_, output = (part for part in self.decoder if isinstance(part, nn.Linear))
            for layer in (part for part in self.modules() if isinstance(part, nn.Linear)):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            with torch.no_grad():
                output.bias.copy_(mean_image().clamp(1e-3, 1 - 1e-3).logit())

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.beta = self.kl_weight * (epoch / epochs if self.kl_anneal == "linear" else 1.0)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (batch, code_size), of q(code | x)."""
        hidden = self.encoder(x)
        return self.mean(hidden), self.logvar(hidden)

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def loss(self, x: Tensor) -> tuple[Tensor, Parts]:
        if self.binarize == "dynamic":
            x = (self.rand_like(x) < x).to(x.dtype)
        mean, logvar = self.posterior(x)
        if self.importance_samples > 1:
            return self._importance_weighted_loss(x, mean, logvar)
        code = mean + self.randn_like(mean) * torch.exp(0.5 * logvar)  # reparameterised: gradients pass through
        recon_loss = self.minus_log_likelihood(code, x).mean()
        kl_loss = kl_to_standard_normal(mean.to(x.dtype), logvar.to(x.dtype)).mean()
        parts = {"recon_loss": recon_loss.detach(), "kl_loss": kl_loss.detach()}
        return recon_loss + self.beta * kl_loss if self.beta else recon_loss, parts  # 0 times an infinite KL is nan

    def minus_log_likelihood(self, code: Tensor, x: Tensor) -> Tensor:
        """-log p(x | code), (...), of codes (..., code_size) and images (..., 784); for `mse` up to a constant."""
        if self.loss_name == "bce":
            return self.cross_entropy(code, x)
        return (self.decode(code).to(x.dtype) - x).square().sum(dim=-1)

    def _importance_weighted_loss(self, x: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Parts]:
        samples = self.importance_samples
        noise = self.randn_like(mean[:, None].expand(-1, samples, -1))
        code = mean[:, None] + noise * torch.exp(0.5 * logvar)[:, None]
        recon_loss = self.minus_log_likelihood(code, x[:, None].expand(-1, samples, -1))
        # log q of a given code: the gradient through its parameters has mean 0, and is left out.
        mean, logvar = mean.detach()[:, None], logvar.detach()[:, None]
        log_q_to_prior = 0.5 * (code.square() - logvar - (code - mean).square() * torch.exp(-logvar)).sum(dim=-1)
        log_w = -recon_loss - self.beta * log_q_to_prior.to(x.dtype) if self.beta else -recon_loss
        weights = log_w.detach().softmax(dim=1)
        if code.requires_grad:
            scale = (1 - self.beta + self.beta * weights)[..., None]
            code.register_hook(lambda gradient: gradient * scale.to(gradient.dtype))
        bound = log_w.detach().logsumexp(dim=1) - math.log(samples)
        surrogate = (weights * log_w).sum(dim=1)  # its gradient is that of the bound
        parts = {"recon_loss": recon_loss.detach().mean(), "kl_loss": log_q_to_prior.detach().mean()}
        return -(bound + surrogate - surrogate.detach()).mean(), parts

    def sample(self, count: int, temperature: float = 1.0) -> Tensor:
        codes = torch.randn(count, self.mean.out_features, device=self.mean.weight.device)
        return self.decode(temperature * codes)


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) in nats, (batch,), of means and log-variances (batch, code_size)."""
    return -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(dim=1)


def _layers(sizes: Sequence[int], activation: str = "relu") -> list[nn.Module]:
    """Linear layers through `sizes` with an activation between any two."""
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"layer sizes: expected at least two of at least 1, got {list(sizes)}")
    layers: list[nn.Module] = []
    for width, next_width in pairwise(sizes):
        layers += [nn.Linear(width, next_width), _ACTIVATIONS[activation]()]
    return layers[:-1]
