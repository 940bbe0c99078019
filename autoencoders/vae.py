"""Variational autoencoders: a Gaussian code, trained by the evidence lower bound or by the importance-weighted one."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ae_models import ACTIVATIONS, LayeredAutoencoder, Parts, linear_layers


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
        encoder = [*linear_layers(hidden, activation), ACTIVATIONS[activation]()] if len(hidden) > 1 else []
        super().__init__(encoder, linear_layers(layer_sizes[::-1], activation), "sigmoid", loss=loss)
        self.mean, self.logvar = (nn.Linear(hidden[-1], code_size) for _ in range(2))
        self.kl_weight, self.kl_anneal, self.beta = kl_weight, kl_anneal, kl_weight
        self.binarize, self.importance_samples, self.init = binarize, importance_samples, init
        self.loss_unit = "nats per image"

    def on_start(self, moments: Callable[[], tuple[Tensor, Tensor]]) -> None:
        if self.init == "mean-image":
            *_, output = (part for part in self.decoder if isinstance(part, nn.Linear))
            for layer in (part for part in self.modules() if isinstance(part, nn.Linear)):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            with torch.no_grad():
                output.bias.copy_(moments()[0].clamp(1e-3, 1 - 1e-3).logit())

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
