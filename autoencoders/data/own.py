"""A person's own images as an image set: a folder of pictures, or a .npy file of grey images.

Pictures become grey squares. The folders directly below the given one are the labels, numbered by name. If `train` and
`test` are among them, they are the two parts, with the labels inside, and everything beside them is ignored; otherwise
a random part is used for testing. Damaged pictures, hidden files, links to folders and other files are left out.

Training images too large for the memory stay in a .npy file: one of the right size where it is, everything else is
converted to one, once, below DATA_ROOT/converted.
"""

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from autoencoders.data.images import Images, ImageSet, MappedImages
from autoencoders.data.pictures import FORMATS, read_picture, resized
from autoencoders.runtime import cli
from autoencoders.runtime.checks import printable
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import file_lock, read_npz, total_memory, write_npz

log = logging.getLogger(__name__)

Labelled = tuple[Images, np.ndarray, np.ndarray]  # (N, side * side), labels (N,), whether in a test part (N,)
Pictures = Iterable[Path | np.ndarray]  # files, or grey images (H, W) uint8
_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


def load_own_images(path: Path, side: int, test_fraction: float | None, seed: int, stream: str, root: Path) -> ImageSet:
    """The images at `path`, resized to `side` x `side`; `seed` draws the test images and the order in memory.

    `stream` is `on`, `off` or `auto`, see `stays_in_file`; the test images are the same with each.
    Raises UsageError for no images, too few, or files of another kind.
    """
    has_parts = _has_parts(path)
    if has_parts and test_fraction is not None:
        raise UsageError(f"{path}: has a test part of its own; leave out --test-fraction")
    images, labels, in_test = read_images(path, side, has_parts, stream, root)
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


def read_images(path: Path, side: int, has_parts: bool, stream: str, root: Path) -> Labelled:
    """All images at `path`; from here on the arguments are those of `load_own_images`."""
    if path.is_dir():
        return _read_folder(path, side, has_parts, stream, root)
    images, shape = _open_array(path, stream)
    stays = stays_in_file(len(images) * side**2, stream)
    if shape != (side, side) or (stays and not isinstance(images, MappedImages)):
        squares = _in_pieces(images, shape)
        images, _ = _gather(squares, len(images), side, stream, _converted_file(root, path, [path], side))
    elif not stays:
        images = images[:]
    return images, np.zeros(len(images), np.uint8), np.zeros(len(images), bool)


def conversion_notice(path: Path, side: int, stream: str, root: Path) -> str:
    """The conversion that `load_own_images` would begin with, for a dry run; empty if there would be none."""
    if path.is_dir():
        files, _ = _pictures_in(path, _has_parts(path))
        count = len(files)
    else:
        (images, shape), files = _open_array(path, stream), [path]
        count = 0 if shape == (side, side) else len(images)
    target = _converted_file(root, path, files, side)
    if not count or not stays_in_file(count * side**2, stream) or target.exists():
        return ""
    return f"The images of {printable(path.name, 40)} would be converted to {target}"


def _open_array(path: Path, stream: str) -> tuple[Images, tuple[int, ...]]:
    """The images (N, H * W) of a .npy file, left there if their order allows, and (H, W)."""
    if path.suffix.lower() != ".npy" or not path.is_file():
        raise UsageError(f"{path}: is neither a folder of pictures nor a .npy file; name one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the product of an absurd shape
            array: np.ndarray = np.lib.format.open_memmap(path, mode="r")  # loads no pickle, and reads the header alone
        if not (array.flags.c_contiguous or stays_in_file(array.nbytes, stream)):
            array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except Exception as error:  # a damaged header fails in more ways than can be listed
        raise UsageError(f"{path}: is not a whole .npy file of numbers ({error}); save one with numpy.save") from error
    array = _grey_squares(array, path)
    if isinstance(array, np.memmap) and array.flags.c_contiguous:
        return MappedImages(path, np.arange(len(array), dtype=np.int32), math.prod(array.shape[1:])), array.shape[1:]
    if isinstance(array, np.memmap):
        raise UsageError(f"{path}: is in Fortran order; save numpy.ascontiguousarray of it, or use --stream off")
    return array.reshape(len(array), -1), array.shape[1:]


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


def _in_pieces(images: Images, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Each image (H, W), read in pieces of some megabytes."""
    step = max(1, 2**24 // images.shape[1])
    for start in range(0, len(images), step):
        yield from images[start : start + step].reshape(-1, *shape)


def _has_parts(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def _pictures_in(folder: Path, has_parts: bool) -> tuple[list[Path], int]:
    """The pictures below `folder`, by name, and the number of other files."""
    tops = [folder / "train", folder / "test"] if has_parts else [folder]
    files = [path for top in tops for path in _walk(top)]
    paths = [path for path in files if path.suffix.lower() in _SUFFIXES and path.name[0] != "." and path.is_file()]
    beside = [path for path in _walk(folder) if not any(map(path.is_relative_to, tops))] if has_parts else []
    return paths, len(files) - len(paths) + len(beside)


def _read_folder(folder: Path, side: int, has_parts: bool, stream: str, root: Path) -> Labelled:
    """`read_images` for a folder of pictures; prints the labels and how many files are left out."""
    paths, others = _pictures_in(folder, has_parts)
    converted = _converted_file(root, folder, paths, side)
    images, damaged = _gather(paths, len(paths), side, stream, converted) if paths else (np.empty(0), set[int]())
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


def _squares(pictures: Pictures, count: int, side: int, damaged: list[int]) -> Iterator[np.ndarray]:
    """Each of `count` pictures as an image (side * side,); `damaged` gets the numbers of others, warnings name 20."""
    hidden = None if cli.is_verbose() else True  # None: shown on a terminal only
    for number, picture in enumerate(tqdm(pictures, total=count, unit=" images", leave=False, disable=hidden)):
        try:
            if isinstance(picture, Path):
                picture = np.asarray(read_picture(picture, keep_levels=True).convert("L"))
            yield resized(picture[None], side)[0]
        except (UsageError, RunError) as error:
            damaged.append(number)
            if len(damaged) <= 20:
                log.warning(f"left out: {error}")


def _gather(pictures: Pictures, count: int, side: int, stream: str, target: Path) -> tuple[Images, set[int]]:
    """The pictures as images, in memory or in the file `target`, and the numbers of damaged ones, left out."""
    damaged: list[int] = []
    if not stays_in_file(count * side**2, stream):
        return np.array(list(_squares(pictures, count, side, damaged))), set(damaged)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(target.with_suffix(".lock")):  # the first process converts for all
            if not target.exists():
                log.info(f"converting the images to {target}, once")
                _convert(pictures, count, side, target)
    except OSError as error:
        raise RunError(f"{target.parent}: cannot hold the converted images ({error.strerror}); make room there, or use "
                       f"another --data-root") from error  # fmt: skip
    path, hint = target.with_suffix(".npz"), f"delete {target} to convert the images again"
    numbers = set(read_npz(path, {"damaged": (-1,)}, hint)["damaged"].tolist())
    if not numbers <= set(range(count)):
        raise RunError(f"{path}: does not number the damaged pictures; {hint}")
    try:
        images, shape = _open_array(target, "on")
    except UsageError as error:
        raise RunError(f"{error}; {hint}") from error
    if not isinstance(images, MappedImages) or (len(images), *shape) != (count, side, side):
        raise RunError(f"{target}: does not hold these {count:,} images; {hint}")
    return replace(images, rows=images.rows[: count - len(numbers)]), numbers


def _converted_file(root: Path, source: Path, files: list[Path], side: int) -> Path:
    """The .npy file for the images of `source`, which are in `files`; another one once any of these changes."""
    digest = hashlib.sha256(repr((str(source.resolve()), side)).encode())
    for path in files:
        status = path.stat()
        digest.update(repr((str(path.relative_to(source)), status.st_size, status.st_mtime_ns)).encode())
    return root / "converted" / f"{digest.hexdigest()[:32]}.npy"


def _convert(pictures: Pictures, count: int, side: int, target: Path) -> None:
    """Write the images to the .npy file `target`, and the numbers of damaged ones to the .npz file beside it."""
    temporary, damaged = target.with_suffix(".tmp"), list[int]()
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side)}
    try:
        temporary.unlink(missing_ok=True)  # a link there would be followed, and opening a pipe would wait
        with temporary.open("xb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.writelines(image.data for image in _squares(pictures, count, side, damaged))
            file.truncate(file.tell() + len(damaged) * side**2)  # black images, unused, up to the number in the header
            file.flush()
            os.fsync(file.fileno())
        write_npz(target.with_suffix(".npz"), damaged=np.array(damaged, int))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
