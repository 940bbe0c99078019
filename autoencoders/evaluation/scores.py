"""Scores of each image for `ae_eval.py`: error, PSNR, SSIM and correlation, in doubles on the CPU."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from autoencoders.evaluation.metrics import Numbers, pearson, squared_error

Scores = dict[str, Tensor]  # of each image, (S, n) for S autoencoders


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each image, (n,) of (n, 784) (Wang, Bovik, Sheikh & Simoncelli 2004, as in the paper).

    The mean over the positions (18 x 18 of 28 x 28) of an 11 x 11 Gaussian window of standard deviation 1.5 inside the
    image, less wide for an image below 11 x 11; K1 = 0.01, K2 = 0.03, for pixels in [0, 1].
    """
    side = math.isqrt(x.shape[-1])
    width = min(11, side - (side + 1) % 2)
    window = torch.signal.windows.gaussian(width, std=1.5, dtype=x.dtype)
    window = window / window.sum()

    def local(image: Tensor) -> Tensor:  # the window's mean at every position
        across = image.unflatten(-1, (side, side)).unfold(-1, width, 1) @ window
        return across.unfold(-2, width, 1) @ window

    mean_x, mean_y = local(x), local(y)
    var_x, var_y, cov = local(x * x) - mean_x**2, local(y * y) - mean_y**2, local(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + 0.01**2) * (2 * cov + 0.03**2)
    return (similarity / ((mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2))).mean(dim=(-2, -1))


def image_scores(batches: Iterable[tuple[Tensor, ...]]) -> Scores:
    """`mse`, `psnr` (dB), `ssim` and `pearson` (nan where undefined) of each image, from batches as of `outputs`."""
    parts = []
    for x, y, *_ in batches:
        x, y = x.cpu().double(), y.cpu().double().reshape(-1, *x.shape)
        mse = squared_error(x, y)
        psnr = -10 * mse.clamp(min=1e-14).log10()  # at most 140 dB, the rounding of single precision
        parts.append((mse, psnr, ssim(x, y), pearson(x, y)))
    return {name: torch.cat(of, dim=-1) for name, of in zip(("mse", "psnr", "ssim", "pearson"), zip(*parts))}


def summary(scores: Scores, labels: np.ndarray) -> Numbers:
    """The means of `image_scores` by their names in `evaluation.json`; lists for more than one autoencoder."""
    mse, correlation = scores["mse"], scores["pearson"]
    known = {int(label): torch.from_numpy(labels == label) for label in np.unique(labels)}
    numbers = {
        "test_mse_unit": mse.mean(dim=1).tolist(),
        "psnr": scores["psnr"].mean(dim=1).tolist(), "ssim": scores["ssim"].mean(dim=1).tolist(),
        "pearson": correlation.nanmean(dim=1).nan_to_num().tolist(),
        "undefined_pearson": correlation.isnan().sum(dim=1).tolist(),
        "mse_by_label": [{label: errors[of].mean().item() for label, of in known.items()} for errors in mse],
    }  # fmt: skip
    return numbers if len(mse) > 1 else {name: values[0] for name, values in numbers.items()}
