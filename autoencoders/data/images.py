"""An image set in memory or, for training images, in a .npy file. 784 pixels stand for any size of images."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from os import stat_result
from pathlib import Path
from typing import Any

import numpy as np

from autoencoders.runtime.errors import RunError, UsageError


@dataclass(frozen=True)
class MappedImages:
    """Images (n, pixels) uint8, or float32 vectors, that stay in a .npy file; an index works as for an array.

    `rows` are their numbers in the file. An index reads the images that it selects: a mapping of a file that someone
    shortens would end the process.
    """

    path: Path
    rows: np.ndarray
    pixels: int
    dtype: str = "uint8"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def row_bytes(self) -> int:
        return self.pixels * np.dtype(self.dtype).itemsize

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.pixels

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """The images, read from the file; RunError when it is not the file that was read first."""
        rows = self.rows[index]
        images, gaps = np.empty((len(rows), self.pixels), self.dtype), np.diff(rows)
        # Up to 1024 images that lie close to each other in the file are read in one piece.
        cuts = np.flatnonzero((gaps < 1) | (gaps > 8)) + 1
        edges = np.unique(np.concatenate((cuts, range(0, len(rows), 1024), [len(rows)])))
        try:
            first, now = self._first_status, self.path.stat()
            if (first.st_size, first.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
                raise ValueError("another size or time of change")
            with self.path.open("rb", buffering=0) as file:
                for start, end in pairwise(edges.tolist()):
                    low, high = int(rows[start]), int(rows[end - 1]) + 1
                    file.seek(self._offset + low * self.row_bytes)
                    data = file.read((high - low) * self.row_bytes)
                    images[start:end] = np.frombuffer(data, self.dtype).reshape(high - low, -1)[rows[start:end] - low]
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path}: is damaged or was changed ({error}); restore it and start again") from error
        return images

    @cached_property
    def _first_status(self) -> stat_result:
        return self.path.stat()

    @cached_property
    def _offset(self) -> int:
        """The position in the file of its first image, in bytes."""
        return np.load(self.path, mmap_mode="r", allow_pickle=False).offset


Images = np.ndarray | MappedImages


@dataclass(frozen=True)
class ImageSet:
    """Training and test images (N, 784) uint8 with labels (N,); `title` is for people, `name` for files.

    `source` holds, in JSON types, the arguments of `load_images` that load the set again.
    """

    name: str
    title: str
    train_images: Images
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    left_out: int | None = None  # the label that no training image has
    only: int | None = None  # the one label of all training images
    source: Mapping[str, Any] = field(default_factory=dict)

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
            for start in range(0, len(array), 4096):
                digest.update(np.ascontiguousarray(array[start : start + 4096]).data)
        return digest.hexdigest()

    def leaving_out(self, label: int) -> "ImageSet":
        """This set without the training images of one label; the test images stay complete."""
        return replace(self._training_on("--leave-out", label, "without"), left_out=label)

    def keeping_only(self, label: int) -> "ImageSet":
        """This set with the training images of one label alone; the test images stay complete."""
        return replace(self._training_on("--only", label, "only"), only=label)

    def _training_on(self, flag: str, label: int, word: str) -> "ImageSet":
        if isinstance(self.train_images, MappedImages):
            raise UsageError(f"{flag}: needs the training images in memory; use --stream off")
        has_label = self.train_labels == label
        if has_label.all() or not has_label.any():
            which, known = "every" if has_label.all() else "no", np.unique(self.train_labels)[:20].tolist()
            raise UsageError(f"{flag} {label}: {which} training image has this label; there are {known}")
        chosen = has_label if word == "only" else ~has_label
        title, images, labels = f"{self.title} {word} {label}", self.train_images[chosen], self.train_labels[chosen]
        return replace(self, title=title, train_images=images, train_labels=labels)

    def epochs(self, epochs: int) -> int:
        """A recipe's number of epochs, ten times as many for a set much smaller than MNIST."""
        return epochs * 10 if len(self.train_images) < 10_000 else epochs
