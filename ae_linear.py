"""The linear baseline: PCA, the files it leaves, and the error it makes on test images.

PCA of n images (n, 784) in [0, 1] is the best linear autoencoder of every code size at once (Baldi & Hornik
1989), so its error on the same test images is the number that every autoencoder here is held against.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ae_data import ImageSet
from ae_errors import Mistake
from ae_files import read_npz, write_atomic, write_npz

PCA_FILE = "pca.npz"


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

    def test_mse(self, images: np.ndarray, code_size: int) -> float:
        """Mean squared error per unit-range pixel of images (n, 784) uint8 through `code_size` components.

        Components are orthonormal: the error is what is left of each image's squared length.
        """
        centred = images.astype(np.float32) / np.float32(255) - self.mean
        code = self.encode(images, code_size)
        lost = np.sum(centred**2, dtype=np.float64) - np.sum(code**2, dtype=np.float64)
        return max(float(lost), 0.0) / int(centred.size)


def fit_pca(images: ImageSet, max_samples: int = 60_000, seed: int = 0) -> Pca:
    """PCA of at most `max_samples` training images, a seeded random subset when that is fewer than all."""
    from sklearn.decomposition import PCA

    chosen = images.train_images
    if max_samples < len(chosen):
        chosen = chosen[np.sort(np.random.default_rng(seed).choice(len(chosen), max_samples, replace=False))]
    # The 784 x 784 covariance is all that is needed when there are more images than pixels.
    solver = "covariance_eigh" if len(chosen) >= chosen.shape[1] else "full"
    pixels = chosen.astype(np.float32)
    pixels /= 255  # in place: these are the largest arrays of a whole run
    fitted = PCA(svd_solver=solver).fit(pixels)
    ratios = fitted.explained_variance_ratio_.astype(np.float64)
    return Pca(
        mean=fitted.mean_.astype(np.float32),
        components=fitted.components_.astype(np.float32),
        cumulative_variance=np.cumsum(ratios),
        dataset=images.name,
        fingerprint=images.fingerprint,
        samples=len(chosen),
    )


def count_file(folder: Path, variance: float) -> Path:
    """Where the number of components for `variance` stands: `n_components_95.txt` for 0.95."""
    return folder / f"n_components_{100 * variance:.10g}.txt"


def write_pca(folder: Path, pca: Pca, variance: float, title: str) -> int:
    """Write the PCA, its picture and the number of components for `variance`; return that number."""
    from ae_figures import variance_curve

    count = pca.components_for(variance)
    write_npz(folder / PCA_FILE, **vars(pca))
    write_atomic(
        folder / "pca_cumulative_variance.png", variance_curve(pca.cumulative_variance, variance, count, title)
    )
    write_atomic(count_file(folder, variance), f"{count}\n".encode())
    return count


def read_pca(folder: Path, images: ImageSet) -> Pca | None:
    """The PCA kept in `folder`, or None; one fitted on other images than `images` is a Mistake."""
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
        raise Mistake(f"{path}: was fitted on {arrays['dataset']}, not on these images ({images.title}); {remedy}")
    return Pca(
        mean=arrays["mean"],
        components=arrays["components"],
        cumulative_variance=arrays["cumulative_variance"],
        dataset=str(arrays["dataset"]),
        fingerprint=str(arrays["fingerprint"]),
        samples=int(arrays["samples"]),
    )
