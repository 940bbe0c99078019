"""How likely a variational autoencoder finds images: ELBO and importance-weighted log-likelihood, in nats per image.

    log p(x) >= E log 1/K sum_k w_k,    w_k = p(x | z_k) p(z_k) / q(z_k | x),    z_k ~ q(z | x)

(Burda, Grosse & Salakhutdinov 2016, "Importance Weighted Autoencoders"): a bound that closes as K grows, so that the
negative log-likelihood estimated here is, on average, never too low.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_models import VAE, kl_to_standard_normal
from autoencoders.evaluation.metrics import to_pixels
from autoencoders.runtime import processes
from autoencoders.runtime.device import seed_for

# log p(x | code), (samples, batch), of codes (samples, batch, code_size) and images (batch, pixels)
LogLikelihood = Callable[[Tensor, Tensor], Tensor]
BINARIZE = ("none", "static", "dynamic")
_ROWS = {"cpu": 1024}  # codes decoded at a time: their logits stay in a core's cache
_ROWS_ELSEWHERE = 65536
_ACTIVE = 0.01  # the variance of a code's mean from which Burda et al. call it active


def bernoulli(model: VAE) -> LogLikelihood:
    """log p(x | code) = sum x log y + (1 - x) log(1 - y) of pixels x in [0, 1] and decoded probabilities y.

    With logits l = W h + b that is x . l - sum softplus(l), and x . l = (x W) . h + x . b, which does not go through
    the pixels of every code again.
    """
    *hidden, last, _ = model.decoder  # the last of all is the sigmoid
    body = nn.Sequential(*hidden)
    assert isinstance(last, nn.Linear)

    def log_likelihood(code: Tensor, x: Tensor) -> Tensor:
        h = body(code)
        match: Tensor = (h * (x @ last.weight)).sum(dim=-1) + x @ last.bias
        return match - F.softplus(last(h)).sum(dim=-1)

    return log_likelihood


@torch.no_grad()
def importance_weighted(
    x: Tensor, mean: Tensor, logvar: Tensor, log_likelihood: LogLikelihood, samples: int,
    show: Callable[[int], Any] = lambda images: None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of images x (n, pixels) and q(z | x) = N(mean, exp(logvar)), each (n, code_size), each answer (n,) in doubles:
    the estimate of log p(x), that of E_q log p(x | z), and the effective number of samples, (sum w)^2 / sum w^2.

    `show` is told how many images are done. Draws from torch's global random generator. Several processes share the
    images, and each draws the noise of all: it costs little beside what is done with it.
    """
    answers = []
    rows = _ROWS.get(x.device.type, _ROWS_ELSEWHERE)
    for number, (part, centre, spread) in enumerate(zip(x.split(32), mean.split(32), logvar.split(32))):
        mine = number % processes.size() == processes.rank()
        total = square = torch.full((len(part),), -torch.inf, dtype=torch.double)
        match = torch.zeros_like(total)
        for chunk in torch.empty(samples).split(max(rows // len(part), 1)):
            noise = torch.randn(len(chunk), *centre.shape, device=x.device)
            if not mine:
                continue
            code = centre + noise * torch.exp(0.5 * spread)
            given = log_likelihood(code, part)
            prior_to_posterior = 0.5 * (noise.square() + spread - code.square()).sum(dim=-1)
            weight = (given + prior_to_posterior).cpu().double()  # log w
            total = torch.logaddexp(total, weight.logsumexp(dim=0))
            square = torch.logaddexp(square, (2 * weight).logsumexp(dim=0))
            match += given.cpu().double().sum(dim=0)
        answer = torch.stack((total - torch.tensor(samples).log(), match / samples, (2 * total - square).exp()))
        answers.append(answer if mine else torch.zeros_like(answer))
        show(len(part))
    log_p, reconstruction, effective = processes.summing(*torch.cat(answers, dim=1))()
    return log_p, reconstruction, effective


def binarized(x: Tensor, binarize: str, seed: int) -> Tensor:
    """Unit pixels as they are (`none`), or drawn, each 1 with its grey level's probability (Salakhutdinov & Murray
    2008): always the same draw (`static`, ours, not the published file) or the seed's own (`dynamic`).
    """
    if binarize == "none":
        return x
    draw = torch.Generator().manual_seed(seed_for(*((0, 3) if binarize == "static" else (seed, 4))))
    return torch.bernoulli(x.cpu(), generator=draw).to(x.device)


def entropy_floor(x: Tensor) -> float:
    """The mean over images of sum H(x), in nats: no decoder's cross-entropy with grey pixels x is below it."""
    return float(-(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum(dim=1).cpu().double().mean())


@torch.no_grad()
def likelihood(
    model: VAE, images: Tensor, samples: int, binarize: str, seed: int, show: Callable[[int], Any] = lambda images: None
) -> dict[str, Any]:
    """`elbo`, `kl_loss`, `nll` and the rest, in nats per image, on uint8 images (n, 784), with the `protocol`.

    `nll_standard_error` is that of the mean over images (None of one), `nll_monte_carlo_error` what another draw of the
    samples would change (the delta method: the variance of log 1/K sum w is 1 / effective - 1 / K). `active_units`
    counts the dimensions of the code whose mean varies by more than 0.01 over the images.
    """
    x = binarized(to_pixels(images, "unit"), binarize, seed)
    parts = [model.posterior(part) for part in x.split(1000)]
    mean, logvar = (torch.cat(part) for part in zip(*parts))
    torch.manual_seed(seed_for(seed, 5))
    log_p, reconstruction, effective = importance_weighted(x, mean, logvar, bernoulli(model), samples, show)
    kl = kl_to_standard_normal(mean, logvar).cpu().double()
    varies = mean.var(dim=0, correction=min(len(x) - 1, 1))  # of one image: not at all
    pixels = {
        "none": "grey levels as they are, which have no likelihood of their own: cross-entropy",
        "static": "one fixed draw of binary pixels",
        "dynamic": f"binary pixels drawn by seed {seed}",
    }
    numbers = {
        "protocol": f"{pixels[binarize]}; {samples:,} importance samples, {len(x):,} images",
        "binarize": binarize, "importance_samples": samples, "seed": seed, "images": len(x),
        "elbo": (reconstruction - kl).mean().item(), "kl_loss": kl.mean().item(), "nll": -log_p.mean().item(),
        "nll_standard_error": (log_p.std() / len(x) ** 0.5).item() if len(x) > 1 else None,
        "nll_monte_carlo_error": ((1 / effective - 1 / samples).clamp(min=0).sum().sqrt() / len(x)).item(),
        "effective_samples": effective.mean().item(),
        "active_units": int((varies > _ACTIVE).sum()), "code_size": mean.shape[1],
    }  # fmt: skip
    return numbers | ({"entropy_floor": entropy_floor(x)} if binarize == "none" else {})
