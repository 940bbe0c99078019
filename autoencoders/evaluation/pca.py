"""The linear baseline: PCA, the files it leaves, and the error it makes on test images.

PCA of n images (n, 784) in [0, 1] is the best linear autoencoder of every code size at once (Baldi & Hornik
1989), so its error on the same test images is the number that every autoencoder here is held against.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoencoders.data.images import ImageSet, MappedImages
from autoencoders.figures import variance_curve
from autoencoders.recipes import Recipe
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import read_n_components, read_npz, write_atomic, write_npz

PCA_FILE = "pca.npz"
_READ = 2**14  # images read at a time


@dataclass(frozen=True)
class Pca:
    """A fitted PCA: mean (784,), components (784, 784) one a row, cumulative variance (784,) up to 1."""

    mean: np.ndarray
    components: np.ndarray
    cumulative_variance: np.ndarray
    dataset: str
    fingerprint: str
    samples: int

    def components_for(self, variance: float) -> int:
        """The smallest number of components whose cumulative explained variance reaches `variance`."""
        # The curve ends at 1 up to rounding; with variance 1 every component that adds anything is wanted.
        reached = self.cumulative_variance >= min(variance, self.cumulative_variance[-1])
        return int(np.argmax(reached)) + 1

    def encode(self, images: np.ndarray, code_size: int) -> np.ndarray:
        """Codes (n, code_size) of uint8 images (n, 784)."""
        codes: np.ndarray = (images.astype(np.float32) / np.float32(255) - self.mean) @ self.components[:code_size].T
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Images (n, 784) of codes (n, code_size); pixels are not held within [0, 1]."""
        images: np.ndarray = codes @ self.components[: codes.shape[1]] + self.mean
        return images

    def test_mse(self, images: np.ndarray | MappedImages, code_size: int) -> float:
        """Mean squared error per unit-range pixel of images (n, 784) uint8 through `code_size` components.

        Components are orthonormal: the error is what is left of each image's squared length.
        """
        lost = 0.0
        for start in range(0, len(images), 1000):  # in parts, for memory
            part = images[start : start + 1000]
            centred, code = part.astype(np.float32) / np.float32(255) - self.mean, self.encode(part, code_size)
            lost += np.sum(centred**2, dtype=np.float64) - np.sum(code**2, dtype=np.float64)
        return max(float(lost), 0.0) / math.prod(images.shape)


def fit_pca(images: ImageSet, max_samples: int = 60_000, seed: int = 0) -> Pca:
    """PCA of at most `max_samples` training images, a seeded random subset when that is fewer than all.

    Raises UsageError when all of them are the same image.
    """
    chosen = images.train_images
    if max_samples < len(chosen):
        chosen = chosen[np.sort(np.random.default_rng(seed).choice(len(chosen), max_samples, replace=False))]
    mean, components, variances = _principal_axes(chosen)
    if not variances.any():
        raise UsageError(f"{images.title}: all training images are the same; there is no variance to explain")
    return Pca(
        mean=mean.astype(np.float32),
        components=components.astype(np.float32),
        cumulative_variance=np.cumsum(variances) / variances.sum(),
        dataset=images.name,
        fingerprint=images.fingerprint,
        samples=len(chosen),
    )


def _moments(images: np.ndarray | MappedImages) -> tuple[np.ndarray, np.ndarray]:
    """Sums over uint8 images (n, p) of their pixels (p,) and of the products of any two (p, p), float64 and exact.

    256 products of two bytes stay below 2^24, up to which float32 counts without rounding: so the fast matrix
    product is exact, in any order, and one block after another is all the memory that images ever take. Several
    processes share the blocks.
    """
    pixels = images.shape[1]
    sums, products = np.zeros(pixels), np.zeros((pixels, pixels))
    for start in range(0, len(images), _READ):
        for block in np.split(read := images[start : start + _READ], range(256, len(read), 256)):
            block = block.astype(np.float32)
            sums += block.sum(axis=0)
            products += block.T @ block
    return sums, products


def _principal_axes(images: np.ndarray | MappedImages) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (p,), axes (min(n, p), p) one a row and the variance along each, of uint8 images (n, p)."""
    count, pixels = images.shape
    if count >= pixels:
        sums, products = _moments(images)
        mean = sums / count
        variances, axes = np.linalg.eigh(products / count - np.outer(mean, mean))
        variances, axes = variances[::-1].clip(0), axes.T[::-1]
    else:
        images = images[:]
        mean = images.mean(axis=0)
        _, lengths, axes = np.linalg.svd(images - mean, full_matrices=False)
        variances = lengths**2 / count
    # Either end of an axis will do; let the largest entry be positive, so that the same images give the same axes.
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
    return mean / 255, axes, variances


def n_components_file(folder: Path, variance: float) -> Path:
    """Where the number of components for `variance` stands: `n_components_95.txt` for 0.95."""
    return folder / f"n_components_{100 * variance:.10g}.txt"


def write_pca(folder: Path, pca: Pca, variance: float, title: str) -> int:
    """Write the PCA, its picture and the number of components for `variance`; return that number."""
    count = pca.components_for(variance)
    write_npz(folder / PCA_FILE, **vars(pca))
    write_atomic(
        folder / "pca_cumulative_variance.png", variance_curve(pca.cumulative_variance, variance, count, title)
    )
    write_atomic(n_components_file(folder, variance), f"{count}\n".encode())
    return count


def resolve_code_size(recipe: Recipe, images: ImageSet, folder: Path) -> tuple[Recipe, Pca, bool]:
    """The recipe with its code size, the PCA to compare with, and whether `n_components_95.txt` is still to be written.

    Both come from the files in `folder` where they exist, otherwise from a new fit. A code size that the recipe gives
    needs no file. UsageError when the files contradict each other or belong to other images.
    """
    path, automatic = n_components_file(folder, 0.95), recipe.code_size is None
    try:
        pca = read_pca(folder, images)
    except (UsageError, RunError):
        if automatic:
            raise
        pca = None  # of other images, or damaged: here it is only needed for the comparison
    if automatic and path.exists():
        hint = f"run ae_pca.py --output-dir {folder} again, or give a --code-size"
        count = read_n_components(path, recipe.pixels, hint)
        if pca and pca.components_for(0.95) != count:
            raise UsageError(f"{path}: says {count}, but pca.npz beside it says {pca.components_for(0.95)}; {hint}")
        recipe = recipe.override({"code_size": count})
    # A PCA fitted on few images has few components.
    if pca is None or min(recipe.code_size or 0, recipe.pixels) > len(pca.components):
        pca = fit_pca(images)
    if recipe.code_size is None:
        recipe = recipe.override({"code_size": pca.components_for(0.95)})
    return recipe, pca, automatic and not path.exists()


def read_pca(folder: Path, images: ImageSet) -> Pca | None:
    """The PCA kept in `folder`, or None; one fitted on other images than `images` is a UsageError."""
    path = folder / PCA_FILE
    if not path.exists():
        return None
    remedy = f"run ae_pca.py --output-dir {folder} again, with these images"
    if images.left_out is not None:  # ae_pca.py leaves none out
        remedy = "use another --output-dir, or give a --code-size"
    pixels = images.train_images.shape[1]
    shapes = {"mean": (pixels,), "components": (-1, pixels), "cumulative_variance": (-1,)}
    shapes |= {"dataset": (), "fingerprint": (), "samples": ()}
    arrays = read_npz(path, shapes, remedy)
    if str(arrays["fingerprint"]) != images.fingerprint:
        raise UsageError(f"{path}: was fitted on {arrays['dataset']}, not on these images ({images.title}); {remedy}")
    return Pca(
        mean=arrays["mean"],
        components=arrays["components"],
        cumulative_variance=arrays["cumulative_variance"],
        dataset=str(arrays["dataset"]),
        fingerprint=str(arrays["fingerprint"]),
        samples=int(arrays["samples"]),
    )
