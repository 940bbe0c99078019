"""Binary images: a fixed draw of grey levels, and the static binary MNIST of Larochelle & Murray 2011.

Pixels are 0 or 255. The published set is text, one image a row, in `binarized_mnist_{train,valid,test}.amat`, which may
be compressed (`.amat.gz`), in the folder `binarized` of the data root. It has no labels.
"""

import gzip
import io
import logging
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from autoencoders.data.images import ImageSet, MappedImages
from autoencoders.runtime import processes
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import read_bytes

log = logging.getLogger(__name__)

BINARIZED = "binarized-mnist"
_FILES = {"train": 50_000, "test": 10_000}  # images; the third part, valid, is for choosing settings
_NAME = "binarized_mnist_{}.amat"
_ADDRESS = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/" + _NAME


def static_draw(images: np.ndarray, part: str) -> np.ndarray:
    """Pixels (n, 784) 0 or 255 for uint8 images: 255 with the grey level as probability (Salakhutdinov & Murray 2008),
    always the same draw for `train` and for `test` images."""
    random = np.random.default_rng([2008, list(_FILES).index(part)])
    drawn = np.empty_like(images)
    for start in range(0, len(images), 4096):
        rows = images[start : start + 4096]
        drawn[start : start + 4096] = 255 * (255 * random.random(rows.shape, np.float32) < rows)
    return drawn


def binarized(images: ImageSet, binarize: str | None) -> ImageSet:
    """For `static` the set in one fixed draw of binary pixels, else the set itself, as are binary pixels."""
    if binarize != "static" or images.name == BINARIZED:
        return images
    if isinstance(images.train_images, MappedImages):
        raise UsageError("--binarize static: needs the training images in memory; use --stream off, or dynamic")
    train, test = static_draw(images.train_images, "train"), static_draw(images.test_images, "test")
    return replace(images, title=f"{images.title}, one draw of binary pixels", train_images=train, test_images=test)


def load_binarized(root: Path, side: int, download: Callable[[str, Path], str]) -> ImageSet:
    """The published static binary MNIST, found in `root`/binarized or downloaded to it; RunError where it cannot be.

    `download` gets an address and a path, and returns why it failed, or an empty string.
    """
    if side != 28:
        raise UsageError(f"{BINARIZED}: its images are 28 x 28; in {side} x {side} pixels they would not be binary")
    parts = {part: _read(_find(root, part, download), count) for part, count in _FILES.items()}
    labels = {part: np.zeros(len(images), np.uint8) for part, images in parts.items()}
    return ImageSet(BINARIZED, "static binary MNIST", parts["train"], labels["train"], parts["test"], labels["test"])


def is_on_disk(root: Path) -> bool:
    """Whether `load_binarized` would need no download."""
    return all(_on_disk(root, part) for part in _FILES)


def _on_disk(root: Path, part: str) -> Path | None:
    path = root / "binarized" / _NAME.format(part)
    return next((each for each in (path, path.with_name(f"{path.name}.gz")) if each.is_file()), None)


def _find(root: Path, part: str, download: Callable[[str, Path], str]) -> Path:
    address, path, reason = _ADDRESS.format(part), root / "binarized" / _NAME.format(part), ""
    with processes.local_main_first():
        if not _on_disk(root, part):
            log.info(f"{path.name} is not in {path.parent}: downloading it")
            is_second = processes.torchrun_env("LOCAL_RANK")
            reason = "the first process has tried" if is_second else download(address, path)
    found = _on_disk(root, part)
    if not found:
        raise RunError(
            f"{BINARIZED} is not in {path.parent} and could not be downloaded from {address} ({reason}); "
            f"put {path.name} or {path.name}.gz there, or use --dataset mnist --binarize static"
        )
    return found


def _read(path: Path, count: int) -> np.ndarray:
    """Images (count, 784) uint8 of a text file of 0 and 1."""
    hint = "put a good copy there, or delete it to download it again"
    data = read_bytes(path, hint)
    try:
        text = data if path.suffix != ".gz" else gzip.GzipFile(fileobj=io.BytesIO(data)).read(2 * 784 * count + 2**20)
    except (OSError, EOFError, zlib.error) as error:
        raise RunError(f"{path}: is damaged: {error}; {hint}") from error
    # Every pixel is one character; all others are blanks.
    digits = np.frombuffer(text, np.uint8)
    digits = digits[(digits != ord(" ")) & (digits != ord("\n")) & (digits != ord("\r"))] - np.uint8(ord("0"))
    if len(digits) != 784 * count or digits.max() > 1:
        raise RunError(f"{path}: is damaged: expected {count:,} images of 784 pixels, each 0 or 1; {hint}")
    return digits.reshape(count, 784) * np.uint8(255)
