"""Dictionaries of features: do two of them hold the same features, and what is each feature worth?

A dictionary is (F, P): F features of P pixels. Two are matched one to one so that the sum of the cosines between the
matched rows is largest (Hungarian method). Signs count: a feature and its negative do not match.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ae_models import Autoencoder
from autoencoders.data.images import Images
from autoencoders.evaluation.metrics import Numbers, mmcs, to_pixels
from autoencoders.evaluation.pca import moments
from autoencoders.recipes import Recipe
from autoencoders.runtime.errors import UsageError

SHARED = 0.7  # the cosine above which a matched feature counts as the same (Paulo & Belrose 2025)
_BATCH = 500  # images at a time


def of_model(model: Autoencoder) -> list[Tensor]:
    """The dictionary (F, P) of each autoencoder of a model; UsageError for a model without one."""
    found = model.dictionaries()
    if found is None:
        raise UsageError("its decoder does not end in a fully connected layer, whose rows would be its features")
    return list(found)


def unit_rows(dictionary: Tensor) -> Tensor:
    """The dictionary (F, P) with rows of length 1, in float32 on the CPU; a row of zeros stays one."""
    return F.normalize(dictionary.detach().float().cpu(), dim=1)


def match(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best one-to-one matching of the rows of two dictionaries: rows of a, rows of b, cosines, (min(F_a, F_b),)."""
    cosines = (unit_rows(a) @ unit_rows(b).T).numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return rows, columns, cosines[rows, columns]


def compare(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Numbers, np.ndarray]:
    """How far the two dictionaries (F_a, P) and (F_b, P) of each pair agree, as a mean over the pairs; and the cosines
    of all matched rows.

    pw_mcc  mean cosine of the matched rows (Song et al. 2025, https://arxiv.org/abs/2505.20254)
    shared  the share of matched rows whose cosine is above 0.7 (Paulo & Belrose 2025, https://arxiv.org/abs/2501.16615;
            theirs is the mean of the encoder's and the decoder's cosine, which with tied weights are the same)
    mmcs    mean over the rows of the largest cosine with any row of the other, averaged over both directions (Sharkey
            et al. 2022); many rows may choose the same one, so it is high by chance
    """
    cosines = [match(a, b)[2] for a, b in pairs]
    means = np.array([each.mean() for each in cosines])
    return {
        "pw_mcc": float(means.mean()), "pw_mcc_spread": float(means.std(ddof=1)) if len(means) > 1 else None,
        "shared": float(np.mean([(each > SHARED).mean() for each in cosines])),
        "mmcs": float(np.mean([mmcs(pair).item() for pair in pairs])), "pairs": len(pairs),
    }, np.concatenate(cosines)  # fmt: skip


def stability(dictionaries: Sequence[Tensor]) -> list[np.ndarray]:
    """Of every feature (F,) of each of n >= 2 dictionaries the cosine with its match, averaged over the other n - 1; a
    feature without a match in a smaller dictionary counts 0 there."""
    totals = [np.zeros(len(dictionary)) for dictionary in dictionaries]
    for i, j in combinations(range(len(dictionaries)), 2):
        rows, columns, cosines = match(dictionaries[i], dictionaries[j])
        totals[i][rows] += cosines
        totals[j][columns] += cosines
    return [total / (len(dictionaries) - 1) for total in totals]


def random(images: Images, features: int, seed: int) -> Tensor:
    """Rows (features, P) drawn from N(0, C), with the covariance C of images (N, P) uint8."""
    sums, products = moments(images)
    mean = sums / len(images)
    values, vectors = np.linalg.eigh(products / len(images) - np.outer(mean, mean))
    factor = torch.from_numpy(vectors * np.sqrt(values.clip(min=0))).float()
    noise = torch.randn(features, len(values), generator=torch.Generator().manual_seed(seed))
    return noise @ factor.T


def untrained(recipe: Recipe, seed: int) -> Tensor:
    """The dictionary (F, P) of a recipe's model, before training, with the weights of this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return of_model(recipe.build())[0]


@torch.no_grad()
def feature_statistics(model: Autoencoder, images: Tensor, labels: np.ndarray) -> list[dict[str, np.ndarray]]:
    """What each feature (F,) of each autoencoder does on images (n, P) uint8 with labels (n,); of a model with
    `selects`, whose reconstruction is a sum of features.

    firing_rate  the share of the images that it is active for
    explained    by how much the squared error grows without it, as a share of the variance of the images
    selectivity  (m - m') / (m + m') of the largest of its mean activations over the images of one label, m, and the
                 mean of those over the other labels, m' (Morcos et al. 2018, https://arxiv.org/abs/1803.06959)
    """
    known, index = np.unique(labels, return_inverse=True)
    one_hot = torch.eye(len(known), dtype=torch.double)[torch.from_numpy(index)]
    rows = torch.stack(of_model(model)).detach()  # (S, F, P)
    fired, lost, by_label = (torch.zeros((), dtype=torch.double) for _ in range(3))
    for start in range(0, len(images), _BATCH):
        x = to_pixels(images[start : start + _BATCH], model.input_range)
        y, code = (part.reshape(model.members, len(x), -1) for part in model(x))  # (S, b, P), (S, b, F)
        x, y = model.normalized(x), model.normalized(y)
        # |x - y + a w|^2 - |x - y|^2 = 2 a w . (x - y) + a^2 |w|^2 for a row w
        removed = (code * (2 * (x - y) @ rows.mT + code * rows.square().sum(-1)[:, None])).sum(1)
        fired, lost = fired + (code != 0).sum(1).cpu(), lost + removed.cpu()
        activation = code.clamp(min=0).cpu().double()
        by_label = by_label + one_hot[start : start + _BATCH].T @ activation  # (S, labels, F)
    variance = model.normalized(to_pixels(images, "unit")).var(dim=0, correction=0).double().sum().cpu()
    means = (by_label / one_hot.sum(0)[:, None]).sort(dim=1).values
    highest, others = means[:, -1], means[:, :-1].mean(1)
    selectivity = ((highest - others) / (highest + others)).nan_to_num()  # a silent feature prefers no label
    numbers = {
        "firing_rate": fired / len(images),
        "explained": lost / len(images) / variance,
        "selectivity": selectivity,
    }
    return [{name: value[s].numpy() for name, value in numbers.items()} for s in range(model.members)]
