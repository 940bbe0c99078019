"""The linear baseline, PCA: the best linear autoencoder of every code size at once (Baldi & Hornik 1989)."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoencoders.data.images import Images, ImageSet
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import read_npz, write_atomic, write_npz
from autoencoders.style import BLUE, GREY, ORANGE, png, styled_figure

PCA_FILE = "pca.npz"


@dataclass(frozen=True)
class Pca:
    """A fitted PCA: mean (784,), components (784, 784) as rows, cumulative variance (784,) up to 1."""

    mean: np.ndarray
    components: np.ndarray
    cumulative_variance: np.ndarray
    dataset: str
    fingerprint: str
    samples: int

    def components_for(self, variance: float) -> int:
        """The smallest number of components whose explained variance reaches `variance`."""
        variance = min(variance, self.cumulative_variance[-1])  # the curve ends at 1 up to rounding only
        return int(np.searchsorted(self.cumulative_variance, variance)) + 1

    def encode(self, images: np.ndarray, code_size: int) -> np.ndarray:
        """Codes (n, code_size) of uint8 images (n, 784)."""
        return (_unit(images) - self.mean) @ self.components[:code_size].T

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Images (n, 784) of codes (n, code_size); pixels are not clipped to [0, 1]."""
        return codes @ self.components[: codes.shape[1]] + self.mean

    def test_mse(self, images: Images, code_size: int) -> float:
        """Mean squared error per unit-range pixel of images (n, 784) uint8 through `code_size` components."""
        total = 0.0
        for start in range(0, len(images), 1000):
            part = images[start : start + 1000]
            total += float(np.square(_unit(part) - self.decode(self.encode(part, code_size)), dtype=np.float64).sum())
        return total / math.prod(images.shape)


def _unit(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(_white(images))


def _white(images: np.ndarray) -> int:
    """The number of a white pixel; 1 for vectors, which keep their units."""
    return 255 if images.dtype == np.uint8 else 1


def fit_pca(images: ImageSet, max_samples: int = 60_000, seed: int = 0) -> Pca:
    """PCA of at most `max_samples` training images, a seeded random subset when that is fewer than all."""
    chosen = images.train_images
    if max_samples < len(chosen):
        chosen = chosen[np.sort(np.random.default_rng(seed).choice(len(chosen), max_samples, replace=False))]
    mean, components, variances = _principal_axes(chosen)
    if not variances.any():
        raise UsageError(f"{images.title}: all training images are the same; there is no variance to explain")
    curve = np.cumsum(variances) / variances.sum()
    mean, components = mean.astype(np.float32), components.astype(np.float32)
    return Pca(mean, components, curve, images.name, images.fingerprint, len(chosen))


def moments(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Sums over uint8 images (n, p) of their pixels (p,) and of the products of any two (p, p): float64, exact; over
    vectors rounded.

    256 products of two bytes stay below 2^24, up to which float32 holds every integer: the fast product is exact.
    """
    pixels = images.shape[1]
    sums, products = np.zeros(pixels), np.zeros((pixels, pixels))
    for start in range(0, len(images), 256):
        block = images[start : start + 256]
        block = block.astype(np.float32 if block.dtype == np.uint8 else np.float64)
        sums += block.sum(axis=0)
        products += block.T @ block
    return sums, products


def _principal_axes(images: Images) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (p,), axes (min(n, p), p) as rows, and the variance along each axis, of uint8 images (n, p)."""
    count, pixels = images.shape
    if count >= pixels:
        sums, products = moments(images)
        mean = sums / count
        variances, axes = np.linalg.eigh(products / count - np.outer(mean, mean))
        variances, axes = variances[::-1].clip(0), axes.T[::-1]
    else:
        mean = images[:].mean(axis=0)
        _, lengths, axes = np.linalg.svd(images[:] - mean, full_matrices=False)
        variances = lengths**2 / count
    # The sign of an axis is arbitrary: make its largest entry positive, so that the same images give the same axes.
    largest = np.abs(axes).argmax(axis=1)
    return mean / _white(images[:1]), axes * np.sign(axes[np.arange(len(axes)), largest])[:, None], variances


def n_components_file(folder: Path, variance: float) -> Path:
    """The file that holds the number of components for `variance`: `n_components_95.txt` for 0.95."""
    return folder / f"n_components_{100 * variance:.10g}.txt"


def write_pca(folder: Path, pca: Pca, variance: float, title: str) -> int:
    """Write the PCA, its picture and the number of components for `variance`; return that number."""
    count = pca.components_for(variance)
    write_npz(folder / PCA_FILE, **vars(pca))
    curve = variance_curve(pca.cumulative_variance, variance, count, title)
    write_atomic(folder / "pca_cumulative_variance.png", curve)
    write_atomic(n_components_file(folder, variance), f"{count}\n".encode())
    return count


def variance_curve(cumulative: np.ndarray, variance: float, count: int, images: str) -> bytes:
    """Cumulative explained variance against the number of components; `count` of them explain the share `variance`."""
    share = f"{100 * variance:.10g}% of the variance"
    with styled_figure(f"{images}: {count} components explain {share}") as figure:
        axes = figure.add_subplot(xlabel="number of components", ylabel="cumulative explained variance")
        axes.plot(np.arange(len(cumulative) + 1), np.concatenate(([0.0], cumulative)), color=BLUE, linewidth=2)
        axes.axhline(variance, color=GREY, linestyle="--", linewidth=1, label=share)
        axes.axvline(count, color=ORANGE, linestyle="--", linewidth=1)
        axes.plot([count], [cumulative[count - 1]], "o", color=ORANGE, label=f"k = {count}")
        axes.set(xlim=(0, len(cumulative)), ylim=(0, 1.02))
        axes.legend(loc="lower right")
        return png(figure)


def load_or_fit_pca(folder: Path, images: ImageSet, code_size: int) -> Pca:
    """The PCA in `folder`, or a new fit where that is missing, damaged, of other images, or too small."""
    try:
        pca = read_pca(folder, images)
    except (UsageError, RunError):
        pca = None
    wanted = min(code_size, images.train_images.shape[1])  # a PCA fitted on few images has few components
    return pca if pca and len(pca.components) >= wanted else fit_pca(images)


def read_pca(folder: Path, images: ImageSet) -> Pca | None:
    """The PCA in `folder`, or None; UsageError when it was fitted on other images than `images`."""
    path, pixels = folder / PCA_FILE, images.train_images.shape[1]
    if not path.exists():
        return None
    hint = f"run ae_pca.py --output-dir {folder} again, with these images"
    if (images.left_out, images.only) != (None, None) or "binary pixels" in images.title:  # ae_pca.py has none of these
        hint = "use another --output-dir, or give a --code-size"
    shapes: dict[str, tuple[int, ...]] = {"mean": (pixels,), "components": (-1, pixels), "cumulative_variance": (-1,)}
    shapes |= {"dataset": (), "fingerprint": (), "samples": ()}
    arrays: dict[str, Any] = read_npz(path, shapes, hint)
    pca = Pca(*(arrays[name] if shape else arrays[name].item() for name, shape in shapes.items()))
    if pca.fingerprint != images.fingerprint:
        if pca.dataset.startswith(f"{images.title} ") or pca.dataset.startswith(f"{images.title}, "):
            hint = "select those with --leave-out, --only or --binarize, or use another --output-dir"
        raise UsageError(f"{path}: was fitted on {pca.dataset}, not on these images ({images.title}); {hint}")
    return pca
