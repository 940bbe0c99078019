"""A person's own images as an image set: a folder of pictures, or a .npy file of (N, H, W) uint8.

Pictures become grey squares, resized whole. The folders right below the given one are the labels, numbered by name.
Where `train` and `test` are among these, they are the parts, with the labels inside, and what lies beside them is
passed over; else a random part is set aside to test on. Links to folders, hidden files and files that are no pictures
are passed over; damaged pictures are left out.

Images too large for the memory stay in the .npy file. Pictures, and arrays of another size, become once, one by one,
images in a file without a name below the data root. Of such a file whole blocks are set aside to test on.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from autoencoders.data.sets import ImageSet, resized
from autoencoders.data.stored import Stored, store, stored, too_large
from autoencoders.runtime.errors import RunError, UsageError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_MOST_NAMED = 20  # damaged pictures that get a line each
_LONGEST_NAME = 40  # what fits into a figure's title
_COMPARED = 2**14  # images at a time

Parts = tuple[Any, np.ndarray, Any, np.ndarray]  # images and labels to train on, images and labels to test on


def load_collection(path: Path, side: int, test_fraction: float | None, seed: int, stream: str, root: Path) -> ImageSet:
    """The images at `path`, resized to `side` x `side`, in an order that `seed` draws.

    `stream` is `auto`, `on` or `off`, as `too_large` takes it.

    Raises UsageError where there are no images, too few, or of another kind, and where a folder with a test part of its
    own is given a `test_fraction`.
    """
    own_parts = all((path / part).is_dir() for part in ("train", "test"))
    if own_parts and test_fraction is not None:
        raise UsageError(f"{path}: has a test part of its own; leave out --test-fraction")
    images, labels, for_test = _read(path, side, own_parts, stream, root)
    divide = _divide_stored if isinstance(images, Stored) else _divide
    parts = divide(images, labels, for_test, own_parts, test_fraction or 0.1, seed)
    train, test = parts[0], parts[2]
    if len(train) < 2 or len(test) < 1:
        raise UsageError(f"{path}: gives {len(train)} images to train and {len(test)} to test on; 2 and 1 are the least")
    if all((train[start : start + _COMPARED] == train[:1]).all() for start in range(0, len(train), _COMPARED)):
        raise UsageError(f"{path}: all images to train on are the same one; there is nothing to learn")
    name = spoken(path.resolve().name)
    return ImageSet(name, name, *parts)


def load_whole(path: Path, side: int, root: Path) -> tuple[str, Any]:
    """The name of the collection at `path`, and all its images (N, side * side) uint8, were it but one."""
    return spoken(path.resolve().name), _read(path, side, False, "auto", root)[0]


def _read(path: Path, side: int, own_parts: bool, stream: str, root: Path) -> tuple[Any, np.ndarray, np.ndarray]:
    """Images (N, side * side), labels (N,) and which are in `test`."""
    if path.is_dir():
        return _read_folder(path, side, own_parts, stream, root)
    images = _read_array(path, side, stream, root)
    return images, np.zeros(len(images), np.uint8), np.zeros(len(images), bool)


def _divide(images: Any, labels: np.ndarray, for_test: np.ndarray, own_parts: bool, share: float, seed: int) -> Parts:
    # Shuffled: the first test images, which pictures show, would otherwise all be of one label.
    order = np.random.default_rng(seed).permutation(len(images))
    if not own_parts:
        for_test[order[: max(1, round(share * len(images)))]] = True
    test, train = order[for_test[order]], order[~for_test[order]]
    return images[train], labels[train], images[test], labels[test]


def _divide_stored(
    images: Any, labels: np.ndarray, for_test: np.ndarray, own_parts: bool, share: float, seed: int
) -> Parts:
    """The same of images in a file: those to train on keep their order, those to test on are mixed block by block."""
    count = int((~for_test).sum()) if own_parts else 0  # they come first
    own = images.part(0, count), images.part(count, len(images) - count).mixed(seed)
    train, test = own if own_parts else images.split(share, seed)
    return train, _labels_of(train, labels), test, _labels_of(test, labels[count:])


def _labels_of(images: Stored, labels: np.ndarray) -> np.ndarray:
    """In parts: a number for every image of a large file is large too."""
    starts = range(0, len(images), _COMPARED)
    return np.concatenate([labels[:0], *(labels[images.rows(slice(start, start + _COMPARED))] for start in starts)])


def spoken(name: str) -> str:
    """A file's name as text that can be printed, drawn and stored."""
    text = name.encode(errors="backslashreplace").decode()
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 3] + "..."


def _read_array(path: Path, side: int, stream: str, root: Path) -> np.ndarray | Stored:
    """The images (N, side * side) of a .npy file; not read yet where they are of that size already."""
    if path.suffix != ".npy" or not path.is_file():
        raise UsageError(f"{path}: is neither a folder of pictures nor a .npy file")
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # loads no pickle
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except Exception as error:  # a damaged header fails in more ways than can be listed
        raise UsageError(f"{path}: is not a whole .npy file of numbers ({error}); save one with numpy.save") from error
    if array.dtype != np.uint8 or array.ndim != 3 or 0 in array.shape:
        raise UsageError(f"{path}: holds {array.dtype} of shape {array.shape}; expected uint8 of (N, H, W), none 0")
    if not too_large(len(array) * side**2, stream):
        return resized(array, side)
    if array.shape[1:] != (side, side):
        return store((resized(image[None], side)[0] for image in array), side**2, root)
    if not array.flags.c_contiguous:
        raise UsageError(f"{path}: its images lie across one another; save numpy.ascontiguousarray of them")
    return stored(open(path, "rb", buffering=0), str(path), array.offset, len(array), side**2)


def _read_folder(
    folder: Path, side: int, own_parts: bool, stream: str, root: Path
) -> tuple[np.ndarray | Stored, np.ndarray, np.ndarray]:
    """The same of a folder of pictures; what is left out is said on stderr."""
    from tqdm import tqdm

    from autoencoders.data.pictures import FORMATS, read_picture

    parts = ("train", "test") if own_parts else ("",)
    files = [path for part in parts for path in _walk(folder / part)]
    beside = [path for path in _walk(folder) if path.relative_to(folder).parts[0] not in parts] if own_parts else []
    found = [path for path in files if path.suffix.lower() in _SUFFIXES and path.name[0] != "." and path.is_file()]
    damaged = 0
    kept: list[tuple[str, ...]] = []

    def pictures() -> Iterator[np.ndarray]:
        nonlocal damaged
        for path in tqdm(found, unit="picture", leave=False, disable=None):
            try:
                picture = read_picture(path, alone=False).convert("L")
            except (UsageError, RunError) as error:
                damaged += 1
                if damaged <= _MOST_NAMED:
                    print(f"warning: left out: {' '.join(str(error).split())}", file=sys.stderr)
                continue
            kept.append(path.relative_to(folder).parts)
            yield resized(np.asarray(picture)[None], side)[0]

    images: np.ndarray | Stored
    if too_large(len(found) * side**2, stream):
        images = store(pictures(), side**2, root)
    else:
        images = np.empty((len(found), side**2), np.uint8)
        for place, picture in enumerate(pictures()):
            images[place] = picture
        images = images[: len(kept)]
    if not kept:
        raise UsageError(f"{folder}: holds no picture that can be read; {', '.join(FORMATS)} can")
    below = [(*parts[own_parts:-1], "")[0] for parts in kept]  # "" where a picture lies in no folder
    names = {name: number for number, name in enumerate(sorted(set(below)))}
    numbered = ", ".join(f"{number} {spoken(name) or '(none)'}" for name, number in names.items())
    print(f"{spoken(folder.resolve().name)}: {len(kept):,} pictures, labels {numbered}; {damaged} damaged and "
          f"{len(files) - len(found) + len(beside)} other files left out", file=sys.stderr)  # fmt: skip
    labels = np.array([names[name] for name in below], np.min_scalar_type(len(names)))
    return images, labels, np.array([own_parts and parts[0] == "test" for parts in kept])


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, by name; of a hidden folder, and of a link to one, that itself."""
    for place, folders, files in os.walk(folder, onerror=_refuse):
        closed = [name for name in folders if name[0] == "." or os.path.islink(os.path.join(place, name))]
        folders[:] = sorted(set(folders) - set(closed))
        yield from (Path(place, name) for name in sorted([*files, *closed]))


def _refuse(error: OSError) -> None:
    raise error
