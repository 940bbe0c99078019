"""Image sets as NumPy arrays: 28 x 28 grey levels, flattened to (N, 784) uint8, and labels (N,).

`load_images(source, root)` knows `mnist`, `fashion-mnist`, `kmnist` (IDX files under ROOT/<Set>/raw, downloaded by
torchvision when missing), `digits` (ships inside scikit-learn), `auto` (mnist when it can be had, else digits, saying
so), and one's own images by their path (see data/own.py). Another `image_size` than 28 gives as many other pixels
as 784, here and wherever the suite speaks of 784. The IDX files are read here: four lines of format, and it spares
every run the seconds and the memory that importing torchvision takes.
"""

import hashlib
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from autoencoders.data.stored import Stored
from autoencoders.runtime import cli, processes
from autoencoders.runtime.errors import Fault, Mistake
from autoencoders.runtime.files import read_bytes

IDX_SETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}  # torchvision's class names
DATASETS = (*IDX_SETS, "digits", "auto")
_PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SIDE = 28
_HASHED = 2**16  # images at a time
_PATIENCE = 20.0  # seconds without a byte after which a download is given up

Pixels = Any  # np.ndarray or Stored: length, shape and index are all that is asked of both


@dataclass(frozen=True)
class ImageSet:
    """Training and test images (N, 784) uint8 with labels (N,); `title` is for people, `name` for files.

    Images that do not fit into memory stay in their file: see data/stored.py.

    `origin` is what `load_images` takes to load the set again, in JSON types.
    """

    name: str
    title: str
    train_images: Pixels
    train_labels: np.ndarray
    test_images: Pixels
    test_labels: np.ndarray
    left_out: int | None = None  # the label that no training image has
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Pixels along an image's side."""
        return math.isqrt(self.train_images.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all pixels and labels, in order: two sets with the same one are the same set."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(str(array.shape).encode())
            for start in range(0, len(array), _HASHED):
                digest.update(np.ascontiguousarray(array[start : start + _HASHED]).data)
        return digest.hexdigest()

    def without(self, label: int) -> "ImageSet":
        """This set with all training images of one label left out; the test images stay whole."""
        kept = self.train_labels != label
        if isinstance(self.train_images, Stored):
            raise Mistake("--leave-out: needs the images in memory, and these are too large; see --stream")
        if kept.all() or not kept.any():
            raise Mistake(f"{self.title}: {'no' if kept.all() else 'every'} training image is of label {label}")
        return replace(
            self, title=f"{self.title} without {label}", left_out=label,
            train_images=self.train_images[kept], train_labels=self.train_labels[kept],
        )  # fmt: skip

    def epochs(self, epochs: int) -> int:
        """The passes that a recipe, which counts in passes over MNIST, needs over this set.

        A set forty times smaller gives forty times fewer steps per pass; ten times the passes is enough to
        make its reconstructions readable and stays quick.
        """
        return epochs * 10 if len(self.train_images) < 10_000 else epochs


def load_images(
    source: str, root: Path, image_size: int = _SIDE, test_fraction: float | None = None, split_seed: int = 0,
    stream: str = "auto",
) -> ImageSet:  # fmt: skip
    """The image set of the name, or path, `source`; IDX files are looked for, and downloaded to, below `root`.

    The next two say which of one's own images are set aside to test on, and `stream` (`auto`, `on`, `off`) whether
    they stay in their file; for a known set those are a Mistake.
    Raises Fault when the files are missing and cannot be downloaded, or are damaged.
    """
    if source not in DATASETS:
        from autoencoders.data.own import load_collection

        images = load_collection(Path(source), image_size, test_fraction, split_seed, stream, root)
        source = str(Path(source).resolve())
    elif test_fraction is not None or split_seed or stream == "on":
        raise Mistake(f"--test-fraction, --split-seed and --stream are for images of your own; {source} is a known set")
    else:
        images = _load_known(source, root, image_size)
        source = images.name
    if len(set(processes.gathered(images.fingerprint if processes.size() > 1 else ""))) > 1:
        raise Mistake(f"{images.title}: the processes of this run find other images under {source}; give all the same")
    return replace(images, origin={
        "source": source, "root": str(root.resolve()), "image_size": image_size, "test_fraction": test_fraction,
        "split_seed": split_seed, "stream": isinstance(images.train_images, Stored),
    })  # fmt: skip


def load_again(dataset: Mapping[str, Any], source: str | None = None, root: Path | None = None) -> ImageSet:
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
    except Fault as fault:
        print(f"warning: {fault}", file=sys.stderr)
        print("warning: MNIST IS NOT AVAILABLE: using the 1,797 digits of scikit-learn instead", file=sys.stderr)
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
    train_images, train_labels, test_images, test_labels = (_read_idx(folder / part, name) for part in _PARTS)
    for images, labels, part in ((train_images, train_labels, _PARTS[1]), (test_images, test_labels, _PARTS[3])):
        if len(images) != len(labels):
            raise Fault(_damaged(folder / part, f"{len(labels)} labels for {len(images)} images", name))
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
        raise Fault(_damaged(path, "it does not begin like an IDX file of images or labels", name))
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", rank, offset=4))
    if rank == 3 and shape[1:] != (_SIDE, _SIDE):
        raise Fault(_damaged(path, f"its images are {shape[1]} x {shape[2]}, not 28 x 28", name))
    stated = header + math.prod(shape)
    if shape[0] == 0 or len(data) != stated:
        raise Fault(_damaged(path, f"it has {len(data):,} bytes, not the {stated:,} that its header states", name))
    array = np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    if rank == 1 and array.max() > 9:
        raise Fault(_damaged(path, f"it holds a label {array.max()}, above 9", name))
    return array


def _damaged(path: Path, why: str, name: str) -> str:
    return f"{path}: is damaged: {why}; put a good copy there, or delete it to have {name} downloaded again"


def is_there(name: str, root: Path) -> bool:
    """Whether `load_images` would find this set without a download."""
    name = "mnist" if name == "auto" else name
    return name not in IDX_SETS or all((root / IDX_SETS[name] / "raw" / part).is_file() for part in _PARTS)


def would_download(name: str, root: Path) -> str:
    """What `load_images` would have to do first, for people; empty where the set is there, or is one's own."""
    if is_there(name, root):
        return ""
    else_digits = "; where that fails, the digits of scikit-learn would be taken" if name == "auto" else ""
    return f"{'mnist' if name == 'auto' else name} is not in {root}: it would be downloaded{else_digits}"


def _ensure_downloaded(name: str, root: Path) -> Path:
    """The folder with the four IDX files of `name`, unpacked or downloaded first where one is missing."""
    folder = root / IDX_SETS[name] / "raw"
    with processes.local_first():
        if not is_there(name, root):
            cli.note(f"{name} is not in {folder}: downloading it")
            tried = processes.launched("LOCAL_RANK")  # by the first process of this machine, in vain
            reason = "the first process has tried" if tried else _download(name, root, folder)
            if not is_there(name, root):
                raise Fault(
                    f"{name} is not in {folder} and could not be downloaded ({reason}); put its four files "
                    f"({', '.join(_PARTS)}) there, or use --dataset digits, which needs no download"
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

    socket.setdefaulttimeout(_PATIENCE)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    size, since = -1, time.monotonic()
    while thread.is_alive() and time.monotonic() - since < _PATIENCE:
        thread.join(0.2)
        seen = sum(file.stat().st_size for file in folder.glob("*")) if folder.is_dir() else 0
        if seen != size:
            size, since = seen, time.monotonic()
    return outcome[0] if outcome else f"no answer for {_PATIENCE:.0f} seconds"
