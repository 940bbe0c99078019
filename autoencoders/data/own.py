"""A person's own images as an image set: a folder of pictures, or a .npy file of (N, H, W) uint8.

Pictures become grey squares. The folders directly below the given one are the labels, numbered by name. If `train` and
`test` are among them, they are the two parts, with the labels inside, and everything beside them is ignored; otherwise
a random part is used for testing. Links to folders, hidden files and files of other kinds are ignored, and damaged
pictures are left out.

Training images too large for the memory stay in a .npy file: one of the right size where it is, everything else is
converted to one, once, below DATA_ROOT/converted.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
from tqdm import tqdm

from autoencoders.data.images import Images, ImageSet, MappedImages
from autoencoders.data.pictures import FORMATS, read_picture, resized
from autoencoders.runtime import cli
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import read_npz, total_memory, write_npz

log = logging.getLogger(__name__)

_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_MAX_WARNINGS = 20  # damaged pictures named in a warning each
_MAX_NAME = 40  # letters that fit into a figure's title
_MAX_TEST = 10_000  # test images, unless a fraction is given; they are always in memory
_COMPARED = 2**12  # images at a time


def load_own_images(path: Path, side: int, test_fraction: float | None, seed: int, stream: str, root: Path) -> ImageSet:
    """The images at `path`, resized to `side` x `side`; `seed` draws the test images and the order in memory.

    `stream` is `on`, `off` or `auto`, see `stays_in_file`; the test images are the same with each.

    Raises UsageError for no images, too few, or files of another kind, and for a `test_fraction` of a folder that has
    a test part.
    """
    has_parts = all((path / part).is_dir() for part in ("train", "test"))
    if has_parts and test_fraction is not None:
        raise UsageError(f"{path}: has a test part of its own; leave out --test-fraction")
    images, labels, in_test = _read(path, side, has_parts, stream, root)
    train, test = _split(in_test, test_fraction, seed, has_parts)
    if len(train) < 2 or len(test) < 1:
        raise UsageError(f"{path}: gives {len(train)} training and {len(test)} test images; 2 and 1 are the least")
    name, test_images = printable_name(path.resolve().name), images[test]
    if isinstance(images, MappedImages):
        train.sort()  # file order, so that a block of them is read in one piece
        images = replace(images, rows=images.rows[train])
    else:
        images = images[train]
    if all((images[start : start + _COMPARED] == images[:1]).all() for start in range(0, len(train), _COMPARED)):
        raise UsageError(f"{path}: all training images are the same; there is nothing to learn")
    return ImageSet(name, name, images, labels[train], test_images, labels[test])


def load_all_images(path: Path, side: int, root: Path) -> tuple[str, np.ndarray]:
    """The printable name of `path`, and all images there (N, side * side) uint8; large ones are mapped, not read."""
    images, _, _ = _read(path, side, has_parts=False, stream="auto", root=root)
    return printable_name(path.resolve().name), images.whole_file() if isinstance(images, MappedImages) else images


def stays_in_file(nbytes: int, stream: str, memory: float | None = None) -> bool:
    """Whether images of `nbytes` stay in their file: `on`, `off`, or `auto` if above a quarter of the memory."""
    return stream == "on" or (stream == "auto" and nbytes > (memory or total_memory()) / 4)


def printable_name(name: str) -> str:
    """A file's name as text that can be printed, drawn and stored."""
    text = name.encode(errors="backslashreplace").decode()
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= _MAX_NAME else text[: _MAX_NAME - 3] + "..."


def _split(in_test: np.ndarray, fraction: float | None, seed: int, has_parts: bool) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the training images and of the test images, shuffled: pictures show the first test images."""
    order = np.random.default_rng(seed).permutation(len(in_test))
    if has_parts:
        return order[~in_test[order]], order[in_test[order]]
    count = max(1, round((fraction or 0.1) * len(order)))
    count = count if fraction else min(count, _MAX_TEST)
    return order[count:], order[:count]


def _read(path: Path, side: int, has_parts: bool, stream: str, root: Path) -> tuple[Images, np.ndarray, np.ndarray]:
    """All images at `path` (N, side * side), their labels (N,), and whether each lies in a folder's test part (N,)."""
    if path.is_dir():
        return _read_folder(path, side, has_parts, stream, root)
    array = _open_array(path)
    images: Images
    if array.shape[1:] != (side, side):
        squares, target = (resized(image[None], side) for image in array), _converted_file(root, path, [path], side)
        images, _ = _gather(squares, len(array), side, stream, target)
    elif not stays_in_file(array.nbytes, stream):
        images = array.reshape(len(array), -1)
    elif array.flags.c_contiguous:
        images = MappedImages(path, np.arange(len(array), dtype=np.int32), side**2)
    else:
        raise UsageError(f"{path}: is in Fortran order; save numpy.ascontiguousarray of it, or use --stream off")
    return images, np.zeros(len(array), np.uint8), np.zeros(len(array), bool)


def _open_array(path: Path) -> np.ndarray:
    """The images (N, H, W) of a .npy file, mapped."""
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
    return array


def _read_folder(
    folder: Path, side: int, has_parts: bool, stream: str, root: Path
) -> tuple[Images, np.ndarray, np.ndarray]:
    """`_read` for a folder of pictures; prints the labels and how many files are left out."""
    paths, ignored = _find_pictures(folder, has_parts)
    target = _converted_file(root, folder, paths, side)
    images, damaged = _gather(_decode(paths, side), len(paths), side, stream, target)
    if not len(images):
        raise UsageError(f"{folder}: holds no readable picture; readable formats are {', '.join(FORMATS)}")
    parts = [path.relative_to(folder).parts for number, path in enumerate(paths) if number not in damaged]
    names = [(*part[has_parts:-1], "")[0] for part in parts]  # "" for a picture in no sub-folder
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    listing = ", ".join(f"{number} {printable_name(name) or '(none)'}" for name, number in numbers.items())
    log.info(f"{printable_name(folder.resolve().name)}: {len(parts):,} pictures, labels {listing}; {len(damaged)} "
             f"damaged and {ignored} other files left out")  # fmt: skip
    labels = np.array([numbers[name] for name in names], np.min_scalar_type(len(numbers)))
    return images, labels, np.array([part[0] == "test" for part in parts])


def _find_pictures(folder: Path, has_parts: bool) -> tuple[list[Path], int]:
    """The pictures below `folder`, or below its `train` and `test`, and the number of other files."""
    parts = ("train", "test") if has_parts else ("",)
    files = [path for part in parts for path in _walk(folder / part)]
    pictures = [path for path in files if path.suffix.lower() in _SUFFIXES and path.name[0] != "." and path.is_file()]
    beside = sum(path.relative_to(folder).parts[0] not in parts for path in _walk(folder)) if has_parts else 0
    return pictures, len(files) - len(pictures) + beside


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, by name; hidden folders and links to folders count as files."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        closed = [name for name in folders if name[0] == "." or os.path.islink(os.path.join(parent, name))]
        folders[:] = sorted(set(folders) - set(closed))
        yield from (Path(parent, name) for name in sorted([*files, *closed]))


def _raise(error: OSError) -> None:
    raise error


def _decode(paths: list[Path], side: int) -> Iterator[np.ndarray | None]:
    """Each picture as an image (1, side * side); None, and a warning for the first of them, for a damaged one."""
    damaged = 0
    for path in paths:
        try:
            picture = read_picture(path, keep_levels=True).convert("L")
            yield resized(np.asarray(picture)[None], side)
        except (UsageError, RunError) as error:
            damaged += 1
            if damaged <= _MAX_WARNINGS:
                log.warning(f"left out: {error}")
            yield None


def _gather(
    images: Iterable[np.ndarray | None], count: int, side: int, stream: str, target: Path
) -> tuple[Images, set[int]]:
    """The images that are not None, in memory or converted to the file `target`, and the numbers of the others.

    `count` is the number of both. Only the first process that needs the file converts.
    """
    images = _with_progress(images, count)
    if not stays_in_file(count * side**2, stream):
        found = list(images)
        damaged = {number for number, image in enumerate(found) if image is None}
        return np.concatenate([np.empty((0, side**2), np.uint8), *(x for x in found if x is not None)]), damaged
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.with_suffix(".lock")):
            if not target.exists():
                log.info(f"converting the images to {target}, once")
                _convert(images, side, target)
    except OSError as error:
        raise RunError(f"{target.parent}: cannot hold the converted images ({error.strerror}); make room there, or use "
                       f"another --data-root") from error  # fmt: skip
    archive = read_npz(target.with_suffix(".npz"), {"damaged": (-1,)}, f"delete {target} to convert the images again")
    damaged = set(archive["damaged"].tolist())
    return MappedImages(target, np.arange(count - len(damaged), dtype=np.int32), side**2), damaged


def _with_progress(images: Iterable[np.ndarray | None], count: int) -> Iterator[np.ndarray | None]:
    """The images, with a progress bar from the first one on."""
    yield from tqdm(images, total=count, unit=" images", leave=False, disable=None if cli.is_verbose() else True)


def _converted_file(root: Path, source: Path, files: list[Path], side: int) -> Path:
    """The .npy file for the images of `source`, which are in `files`; another one once any of these changes."""
    digest = hashlib.sha256(repr((str(source.resolve()), side)).encode())
    for path in files:
        status = path.stat()
        digest.update(repr((str(path.relative_to(source)), status.st_size, status.st_mtime_ns)).encode())
    return root / "converted" / f"{digest.hexdigest()[:32]}.npy"


def _convert(images: Iterable[np.ndarray | None], side: int, target: Path) -> None:
    """Write images to the .npy file `target`, and the numbers of those that are None to the .npz file beside it."""
    temporary, count, damaged = target.with_suffix(".tmp"), 0, []
    header = {"descr": "|u1", "fortran_order": False}
    try:
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (0, side, side)})
            for number, image in enumerate(images):
                if image is None:
                    damaged.append(number)
                else:
                    count += file.write(image.data) // side**2
            file.seek(0)  # numpy pads a header so that the number of images may grow
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, side, side)})
            file.flush()
            os.fsync(file.fileno())
        write_npz(target.with_suffix(".npz"), damaged=np.array(damaged, int))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
