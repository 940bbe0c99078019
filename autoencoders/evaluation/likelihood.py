"""The likelihood of images under a variational autoencoder: ELBO and importance-weighted estimate, in nats per image.

    log p(x) >= E log 1/K sum_k w_k,    w_k = p(x | z_k) p(z_k) / q(z_k | x),    z_k ~ q(z | x)

(Burda, Grosse & Salakhutdinov 2016, "Importance Weighted Autoencoders"). The bound closes as K grows, so the negative
log-likelihood estimated here is, on average, never too low.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ae_models import softplus
from autoencoders.data.binary import static_draw
from autoencoders.evaluation.metrics import Numbers, to_pixels
from autoencoders.evaluation.scores import Scores
from autoencoders.runtime.cli import is_verbose
from autoencoders.runtime.device import seed_for
from autoencoders.vae import kl_to_standard_normal

# log p(x | z), (samples, batch), of codes z (samples, batch, code_size) and images x (batch, pixels)
LogLikelihood = Callable[[Tensor, Tensor], Tensor]
_CHUNK = 32  # images whose noise has a seed of its own
_GROUPS = 10  # of the samples of an image
_PIXELS = {
    "none": "grey: levels as they are, which have no likelihood of their own: cross-entropy",
    "static": "static: one fixed draw of binary pixels, ours",
    "published": "static: the pixels of binarized-mnist",
    "dynamic": "dynamic: binary pixels drawn by seed {seed}",
}


def bernoulli(model: Any) -> LogLikelihood:
    """log p(x | z) = sum x log y + (1 - x) log(1 - y) of pixels x in [0, 1] and decoded probabilities y.

    With logits l = W h + b it is x . l - sum softplus(l), and x . l = (x W) . h + x . b passes over the pixels once.
    """
    *hidden, last, _sigmoid = model.decoder
    body = nn.Sequential(*hidden)

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        h = body(z)
        return (h * (x @ last.weight)).sum(dim=-1) + x @ last.bias - softplus(last(h)).sum(dim=-1)

    return log_likelihood


def importance_weighted(
    x: Tensor, mean: Tensor, logvar: Tensor, log_likelihood: LogLikelihood, samples: int, seed: int,
    decoded: int | None = None,
) -> Scores:  # fmt: skip
    """For images x (n, pixels) and q(z | x) = N(mean, exp(logvar)), each (n, code_size), estimates for each image:
    `log_px` of log p(x), `log_px_z` of E_q log p(x | z), and `effective` samples, (sum w)^2 / sum w^2; by ten groups of
    the samples, the `variance` of log_px over draws (nan for one sample), and `tenth`, the mean of log_px of one group.

    The noise of a chunk of 32 images depends on the seed and its number alone. `decoded` codes are decoded at a time.
    """
    decoded = decoded or (1024 if x.device.type == "cpu" else 65536)  # on a CPU the logits stay in the cache
    terms = torch.zeros(5, len(x), dtype=torch.double)
    starts = range(0, len(x), _CHUNK)
    hidden = None if is_verbose() else True  # None: only on a terminal
    for start in tqdm(starts, unit=" images", unit_scale=_CHUNK, leave=False, disable=hidden):
        torch.manual_seed(seed_for(seed, 5, start // _CHUNK))
        rows = slice(start, start + _CHUNK)
        terms[:, rows] = _estimates(x[rows], mean[rows], logvar[rows], log_likelihood, samples, decoded)
    return dict(zip(("log_px", "log_px_z", "effective", "variance", "tenth"), terms))


def _estimates(
    x: Tensor, mean: Tensor, logvar: Tensor, log_likelihood: LogLikelihood, samples: int, decoded: int
) -> Tensor:
    """The five terms of `importance_weighted`, (5, n)."""
    log_w, log_px_z = [], torch.zeros(len(x), dtype=torch.double)
    at_once = max(decoded // len(x), 1)
    for first in range(0, samples, at_once):
        noise = torch.randn(min(at_once, samples - first), *mean.shape, device=x.device)
        z = mean + noise * torch.exp(0.5 * logvar)
        log_px_each = log_likelihood(z, x)
        log_prior_to_posterior = 0.5 * (noise.square() + logvar - z.square()).sum(dim=-1)
        log_w.append((log_px_each + log_prior_to_posterior).cpu().double())
        log_px_z += log_px_each.cpu().double().sum(dim=0)
    weights = torch.cat(log_w)  # (samples, n)
    log_px, log_sum_of_squares = _log_mean(weights), (2 * weights).logsumexp(dim=0)
    groups = weights.tensor_split(min(_GROUPS, samples))
    tenth = torch.stack([_log_mean(group) for group in groups]).mean(dim=0)
    effective = (2 * (log_px + math.log(samples)) - log_sum_of_squares).exp()
    return torch.stack((log_px, log_px_z / samples, effective, _jackknife_variance(groups), tenth))


def _jackknife_variance(groups: tuple[Tensor, ...]) -> Tensor:
    """The variance over draws of the log mean of all weights, of groups of log w (k, n): (n,); nan for one group.

    Every group in turn is left out (Efron & Stein 1981, "The jackknife estimate of variance").
    """
    if len(groups) == 1:
        return torch.full_like(groups[0][0], torch.nan)
    others = [_log_mean(torch.cat(groups[:g] + groups[g + 1 :])) for g in range(len(groups))]
    return (len(groups) - 1) * torch.stack(others).var(dim=0, correction=0)


def _log_mean(log_w: Tensor) -> Tensor:
    """log 1/K sum_k w_k of log w (K, n): (n,)."""
    return log_w.logsumexp(dim=0) - math.log(len(log_w))


def binarized(images: Tensor, binarize: str, seed: int) -> Tensor:
    """uint8 test images as unit pixels: grey (`none`), or 0 or 1 with the grey level as probability (Salakhutdinov &
    Murray 2008): always the same draw (`static`) or a draw of the seed (`dynamic`). `published` images are binary.
    """
    if binarize == "static":
        images = torch.tensor(static_draw(images.cpu().numpy(), "test"), device=images.device)
    x = to_pixels(images, "unit")
    if binarize != "dynamic":
        return x
    generator = torch.Generator().manual_seed(seed_for(seed, 4))
    return torch.bernoulli(x.cpu(), generator=generator).to(x.device)


def entropy_floor(x: Tensor) -> float:
    """The mean over images of sum H(x), in nats: the least cross-entropy that a decoder can reach on grey pixels x."""
    return float(-(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum(dim=1).cpu().double().mean())


@torch.no_grad()
def likelihood(
    model: Any, images: Tensor, samples: int, binarize: str, seed: int, decoded: int | None = None,
) -> Numbers:  # fmt: skip
    """`elbo`, `kl_loss`, `nll` and more of uint8 images (n, 784), in nats per image, with the `protocol`.

    `decoded`: see `importance_weighted`.
    `nll_standard_error` is over images (None for one), `nll_monte_carlo_error` over draws of the samples (None for one
    sample). `nll_fall_from_tenth` is how much lower the bound is than from a tenth of the samples (None for fewer than
    ten): where it is not small, more samples would lower it further. `active_units` are the dimensions of the code
    whose mean varies by more than 0.01 over the images (Burda et al.).
    """
    x = binarized(images, binarize, seed)
    mean, logvar = model.posterior(x)
    terms = importance_weighted(x, mean, logvar, bernoulli(model), samples, seed, decoded)
    log_px, log_px_z, effective, over_draws, tenth = terms.values()
    kl = kl_to_standard_normal(mean, logvar).cpu().double()
    variance = mean.var(dim=0, correction=min(len(x) - 1, 1))  # 0 for one image
    numbers = {
        "protocol": f"{_PIXELS[binarize].format(seed=seed)}; {samples:,} importance samples, {len(x):,} images",
        "binarize": binarize, "importance_samples": samples, "seed": seed, "images": len(x),
        "elbo": (log_px_z - kl).mean().item(), "kl_loss": kl.mean().item(), "nll": -log_px.mean().item(),
        "nll_standard_error": (log_px.std() / len(x) ** 0.5).item() if len(x) > 1 else None,
        "nll_monte_carlo_error": (over_draws.sum().sqrt() / len(x)).item() if samples > 1 else None,
        "nll_fall_from_tenth": (log_px - tenth).mean().item() if samples >= _GROUPS else None,
        "effective_samples": effective.mean().item(),
        "active_units": int((variance > 0.01).sum()), "code_size": mean.shape[1],
    }  # fmt: skip
    return numbers | ({"entropy_floor": entropy_floor(x)} if binarize == "none" else {})
