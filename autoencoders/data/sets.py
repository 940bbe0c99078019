"""Image sets by name: 28 x 28 grey levels, flattened to (N, 784) uint8, and labels (N,).

The names are `mnist`, `fashion-mnist` and `kmnist` (IDX files in ROOT/<Set>/raw, downloaded by torchvision if missing),
`digits` (inside scikit-learn), `auto` (MNIST if available, else digits with a warning), and any path of a person's own
images (see data/own.py). An image size other than 28 gives another number of pixels than 784, here and wherever the
suite says 784. The IDX files are read here: the format takes four lines, and importing torchvision takes seconds.
"""

import argparse
import logging
import math
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autoencoders.data.images import ImageSet, MappedImages
from autoencoders.data.own import load_own_images
from autoencoders.data.pictures import resized
from autoencoders.runtime import cli, processes
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import read_bytes

log = logging.getLogger(__name__)

IDX_SETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}  # torchvision's class names
DATASETS = (*IDX_SETS, "digits", "auto")
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SIDE = 28


def load_images(
    source: str, root: Path, image_size: int = _SIDE, test_fraction: float | None = None, split_seed: int = 0,
    stream: str = "auto",
) -> ImageSet:  # fmt: skip
    """The image set with the name, or at the path, `source`; IDX files are read from, or downloaded to, `root`.

    `test_fraction` and `split_seed` select the test images among a person's own images, and `stream` (`auto`, `on`,
    `off`) says whether the training images stay in their file; for a known set they are a UsageError.
    Raises RunError for files that are missing and cannot be downloaded, or are damaged.
    """
    if source not in DATASETS:
        images = load_own_images(Path(source), image_size, test_fraction, split_seed, stream, root)
        source = str(Path(source).resolve())
    elif test_fraction is not None or split_seed or stream == "on":
        raise UsageError(f"--test-fraction, --split-seed and --stream are for your own images; {source} is a known set")
    else:
        images = _load_known(source, root, image_size)
        source = images.name
    if processes.size() > 1 and processes.on_main(lambda: images.fingerprint) != images.fingerprint:
        raise UsageError(f"{images.title}: the processes find different images at {source}; give all of them the same")
    return replace(images, source={
        "source": source, "root": str(root.resolve()), "image_size": image_size, "test_fraction": test_fraction,
        "split_seed": split_seed, "stream": isinstance(images.train_images, MappedImages),
    })  # fmt: skip


def load_recorded(dataset: Mapping[str, Any], source: str | None = None, root: Path | None = None) -> ImageSet:
    """The image set described by `dataset` in a run's record; `source` and `root` replace locations that changed."""
    arguments = {key: dataset[key] for key in ("image_size", "test_fraction", "split_seed") if key in dataset}
    arguments["stream"] = "on" if dataset.get("stream") is True else "off"  # the order of the images depends on it
    return load_images(source or dataset.get("source", dataset["name"]), root or Path(dataset["root"]), **arguments)


def _load_known(name: str, root: Path, side: int) -> ImageSet:
    if name == "digits":
        return _load_digits(side)
    if name != "auto":
        return _load_idx(name, root, side)
    try:
        _ensure_downloaded("mnist", root)
    except RunError as error:
        log.warning(str(error))
        log.warning("MNIST IS NOT AVAILABLE: using the 1,797 digits of scikit-learn instead")
        return replace(_load_digits(side), title="scikit-learn digits in place of MNIST")
    return _load_idx("mnist", root, side)


def _load_digits(side: int) -> ImageSet:
    """scikit-learn's 8 x 8 digits, enlarged: 1,500 for training, 297 for testing."""
    from sklearn.datasets import load_digits  # takes a second, and only this set needs it

    digits = load_digits()
    images = resized(np.rint(digits.images * (255 / 16)).astype(np.uint8), side)
    labels = digits.target.astype(np.uint8)
    return ImageSet("digits", "scikit-learn digits", images[:1500], labels[:1500], images[1500:], labels[1500:])


def _load_idx(name: str, root: Path, side: int) -> ImageSet:
    folder = _ensure_downloaded(name, root)
    train_images, train_labels, test_images, test_labels = (_read_idx(folder / part, name) for part in _IDX_FILES)
    for images, labels, part in ((train_images, train_labels, 1), (test_images, test_labels, 3)):
        if len(images) != len(labels):
            raise RunError(_damaged(folder / _IDX_FILES[part], f"{len(labels)} labels for {len(images)} images", name))
    title = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "kmnist": "KMNIST"}[name]
    train_images, test_images = resized(train_images, side), resized(test_images, side)
    return ImageSet(name, title, train_images, train_labels, test_images, test_labels)


def _read_idx(path: Path, name: str) -> np.ndarray:
    """One IDX file: two zero bytes, type 8 (uint8), the rank, the sizes as big-endian int32, then the bytes."""
    data = read_bytes(path, _hint(name))
    rank = 3 if "idx3" in path.name else 1
    header = 4 + 4 * rank
    if data[:4] != bytes((0, 0, 8, rank)) or len(data) < header:
        raise RunError(_damaged(path, "it does not begin like an IDX file of images or labels", name))
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", rank, offset=4))
    if rank == 3 and shape[1:] != (_SIDE, _SIDE):
        raise RunError(_damaged(path, f"its images are {shape[1]} x {shape[2]}, not 28 x 28", name))
    expected = header + math.prod(shape)
    if shape[0] == 0 or len(data) != expected:
        raise RunError(_damaged(path, f"it has {len(data):,} bytes, its header says {expected:,}", name))
    array = np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    if rank == 1 and array.max() > 9:
        raise RunError(_damaged(path, f"it has a label {array.max()}, above 9", name))
    return array


def _damaged(path: Path, reason: str, name: str) -> str:
    return f"{path}: is damaged: {reason}; {_hint(name)}"


def _hint(name: str) -> str:
    return f"put a good copy there, or delete it to download {name} again"


def is_on_disk(name: str, root: Path) -> bool:
    """Whether `load_images` would find this set without a download."""
    name = "mnist" if name == "auto" else name
    return name not in IDX_SETS or all((root / IDX_SETS[name] / "raw" / part).is_file() for part in _IDX_FILES)


def download_notice(name: str, root: Path) -> str:
    """The download that `load_images` would need, for a dry run; empty for a set on disk and a person's own images."""
    if is_on_disk(name, root):
        return ""
    fallback = "; if that fails, scikit-learn's digits would be used" if name == "auto" else ""
    return f"{'mnist' if name == 'auto' else name} is not in {root}: it would be downloaded{fallback}"


def _ensure_downloaded(name: str, root: Path) -> Path:
    """The folder with the four IDX files of `name`, downloaded first if one is missing."""
    folder = root / IDX_SETS[name] / "raw"
    with processes.local_main_first():
        if not is_on_disk(name, root):
            log.info(f"{name} is not in {folder}: downloading it")
            tried = processes.torchrun_env("LOCAL_RANK")  # by the first process of this machine, in vain
            reason = "the first process has tried" if tried else download(name, root)
            if not is_on_disk(name, root):
                raise RunError(
                    f"{name} is not in {folder} and could not be downloaded ({reason}); put its four files "
                    f"({', '.join(_IDX_FILES)}) there, or use --dataset digits, which needs no download"
                )
    return folder


def download(name: str, root: Path, timeout: float = 20.0) -> str:
    """Let torchvision download and unpack a set; the reason why it failed, or an empty string.

    A server that sends no byte for `timeout` seconds is given up; a slow download goes on.
    """
    if not (sys.stderr.isatty() and cli.is_verbose()):
        os.environ.setdefault("TQDM_DISABLE", "1")  # torchvision's bar has no switch of its own
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        from torchvision import datasets

        getattr(datasets, IDX_SETS[name])(str(root), download=True)
    except Exception as error:  # torchvision and the network may raise anything
        return " ".join(str(error).split())[:200] or type(error).__name__
    finally:
        socket.setdefaulttimeout(default)
    return ""


def dataset_type(text: str) -> str:
    """An argparse type: the name of a known image set, or the path of a person's own images."""
    if text not in DATASETS and not os.path.exists(text):
        known = ", ".join(DATASETS)
        raise argparse.ArgumentTypeError(f"{text!r} is neither one of {known} nor a folder or .npy file")
    return text


# fmt: off
def add_data_flags(parser: argparse._ActionsContainer, stream: bool = False) -> None:
    """Add the flags that select the images; `data_arguments` turns them into arguments of `load_images`."""
    parser.add_argument("--dataset", type=dataset_type, default="mnist", metavar="SET",
                        help="mnist, fashion-mnist, kmnist, digits, auto (mnist if available, else digits), a folder "
                        "of pictures whose sub-folders are the labels, or a .npy file of (N, H, W) uint8")
    parser.add_argument("--data-root", type=Path, default=Path("data"),
                        help="where the known sets are, or are downloaded to")
    parser.add_argument("--image-size", type=cli.integer(4, 128), default=_SIDE, metavar="N",
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
    """The arguments of `load_images` that the flags give."""
    return {"source": args.dataset, "root": args.data_root, "image_size": args.image_size,
            "test_fraction": args.test_fraction, "split_seed": args.split_seed,
            "stream": getattr(args, "stream", "off")}  # fmt: skip
