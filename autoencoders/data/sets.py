"""Image sets as NumPy arrays: 28 x 28 grey levels, flattened to (N, 784) uint8, and labels (N,).

`load_images(source, root)` knows `mnist`, `fashion-mnist`, `kmnist` (IDX files under ROOT/<Set>/raw, downloaded by
torchvision when missing), `digits` (ships inside scikit-learn), `auto` (mnist when it can be had, else digits, saying
so), and one's own images by their path (see data/own.py). Another `image_size` than 28 gives as many other pixels
as 784, here and wherever the suite speaks of 784. The IDX files are read here: four lines of format, and it spares
every run the seconds and the memory that importing torchvision takes.
"""

import argparse
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autoencoders.data.images import ImageSet, MappedImages
from autoencoders.runtime import cli, processes
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import read_bytes

log = logging.getLogger(__name__)

IDX_SETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}  # torchvision's class names
DATASETS = (*IDX_SETS, "digits", "auto")
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SIDE = 28
_TIMEOUT = 20.0  # seconds without a byte after which a download is given up

def load_images(
    source: str, root: Path, image_size: int = _SIDE, test_fraction: float | None = None, split_seed: int = 0,
    stream: str = "auto",
) -> ImageSet:  # fmt: skip
    """The image set of the name, or path, `source`; IDX files are looked for, and downloaded to, below `root`.

    The next two say which of one's own images are set aside to test on, and `stream` (`auto`, `on`, `off`) whether
    they stay in their file; for a known set those are a UsageError.
    Raises RunError when the files are missing and cannot be downloaded, or are damaged.
    """
    if source not in DATASETS:
        from autoencoders.data.own import load_collection

        images = load_collection(Path(source), image_size, test_fraction, split_seed, stream, root)
        source = str(Path(source).resolve())
    elif test_fraction is not None or split_seed or stream == "on":
        raise UsageError(f"--test-fraction, --split-seed and --stream are for images of your own; {source} is a known set")
    else:
        images = _load_known(source, root, image_size)
        source = images.name
    if len(set(processes.all_gather(images.fingerprint if processes.size() > 1 else ""))) > 1:
        raise UsageError(f"{images.title}: the processes find different images under {source}; give all the same ones")
    return replace(images, source={
        "source": source, "root": str(root.resolve()), "image_size": image_size, "test_fraction": test_fraction,
        "split_seed": split_seed, "stream": isinstance(images.train_images, MappedImages),
    })  # fmt: skip


def load_recorded(dataset: Mapping[str, Any], source: str | None = None, root: Path | None = None) -> ImageSet:
    """The image set that `dataset` in a run's record names; `source` and `root` say where it is by now."""
    found = {key: dataset[key] for key in ("image_size", "test_fraction", "split_seed") if key in dataset}
    found["stream"] = "on" if dataset.get("stream") is True else "off"  # the test part depends on it
    return load_images(source or dataset.get("source", dataset["name"]), root or Path(dataset["root"]), **found)


def _load_known(name: str, root: Path, side: int) -> ImageSet:
    if name == "digits":
        return _load_digits(side)
    if name != "auto":
        return _load_idx(name, root, side)
    try:
        _ensure_downloaded("mnist", root)
    except RunError as fault:
        log.warning(str(fault))
        log.warning("MNIST IS NOT AVAILABLE: using the 1,797 digits of scikit-learn instead")
        return replace(_load_digits(side), title="scikit-learn digits in place of MNIST")
    return _load_idx("mnist", root, side)


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Images (N, height, width) uint8 as (N, side * side); the array itself where they are of that size already."""
    from PIL import Image

    if images.shape[1:] != (side, side):
        sheets = (Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images)
        images = np.stack([np.asarray(sheet) for sheet in sheets])
    return images.reshape(len(images), -1)


def _load_digits(side: int) -> ImageSet:
    """scikit-learn's 8 x 8 digits, enlarged: 1,500 to train on, 297 to test on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = resized(np.rint(digits.images * (255 / 16)).astype(np.uint8), side)
    labels = digits.target.astype(np.uint8)
    return ImageSet("digits", "scikit-learn digits", images[:1500], labels[:1500], images[1500:], labels[1500:])


def _load_idx(name: str, root: Path, side: int) -> ImageSet:
    folder = _ensure_downloaded(name, root)
    train_images, train_labels, test_images, test_labels = (_read_idx(folder / part, name) for part in _IDX_FILES)
    for images, labels, part in ((train_images, train_labels, _IDX_FILES[1]), (test_images, test_labels, _IDX_FILES[3])):
        if len(images) != len(labels):
            raise RunError(_damaged(folder / part, f"{len(labels)} labels for {len(images)} images", name))
    title = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "kmnist": "KMNIST"}[name]
    train_images, test_images = resized(train_images, side), resized(test_images, side)
    return ImageSet(name, title, train_images, train_labels, test_images, test_labels)


def _read_idx(path: Path, name: str) -> np.ndarray:
    """One IDX file: two zero bytes, type 8 (uint8), the rank, the sizes as big-endian int32, then the bytes."""
    remedy = f"put a good copy there, or delete it to have {name} downloaded again"
    data = read_bytes(path, remedy)
    rank = 3 if "idx3" in path.name else 1
    header = 4 + 4 * rank
    if data[:4] != bytes((0, 0, 8, rank)) or len(data) < header:
        raise RunError(_damaged(path, "it does not begin like an IDX file of images or labels", name))
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", rank, offset=4))
    if rank == 3 and shape[1:] != (_SIDE, _SIDE):
        raise RunError(_damaged(path, f"its images are {shape[1]} x {shape[2]}, not 28 x 28", name))
    stated = header + math.prod(shape)
    if shape[0] == 0 or len(data) != stated:
        raise RunError(_damaged(path, f"it has {len(data):,} bytes, not the {stated:,} that its header states", name))
    array = np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    if rank == 1 and array.max() > 9:
        raise RunError(_damaged(path, f"it holds a label {array.max()}, above 9", name))
    return array


def _damaged(path: Path, why: str, name: str) -> str:
    return f"{path}: is damaged: {why}; put a good copy there, or delete it to have {name} downloaded again"


def is_on_disk(name: str, root: Path) -> bool:
    """Whether `load_images` would find this set without a download."""
    name = "mnist" if name == "auto" else name
    return name not in IDX_SETS or all((root / IDX_SETS[name] / "raw" / part).is_file() for part in _IDX_FILES)


def download_notice(name: str, root: Path) -> str:
    """What `load_images` would have to download first, for a dry run; empty for a set on disk or one's own images."""
    if is_on_disk(name, root):
        return ""
    fallback = "; if that fails, scikit-learn's digits would be used" if name == "auto" else ""
    return f"{'mnist' if name == 'auto' else name} is not in {root}: it would be downloaded{fallback}"


def _ensure_downloaded(name: str, root: Path) -> Path:
    """The folder with the four IDX files of `name`, unpacked or downloaded first where one is missing."""
    folder = root / IDX_SETS[name] / "raw"
    with processes.local_main_first():
        if not is_on_disk(name, root):
            log.info(f"{name} is not in {folder}: downloading it")
            tried = processes.torchrun_env("LOCAL_RANK")  # by the first process of this machine, in vain
            reason = "the first process has tried" if tried else _download(name, root, folder)
            if not is_on_disk(name, root):
                raise RunError(
                    f"{name} is not in {folder} and could not be downloaded ({reason}); put its four files "
                    f"({', '.join(_IDX_FILES)}) there, or use --dataset digits, which needs no download"
                )
    return folder


def _download(name: str, root: Path, folder: Path) -> str:
    """Let torchvision download and unpack the set; return why it failed, or an empty string.

    It runs in a daemon thread that is left behind when no byte has come for a while: neither a name server
    nor a web server that stays silent can hold the run, and a slow but living download is let finish.
    """
    outcome: list[str] = []

    def work() -> None:
        try:
            if not sys.stderr.isatty():
                os.environ.setdefault("TQDM_DISABLE", "1")  # torchvision's bar has no switch of its own
            from torchvision import datasets

            getattr(datasets, IDX_SETS[name])(str(root), download=True)
            outcome.append("")
        except Exception as error:  # whatever torchvision or the network raises is the reason we report
            outcome.append(" ".join(str(error).split())[:200] or type(error).__name__)

    socket.setdefaulttimeout(_TIMEOUT)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    size, since = -1, time.monotonic()
    while thread.is_alive() and time.monotonic() - since < _TIMEOUT:
        thread.join(0.2)
        seen = sum(file.stat().st_size for file in folder.glob("*")) if folder.is_dir() else 0
        if seen != size:
            size, since = seen, time.monotonic()
    return outcome[0] if outcome else f"no answer for {_TIMEOUT:.0f} seconds"


def dataset_type(text: str) -> str:
    """An argparse type: the name of a known image set, or the path of one's own."""
    if text not in DATASETS and not os.path.exists(text):
        known = ", ".join(DATASETS)
        raise argparse.ArgumentTypeError(f"{text!r} is neither one of {known} nor a folder or .npy file")
    return text


def add_data_flags(parser: argparse._ActionsContainer, stream: bool = False) -> None:
    """The flags that select the images; `data_arguments` turns them into arguments of `load_images`."""
    parser.add_argument("--dataset", type=dataset_type, default="mnist", metavar="SET",
                        help="mnist, fashion-mnist, kmnist, digits, auto (mnist if available, else digits), a folder "
                        "of pictures whose sub-folders are the labels, or a .npy file of (N, H, W) uint8")
    parser.add_argument("--data-root", type=Path, default=Path("data"),
                        help="where the known sets are, or are downloaded to")
    parser.add_argument("--image-size", type=cli.integer(4, 128), default=28, metavar="N",
                        help="pixels along the side of the squares that images are resized to")
    parser.add_argument("--test-fraction", type=cli.number(0, 0.9, exclusive=True), metavar="X",
                        help="share of one's own images used for testing (default: 0.1, at most 10,000 images, or the "
                        "folder's own train and test)")
    parser.add_argument("--split-seed", type=cli.integer(0), default=0, metavar="N",
                        help="seed of the split of one's own images into training and test images")
    if stream:
        parser.add_argument("--stream", choices=("auto", "on", "off"), default="auto",
                            help="read one's own training images from their file during training; auto: if they would "
                            "take more than a quarter of the memory")


def data_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `load_images` that the flags give."""
    return {"source": args.dataset, "root": args.data_root, "image_size": args.image_size,
            "test_fraction": args.test_fraction, "split_seed": args.split_seed,
            "stream": getattr(args, "stream", "off")}  # fmt: skip
