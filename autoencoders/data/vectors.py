"""Vectors of any kind as an image set, such as the activations of another network: a .npy file (N, d) of floats.

They keep their units and are float32. Training vectors too large for the memory stay in their file.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from autoencoders.data.images import Images, ImageSet, MappedImages
from autoencoders.data.own import stays_in_file
from autoencoders.runtime.checks import printable
from autoencoders.runtime.errors import RunError, UsageError

_LARGEST = 1e6  # of a number: the square of a larger one has too few digits left
_READ = 2**24  # bytes read at a time


def load_vectors(path: Path, test_fraction: float, seed: int, stream: str) -> ImageSet:
    """The vectors at `path`; `seed` draws the test vectors, a share of them but at most 10,000.

    `stream` is `on`, `off` or `auto`, see `stays_in_file`. UsageError for another kind of file or numbers.
    """
    array = _open(path)
    if stays_in_file(4 * array.size, stream):
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise UsageError(f"{path}: only float32 in C order can stay in its file; save "
                             "numpy.ascontiguousarray(vectors, numpy.float32), or use --stream off")  # fmt: skip
        vectors: Images = MappedImages(path, np.arange(len(array), dtype=np.int32), array.shape[1], "float32")
    else:
        with np.errstate(over="ignore"):  # the range is checked next
            vectors = np.ascontiguousarray(array, np.float32)
    low, high = _range(vectors)
    if not (low >= -_LARGEST and high <= _LARGEST and low < high):  # NaN is in no range
        raise UsageError(f"{path}: holds numbers from {low:g} to {high:g}; expected different ones, finite and below "
                         f"{_LARGEST:g}")  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(array)).astype(np.int32)
    test, train = map(np.sort, np.split(order, [min(max(2, round(test_fraction * len(order))), 10_000)]))
    train_vectors: Images = replace(vectors, rows=train) if isinstance(vectors, MappedImages) else vectors[train]
    test_vectors = vectors[test]
    if len(train) < 2 or (test_vectors == test_vectors[0]).all():
        raise UsageError(f"{path}: gives {len(train)} training and {len(test)} test vectors; 2 of each are the "
                         "least, and the test vectors must differ")  # fmt: skip
    name = printable(path.resolve().name, 40)
    labels = (np.zeros(len(part), np.uint8) for part in (train, test))
    source = {"source": str(path.absolute())}
    return ImageSet(name, name, train_vectors, next(labels), test_vectors, next(labels), source=source)


def _open(path: Path) -> np.ndarray:
    """The array (N, d) in a .npy file, left there."""
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")  # loads no pickle, and reads the header alone
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from error
    except Exception as error:  # a damaged header fails in more ways than can be listed
        raise UsageError(f"{path}: is not a whole .npy file of numbers ({error}); save one with numpy.save") from error
    if array.ndim != 2 or array.dtype.kind != "f" or array.dtype.itemsize > 8 or min(array.shape) < 3 or len(array) < 4:
        raise UsageError(f"{path}: holds {array.dtype} of shape {array.shape}; expected floats (N, d), at least four "
                         "vectors of three numbers; save vectors.astype(numpy.float32)")  # fmt: skip
    return array


def _range(vectors: Images) -> tuple[float, float]:
    """The smallest and the largest number; NaN where one is."""
    step = max(1, _READ // (4 * vectors.shape[1]))
    blocks = (vectors[start : start + step] for start in range(0, len(vectors), step))
    lows, highs = zip(*((float(block.min()), float(block.max())) for block in blocks))
    return float(np.min(lows)), float(np.max(highs))
