"""What a trained model's answers are worth, image by image; every table and figure is a summary of these scores.

Images x and their reconstructions y are (n, 784) in [0, 1]; they are compared in double precision, on the CPU.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoencoders.evaluation.metrics import pearson

Scores = dict[str, Tensor]  # of each image: (n,), in doubles
_WINDOW = 11  # pixels; less in images that are smaller
_EXACT = 1e-14  # a squared error that is single precision's rounding; it is 140 dB


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each image, (n,) (Wang, Bovik, Sheikh & Simoncelli 2004, as in the paper).

    The mean over the places (18 x 18 of 28 x 28) of an 11 x 11 Gaussian window of standard deviation 1.5 that lies
    inside of the image; K1 = 0.01, K2 = 0.03, for pixels in [0, 1].
    """
    side = math.isqrt(x.shape[1])
    width = min(_WINDOW, side - (side + 1) % 2)
    window = torch.exp(-0.5 * ((torch.arange(width, dtype=x.dtype) - width // 2) / 1.5).square())
    places = side - width + 1
    slide = torch.stack([F.pad(window / window.sum(), (i, places - 1 - i)) for i in range(places)])

    def local(image: Tensor) -> Tensor:
        """The window's mean at every place: (n, pixels) -> (n, places, places)."""
        return slide @ image.view(-1, side, side) @ slide.T

    mean_x, mean_y = local(x), local(y)
    var_x, var_y, cov = local(x * x) - mean_x**2, local(y * y) - mean_y**2, local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    same = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return same.mean(dim=(1, 2))


def scores(x: Tensor, y: Tensor) -> Scores:
    """`mse` (unit pixels), `psnr` (dB), `ssim` and `pearson` (nan where x or y is constant) of each image."""
    parts = []
    for a, b in zip(x.cpu().split(1000), y.cpu().split(1000)):
        a, b = a.double(), b.double()
        mse = (a - b).square().mean(dim=1)
        parts.append((mse, -10 * mse.clamp(min=_EXACT).log10(), ssim(a, b), pearson(a, b)))
    return dict(zip(("mse", "psnr", "ssim", "pearson"), map(torch.cat, zip(*parts))))


def summary(scored: Scores, labels: np.ndarray) -> dict[str, Any]:
    """The means over the images, by their names in `evaluation.json`; `mse_by_label` is in unit pixels."""
    mse = scored["mse"]
    groups = {int(label): mse[torch.from_numpy(labels == label)].mean().item() for label in np.unique(labels)}
    return {
        "test_mse_unit": mse.mean().item(), "test_mse_signed": 4 * mse.mean().item(),
        "psnr": scored["psnr"].mean().item(), "ssim": scored["ssim"].mean().item(),
        "pearson": scored["pearson"].nanmean().nan_to_num().item(),
        "undefined_pearson": int(scored["pearson"].isnan().sum()), "mse_by_label": groups,
    }  # fmt: skip


def detection(usual: np.ndarray, strange: np.ndarray, specificity: float = 0.95) -> dict[str, Any]:
    """How well errors tell the strange images (m,) from the usual ones (n,), a larger error being a stranger image.

    `threshold` is the smallest usual error that at least the share `specificity` of the usual images do not exceed,
    `sensitivity` the share of strange images above it. The average precision depends on `share`, that of the strange.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    errors, truth = np.concatenate((usual, strange)), np.repeat((0, 1), (len(usual), len(strange)))
    threshold = float(np.quantile(usual, specificity, method="inverted_cdf"))
    return {
        "auroc": float(roc_auc_score(truth, errors)),
        "average_precision": float(average_precision_score(truth, errors)),
        "share": len(strange) / len(errors), "threshold": threshold, "specificity": float((usual <= threshold).mean()),
        "sensitivity": float((strange > threshold).mean()),
    }  # fmt: skip
