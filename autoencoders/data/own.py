"""A person's own images as an image set: a folder of pictures, or a .npy file of grey images.

Pictures become grey squares. The folders directly below the given one are the labels, numbered by name. If `train` and
`test` are among them, they are the two parts, with the labels inside, and everything beside them is ignored; otherwise
a random part is used for testing. Damaged pictures, hidden files, links to folders and other files are left out.

All images are read into memory, but training images may stay in a .npy file of uint8 images of the right size.
"""

import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from autoencoders.data.images import Images, ImageSet, MappedImages
from autoencoders.data.pictures import FORMATS, read_picture, resized
from autoencoders.runtime import cli
from autoencoders.runtime.checks import printable
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import total_memory

log = logging.getLogger(__name__)

Labelled = tuple[Images, np.ndarray, np.ndarray]  # (N, side * side), labels (N,), whether in a test part (N,)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


def load_own_images(path: Path, side: int, test_fraction: float | None, seed: int, stream: str) -> ImageSet:
    """The images at `path`, resized to `side` x `side`; `seed` draws the test images and the order in memory.

    `stream` is `on`, `off` or `auto`, see `stays_in_file`; the test images are the same with each.
    Raises UsageError for no images, too few, or files of another kind.
    """
    has_parts = _has_parts(path)
    if has_parts and test_fraction is not None:
        raise UsageError(f"{path}: has a test part of its own; leave out --test-fraction")
    images, labels, in_test = read_images(path, side, has_parts, stream)
    order = np.random.default_rng(seed).permutation(len(labels))
    if not has_parts:
        count = max(1, round((test_fraction or 0.1) * len(order)))
        in_test[order[: count if test_fraction else min(count, 10_000)]] = True  # test images are always in memory
    test, train = order[in_test[order]], order[~in_test[order]]  # shuffled: pictures show the first test images
    if len(train) < 2 or len(test) < 1:
        raise UsageError(f"{path}: gives {len(train)} training and {len(test)} test images; 2 and 1 are the least")
    name, test_images = printable(path.resolve().name, 40), images[test]
    if isinstance(images, MappedImages):
        train.sort()  # file order, so that a block of them is read in one piece
        images = replace(images, rows=images.rows[train])
    else:
        images = images[train]
    if all((images[start : start + 4096] == images[:1]).all() for start in range(0, len(train), 4096)):
        raise UsageError(f"{path}: all training images are the same; there is nothing to learn")
    return ImageSet(name, name, images, labels[train], test_images, labels[test])


def stays_in_file(nbytes: int, stream: str, memory: float | None = None) -> bool:
    """Whether images of `nbytes` stay in their file: `on`, `off`, or `auto` if above a quarter of the memory."""
    return stream == "on" or (stream == "auto" and nbytes > (memory or total_memory()) / 4)


def read_images(path: Path, side: int, has_parts: bool, stream: str) -> Labelled:
    """All images at `path`; from here on the arguments are those of `load_own_images`."""
    if path.is_dir():
        if stream == "on":
            raise UsageError(f"{path}: a folder of pictures is read into memory; save its images as a .npy file of "
                             f"uint8 (N, {side}, {side}), or drop --stream")  # fmt: skip
        return _read_folder(path, side, has_parts)
    images = _read_array(path, side, stream)
    return images, np.zeros(len(images), np.uint8), np.zeros(len(images), bool)


def _read_array(path: Path, side: int, stream: str) -> Images:
    """The images (N, side * side) of a .npy file, which stay there if `stream` says so and their form allows it."""
    if path.suffix.lower() != ".npy" or not path.is_file():
        raise UsageError(f"{path}: is neither a folder of pictures nor a .npy file; name one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the product of an absurd shape
            mapped: np.ndarray = np.lib.format.open_memmap(path, mode="r")  # no pickle; reads the header alone
        array = _grey_squares(mapped, path) if mapped.dtype == np.uint8 else mapped
        fits = array.dtype == np.uint8 and array.flags.c_contiguous and array.shape[1:] == (side, side)
        if fits and stays_in_file(array.nbytes, stream):
            return MappedImages(path, np.arange(len(array), dtype=np.int32), side**2)
        array = np.load(path, allow_pickle=False)
    except (UsageError, MemoryError):
        raise
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except Exception as error:  # a damaged header fails in more ways than can be listed
        raise UsageError(f"{path}: is not a whole .npy file of numbers ({error}); save one with numpy.save") from error
    if stream == "on":
        raise UsageError(f"{path}: only uint8 images of {side} x {side} in C order can stay in their file; save "
                         f"numpy.ascontiguousarray of such images, or drop --stream")  # fmt: skip
    return resized(_grey_squares(array, path), side)


def _grey_squares(array: np.ndarray, path: Path) -> np.ndarray:
    """Images of any usual form as (N, H, W) uint8; UsageError, with the code that mends it, for another form."""
    side, found = math.isqrt(array.shape[-1]) if array.ndim == 2 else 0, f"{array.dtype} of shape {array.shape}"
    if array.ndim == 4 and 1 in (array.shape[1], array.shape[3]):  # one channel, last or, as in PyTorch, second
        array = array[..., 0] if array.shape[3] == 1 else array[:, 0]
    elif side and side**2 == array.shape[1]:
        array = array.reshape(-1, side, side)
    white = 1 if array.dtype.kind in "fb" else 255
    if array.ndim == 3 and array.size and array.dtype.kind in "fbiu":
        if array.dtype == np.uint8:
            return array
        if array.min() >= 0 and array.max() <= white:
            return np.rint(np.asarray(array) * (255 / white)).astype(np.uint8)
    grey = "images"
    if array.ndim == 4:
        grey = "images[:, :3].mean(1)" if array.shape[1] in (3, 4) else "images[..., :3].mean(-1)"
    usable = array.ndim in (3, 4) and array.size and array.dtype.kind in "fiu" and np.isfinite(array).all()
    code = f"numpy.interp({grey}, (images.min(), images.max()), (0, 255)).astype(numpy.uint8)"
    raise UsageError(f"{path}: holds {found}; expected grey images (N, H, W), (N, H, W, 1) or (N, side * side), as "
                     f"whole numbers from 0 to 255 or floats from 0 to 1{f'; save {code}' * bool(usable)}")  # fmt: skip


def _has_parts(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def _pictures_in(folder: Path, has_parts: bool) -> tuple[list[Path], int]:
    """The pictures below `folder`, by name, and the number of other files."""
    tops = [folder / "train", folder / "test"] if has_parts else [folder]
    files = [path for top in tops for path in _walk(top)]
    paths = [path for path in files if path.suffix.lower() in _SUFFIXES and path.name[0] != "." and path.is_file()]
    beside = [path for path in _walk(folder) if not any(map(path.is_relative_to, tops))] if has_parts else []
    return paths, len(files) - len(paths) + len(beside)


def _read_folder(folder: Path, side: int, has_parts: bool) -> Labelled:
    """`read_images` for a folder of pictures; prints the labels and how many files are left out."""
    paths, others = _pictures_in(folder, has_parts)
    damaged: list[int] = []
    images = np.array(list(_squares(paths, side, damaged)))
    if not len(images):
        raise UsageError(f"{folder}: holds no readable picture; readable formats are {', '.join(FORMATS)}")
    parts = [path.relative_to(folder).parts for number, path in enumerate(paths) if number not in damaged]
    names = [(*part[has_parts:-1], "")[0] for part in parts]  # "" for a picture in no sub-folder
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    listing = ", ".join(f"{number} {printable(name, 40) or '(none)'}" for name, number in [*numbers.items()][:10])
    listing += f", ... {len(numbers)} in all" if len(numbers) > 10 else ""
    log.info(f"{printable(folder.resolve().name, 40)}: {len(parts):,} pictures, labels {listing}; {len(damaged)} "
             f"damaged and {others} other files left out")  # fmt: skip
    labels = np.array([numbers[name] for name in names], np.min_scalar_type(len(numbers)))
    return images, labels, np.array([part[0] == "test" for part in parts])


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, by name; hidden folders and links to folders count as files."""
    folders = [folder]
    while folders:  # not by recursion: folders may be nested deeper than Python's calls
        paths = sorted(folders.pop().iterdir())
        inner = [path for path in paths if path.name[0] != "." and path.is_dir() and not path.is_symlink()]
        yield from sorted(set(paths).difference(inner))
        folders += reversed(inner)


def _squares(paths: list[Path], side: int, damaged: list[int]) -> Iterator[np.ndarray]:
    """Each picture as an image (side * side,); `damaged` gets the numbers of those that are none, warnings name 20."""
    hidden = None if cli.is_verbose() else True  # None: shown on a terminal only
    for number, path in enumerate(tqdm(paths, unit=" images", leave=False, disable=hidden)):
        try:
            picture = np.asarray(read_picture(path, keep_levels=True).convert("L"))
            yield resized(picture[None], side)[0]
        except (UsageError, RunError) as error:
            damaged.append(number)
            if len(damaged) <= 20:
                log.warning(f"left out: {error}")
