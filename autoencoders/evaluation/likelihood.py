"""The likelihood of images under a variational autoencoder: ELBO and importance-weighted estimate, in nats per image.

    log p(x) >= E log 1/K sum_k w_k,    w_k = p(x | z_k) p(z_k) / q(z_k | x),    z_k ~ q(z | x)

(Burda, Grosse & Salakhutdinov 2016, "Importance Weighted Autoencoders"). The bound closes as K grows, so the negative
log-likelihood estimated here is, on average, never too low.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ae_models import kl_to_standard_normal
from autoencoders.evaluation.metrics import Numbers, to_pixels
from autoencoders.evaluation.scores import Scores
from autoencoders.runtime.cli import is_verbose
from autoencoders.runtime.device import seed_for

# log p(x | z), (samples, batch), of codes z (samples, batch, code_size) and images x (batch, pixels)
LogLikelihood = Callable[[Tensor, Tensor], Tensor]
_CHUNK = 32  # images whose noise has a seed of its own
_PIXELS = {
    "none": "grey levels as they are, which have no likelihood of their own: cross-entropy",
    "static": "one fixed draw of binary pixels",
    "dynamic": "binary pixels drawn by seed {seed}",
}


def bernoulli(model: Any) -> LogLikelihood:
    """log p(x | z) = sum x log y + (1 - x) log(1 - y) of pixels x in [0, 1] and decoded probabilities y.

    With logits l = W h + b it is x . l - sum softplus(l), and x . l = (x W) . h + x . b passes over the pixels once.
    """
    *hidden, last, _sigmoid = model.decoder
    body = nn.Sequential(*hidden)

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        h = body(z)
        return (h * (x @ last.weight)).sum(dim=-1) + x @ last.bias - F.softplus(last(h)).sum(dim=-1)

    return log_likelihood


def importance_weighted(
    x: Tensor, mean: Tensor, logvar: Tensor, log_likelihood: LogLikelihood, samples: int, seed: int,
    part: int = 0, parts: int = 1, decoded: int | None = None,
) -> Scores:  # fmt: skip
    """For images x (n, pixels) and q(z | x) = N(mean, exp(logvar)), each (n, code_size), estimates for each image:
    `log_px` of log p(x), `log_px_z` of E_q log p(x | z), and `effective` samples, (sum w)^2 / sum w^2.

    Every `parts`-th chunk of 32 images from chunk `part` on is computed, the others are 0: the parts add up to the
    whole, since the noise of a chunk depends on the seed and its number alone. `decoded` codes are decoded at a time.
    """
    decoded = decoded or (1024 if x.device.type == "cpu" else 65536)  # on a CPU the logits stay in the cache
    terms = torch.zeros(3, len(x), dtype=torch.double)
    starts = range(part * _CHUNK, len(x), parts * _CHUNK)
    hidden = None if is_verbose() else True  # None: only on a terminal
    for start in tqdm(starts, unit=" images", unit_scale=_CHUNK, leave=False, disable=hidden):
        torch.manual_seed(seed_for(seed, 5, start // _CHUNK))
        rows = slice(start, start + _CHUNK)
        terms[:, rows] = _estimates(x[rows], mean[rows], logvar[rows], log_likelihood, samples, decoded)
    return dict(zip(("log_px", "log_px_z", "effective"), terms))


def _estimates(
    x: Tensor, mean: Tensor, logvar: Tensor, log_likelihood: LogLikelihood, samples: int, decoded: int
) -> Tensor:
    """The three terms of `importance_weighted`, (3, n)."""
    log_sum = log_sum_of_squares = torch.full((len(x),), -torch.inf, dtype=torch.double)
    log_px_z = torch.zeros(len(x), dtype=torch.double)
    at_once = max(decoded // len(x), 1)
    for first in range(0, samples, at_once):
        noise = torch.randn(min(at_once, samples - first), *mean.shape, device=x.device)
        z = mean + noise * torch.exp(0.5 * logvar)
        log_px_each = log_likelihood(z, x)
        log_prior_to_posterior = 0.5 * (noise.square() + logvar - z.square()).sum(dim=-1)
        log_w = (log_px_each + log_prior_to_posterior).cpu().double()
        log_sum = torch.logaddexp(log_sum, log_w.logsumexp(dim=0))
        log_sum_of_squares = torch.logaddexp(log_sum_of_squares, (2 * log_w).logsumexp(dim=0))
        log_px_z += log_px_each.cpu().double().sum(dim=0)
    log_px = log_sum - torch.tensor(samples).log()
    return torch.stack((log_px, log_px_z / samples, (2 * log_sum - log_sum_of_squares).exp()))


def binarized(x: Tensor, binarize: str, seed: int) -> Tensor:
    """Unit pixels as they are (`none`), or drawn as 0 or 1 with the grey level as probability (Salakhutdinov & Murray
    2008): always the same draw (`static`; ours, not the published file) or a draw of the seed (`dynamic`).
    """
    if binarize == "none":
        return x
    generator = torch.Generator().manual_seed(seed_for(0, 3) if binarize == "static" else seed_for(seed, 4))
    return torch.bernoulli(x.cpu(), generator=generator).to(x.device)


def entropy_floor(x: Tensor) -> float:
    """The mean over images of sum H(x), in nats: the least cross-entropy that a decoder can reach on grey pixels x."""
    return float(-(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum(dim=1).cpu().double().mean())


@torch.no_grad()
def likelihood(
    model: Any, images: Tensor, samples: int, binarize: str, seed: int, part: int = 0, parts: int = 1,
    add_up: Callable[[Scores], Scores] = lambda terms: terms, decoded: int | None = None,
) -> Numbers:  # fmt: skip
    """`elbo`, `kl_loss`, `nll` and more of uint8 images (n, 784), in nats per image, with the `protocol`.

    `part`, `parts`, `decoded`: see `importance_weighted`; `add_up` adds the terms of all parts.
    `nll_standard_error` is over images (None for one), `nll_monte_carlo_error` over draws of the samples (the delta
    method: the variance of log 1/K sum w is 1 / effective - 1 / K). `active_units` are the dimensions of the code whose
    mean varies by more than 0.01 over the images (Burda et al.).
    """
    x = binarized(to_pixels(images, "unit"), binarize, seed)
    mean, logvar = model.posterior(x)
    terms = importance_weighted(x, mean, logvar, bernoulli(model), samples, seed, part, parts, decoded)
    log_px, log_px_z, effective = add_up(terms).values()
    kl = kl_to_standard_normal(mean, logvar).cpu().double()
    variance = mean.var(dim=0, correction=min(len(x) - 1, 1))  # 0 for one image
    numbers = {
        "protocol": f"{_PIXELS[binarize].format(seed=seed)}; {samples:,} importance samples, {len(x):,} images",
        "binarize": binarize, "importance_samples": samples, "seed": seed, "images": len(x),
        "elbo": (log_px_z - kl).mean().item(), "kl_loss": kl.mean().item(), "nll": -log_px.mean().item(),
        "nll_standard_error": (log_px.std() / len(x) ** 0.5).item() if len(x) > 1 else None,
        "nll_monte_carlo_error": ((1 / effective - 1 / samples).clamp(min=0).sum().sqrt() / len(x)).item(),
        "effective_samples": effective.mean().item(),
        "active_units": int((variance > 0.01).sum()), "code_size": mean.shape[1],
    }  # fmt: skip
    return numbers | ({"entropy_floor": entropy_floor(x)} if binarize == "none" else {})
