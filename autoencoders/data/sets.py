"""Image sets by name: 28 x 28 grey levels, flattened to (N, 784) uint8, and labels (N,).

The names are `mnist`, `fashion-mnist` and `kmnist` (IDX files in ROOT/<Set>/raw, downloaded by torchvision if missing),
`digits` (inside scikit-learn), `binarized-mnist` (see data/binary.py), `auto` (MNIST if available, else digits with a
warning), and any path of a person's own images (see data/own.py). The IDX files are read here, because importing
torchvision takes seconds.
"""

import argparse
import contextlib
import hashlib
import logging
import math
import os
import socket
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autoencoders.data import binary
from autoencoders.data.binary import BINARIZED
from autoencoders.data.images import ImageSet, MappedImages
from autoencoders.data.own import load_own_images
from autoencoders.data.pictures import resized
from autoencoders.runtime import cli, processes
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import read_bytes

log = logging.getLogger(__name__)

DATASETS = ("mnist", "fashion-mnist", "kmnist", "digits", BINARIZED, "auto")
_IDX_SETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "kmnist": "KMNIST", "auto": "MNIST"}
_TORCHVISION = {name: title.replace("-", "") for name, title in _IDX_SETS.items()}  # its classes and folders
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MD5 = {  # of the published files, unpacked, in this order; for KMNIST's only those of the archives are known
    "MNIST": ("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
              "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    "Fashion-MNIST": ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
                      "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
}  # fmt: skip


def load_images(
    source: str, root: Path, image_size: int = 28, test_fraction: float | None = None, split_seed: int = 0,
    stream: str = "auto",
) -> ImageSet:  # fmt: skip
    """The image set with the name, or at the path, `source`; IDX files are read from, or downloaded to, `root`.

    `test_fraction`, `split_seed` and `stream` are for a person's own images. RunError for missing or damaged files.
    """
    if source not in DATASETS:
        images = load_own_images(Path(source), image_size, test_fraction, split_seed, stream)
        name = os.path.abspath(source)
    elif test_fraction is not None or split_seed or stream == "on":
        raise UsageError(f"--test-fraction, --split-seed and --stream are for your own images; {source} is a known set")
    else:
        images = _load_known(source, root, image_size)
        name = "digits" if images.name == "digits" else source.replace("auto", "mnist")
    if processes.size() > 1 and processes.on_main(lambda: images.fingerprint) != images.fingerprint:
        raise UsageError(f"{images.title}: the processes find different images at {source}; give all of them the same")
    return replace(images, source={
        "source": name, "test_fraction": test_fraction, "split_seed": split_seed,
        "stream": isinstance(images.train_images, MappedImages),
    })  # fmt: skip


def _load_known(name: str, root: Path, side: int) -> ImageSet:
    if name == "digits":
        return _load_digits(side)
    if name == BINARIZED:
        return binary.load_binarized(root, side, download_file)
    try:
        folder = _ensure_downloaded(name, root)
    except RunError as error:
        if name != "auto":
            raise
        log.warning(f"{error}")
        log.warning("MNIST IS NOT AVAILABLE: using the 1,797 digits of scikit-learn instead")
        return replace(_load_digits(side), title="scikit-learn digits in place of MNIST")
    return _load_idx(_IDX_SETS[name], folder, side)


def _load_digits(side: int) -> ImageSet:
    """scikit-learn's 8 x 8 digits, enlarged: 1,500 for training, 297 for testing."""
    from sklearn.datasets import load_digits  # takes a second, and only this set needs it

    digits = load_digits()
    images = resized(np.rint(digits.images * (255 / 16)).astype(np.uint8), side)
    labels = digits.target.astype(np.uint8)
    return ImageSet("digits", "scikit-learn digits", images[:1500], labels[:1500], images[1500:], labels[1500:])


def _load_idx(title: str, folder: Path, side: int) -> ImageSet:
    hint = f"put a good copy there, or delete it to download {title} again"
    read = (_read_idx(folder / name, (28, 28) if "images" in name else (), hint) for name in _IDX_FILES)
    arrays, digests = zip(*read)
    for number in (1, 3):
        labels, count = arrays[number], len(arrays[number - 1])
        if len(labels) != count or labels.max() > 9:
            reason = f"it has {len(labels)} labels, up to {labels.max()}, for {count} images of 10 classes"
            raise RunError(f"{folder / _IDX_FILES[number]}: is damaged: {reason}; {hint}")
    if digests != _MD5.get(title, digests):
        log.warning(f"{folder}: these are not the published files of {title}; published results do not hold for them")
        title = f"files in place of {title}"
    name, (train, train_labels, test, test_labels) = title.lower().replace(" ", "-"), arrays
    return ImageSet(name, title, resized(train, side), train_labels, resized(test, side), test_labels)


def _read_idx(path: Path, item: tuple[int, ...], hint: str) -> tuple[np.ndarray, str]:
    """The array (N, *item) of an IDX file, and the file's MD5.

    The file holds 0, 0, 8 for uint8, the rank, the sizes as big-endian int32, the bytes.
    """
    data, start = read_bytes(path, hint), 8 + 4 * len(item)
    sizes = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if [*data[:4], *sizes[1:]] != [0, 0, 8, len(sizes), *item] or 0 in sizes or len(data) != start + math.prod(sizes):
        raise RunError(f"{path}: is damaged, or no IDX file of {'28 x 28 images' if item else 'labels'}; {hint}")
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    # A copy, because numpy asks for huge pages, where reading rows at random takes a third of the time.
    return np.frombuffer(data, np.uint8, offset=start).reshape(sizes).copy(), digest


def is_on_disk(name: str, root: Path) -> bool:
    """Whether `load_images` would find this set without a download."""
    if name == BINARIZED:
        return binary.is_on_disk(root)
    return name not in _IDX_SETS or all((root / _TORCHVISION[name] / "raw" / file).is_file() for file in _IDX_FILES)


def preparation_notice(source: str, root: Path, **_: Any) -> str:
    """The download that `load_images` would begin with, for a dry run; empty if there would be none."""
    if source not in DATASETS or is_on_disk(source, root):
        return ""
    fallback = "; if that fails, scikit-learn's digits would be used" if source == "auto" else ""
    return f"{_IDX_SETS.get(source, source)} is not in {root}: it would be downloaded{fallback}"


def _ensure_downloaded(name: str, root: Path) -> Path:
    """The folder with the four IDX files of `name`, downloaded first if one is missing."""
    folder, reason = root / _TORCHVISION[name] / "raw", ""
    with processes.local_main_first():
        if not is_on_disk(name, root):
            log.info(f"{_IDX_SETS[name]} is not in {folder}: downloading it")
            is_second = processes.torchrun_env("LOCAL_RANK")
            reason = "the first process has tried" if is_second else download(name, root)
    if not is_on_disk(name, root):
        raise RunError(f"{_IDX_SETS[name]} is not in {folder} and could not be downloaded ({reason}); put its files "
                       f"{', '.join(_IDX_FILES)} there, or use --dataset digits, which needs no download")  # fmt: skip
    return folder


def download(name: str, root: Path, timeout: float = 20.0) -> str:
    """Let torchvision download a set; why it failed, such as no byte for `timeout` seconds, or an empty string."""
    folder = root / _TORCHVISION[name] / "raw"
    return _downloading(
        lambda datasets: getattr(datasets, _TORCHVISION[name])(str(root), download=True), folder, timeout
    )


def download_file(address: str, path: Path) -> str:
    """Download one file; why it failed, or an empty string."""
    return _downloading(lambda datasets: datasets.utils.download_url(address, str(path.parent), path.name), path.parent)


def _downloading(action: Callable[[Any], Any], folder: Path, timeout: float = 20.0) -> str:
    """Why a download into `folder` failed, or an empty string; empty folders that it has made are removed."""
    if not (sys.stderr.isatty() and cli.is_verbose()):
        os.environ.setdefault("TQDM_DISABLE", "1")  # torchvision's bar has no switch of its own
    default, new = socket.getdefaulttimeout(), [each for each in (folder, folder.parent) if not each.exists()]
    socket.setdefaulttimeout(timeout)
    try:
        from torchvision import datasets

        action(datasets)
    except Exception as error:  # torchvision and the network may raise anything
        with contextlib.suppress(OSError):  # unless a folder holds something
            for each in new:
                each.rmdir()
        return textwrap.shorten(str(error), 200) or type(error).__name__
    finally:
        socket.setdefaulttimeout(default)
    return ""


def dataset_type(text: str) -> str:
    """An argparse type: the name of a known image set, or the path of a person's own images."""
    text = os.path.expanduser(text)
    if text not in DATASETS and not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither one of {', '.join(DATASETS)} nor a folder or .npy file")
    return text


# fmt: off
def add_data_flags(parser: argparse._ActionsContainer, stream: bool = False, default: str = "mnist") -> None:
    """Add the flags that select the images; `data_arguments` turns them into arguments of `load_images`."""
    parser.add_argument("--dataset", type=dataset_type, default=default, metavar="SET",
                        help="mnist, fashion-mnist, kmnist, digits, binarized-mnist (without labels), auto (mnist if "
                        "available, else digits), a folder of pictures whose sub-folders are the labels, or a .npy "
                        "file of images (N, H, W)")
    parser.add_argument("--data-root", type=cli.path, default="data", help="where known sets are, or are downloaded")
    parser.add_argument("--image-size", type=cli.integer(4, 128), default=28, metavar="N",
                        help="pixels along the side of the squares that images are resized to")
    parser.add_argument("--test-fraction", type=cli.number(0, 0.9, exclusive=True), metavar="X",
                        help="share of your own images used for testing (default: 0.1 but at most 10,000 images, or "
                        "the folder's own train and test)")
    parser.add_argument("--split-seed", type=cli.integer(0), default=0, metavar="N",
                        help="seed of the split of your own images into training and test images")
    if stream:
        parser.add_argument("--stream", choices=("auto", "on", "off"), default="auto",
                            help="leave your own training images in their file and read them during training; auto: "
                            "if the images would take more than a quarter of the memory")
# fmt: on


def data_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `load_images` that the flags give; UsageError for results among the pictures of a folder."""
    output = Path(args.output_dir or "outputs").resolve()
    if args.dataset not in DATASETS and output.is_relative_to(Path(args.dataset).resolve()):
        raise UsageError(f"{output}: lies in the folder of --dataset, where results would become images; use another "
                         f"--output-dir")  # fmt: skip
    return {"source": args.dataset, "root": args.data_root, "image_size": args.image_size,
            "test_fraction": args.test_fraction, "split_seed": args.split_seed,
            "stream": getattr(args, "stream", "off")}  # fmt: skip
