"""Images that do not fit into memory: they stay in their file and are read from it block by block, as they are needed.

They are read, not mapped: of a file that is cut short meanwhile a mapping makes a bus error, a read makes a RunError.
"""

import io
import math
import os
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from autoencoders.runtime.errors import RunError

# Measured on a cold virtual disk: blocks of 16 KB give 0.5, of 64 KB 0.8 of the speed of long reads. The smaller the
# block and the larger the pool, the closer the order of a sorted file comes to a uniform one (docs/streaming.md).
_BLOCK = 2**16  # bytes read in one go
_POOL = 2**26  # bytes of the blocks whose images are shuffled with one another; two pools are held
_FEWEST = 1000  # blocks of a file, for the choice among them; of few images a block is smaller
_SHARE = 4  # images that would take more than a quarter of the memory are not held in it


def memory() -> float:
    """Bytes of this machine's memory; infinite where it cannot be asked."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


def too_large(nbytes: int, stream: str) -> bool:
    """Whether so many bytes of pixels stay in a file: `on`, `off`, or `auto`, by this machine's memory."""
    return stream == "on" or (stream == "auto" and nbytes > memory() / _SHARE)


@dataclass(frozen=True)
class Stored:
    """Images (n, pixels) uint8 in a file: `len`, `shape` and an index, by slice, numbers or mask, are an array's.

    The `count` images behind byte `start` of the file lie in blocks of `block`; of those these are the numbers
    `blocks`, in this order; one that is shorter comes last. The images of `stripe` blocks at a time take turns.
    """

    file: io.FileIO
    name: str
    start: int
    count: int
    pixels: int
    block: int
    blocks: np.ndarray
    stripe: int = 1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        ends = (self.blocks[-1:] + 1) * self.block
        return len(self.blocks) * self.block - int((ends - self.count).clip(0).sum())

    @property
    def shape(self) -> tuple[int, int]:
        """(images, pixels)."""
        return len(self), self.pixels

    @property
    def pool(self) -> int:
        """Blocks whose images are shuffled with one another."""
        return max(1, _POOL // (self.block * self.pixels))

    def locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number in the file of each image's block, and the image's place in it."""
        group, rest = np.divmod(index, self.stripe * self.block)
        width = np.minimum(self.stripe, len(self) // self.block - group * self.stripe)  # whole blocks
        tail = rest >= width * self.block
        turn = np.where(tail, width, rest % np.maximum(width, 1))
        place = np.where(tail, rest - width * self.block, rest // np.maximum(width, 1))
        return self.blocks[group * self.stripe + turn], place

    def rows(self, index: slice | np.ndarray = slice(None)) -> np.ndarray:
        """The places in the file, counted in images."""
        numbers = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        block, place = self.locate(np.flatnonzero(numbers) if numbers.dtype == bool else numbers)
        rows: np.ndarray = block * self.block + place
        return rows

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        rows = self.rows(index)
        order = rows.argsort(kind="stable")
        images, read = np.empty((2, len(rows), self.pixels), np.uint8)
        cuts = np.flatnonzero(np.diff(rows[order]) != 1) + 1
        for first, end in zip([0, *cuts], [*cuts, len(rows)]):
            if end > first:
                self._read(rows[order[first]], read[first:end])
        images[order] = read
        return images

    def read_block(self, number: int, into: np.ndarray) -> None:
        """Read one block into the first rows of an array (block, pixels)."""
        self._read(number * self.block, into[: self.count - number * self.block])

    def _read(self, row: int, into: np.ndarray) -> None:
        try:
            with self._lock:  # the place and the reading belong together
                self.file.seek(self.start + int(row) * self.pixels)
                left = memoryview(into.data).cast("B")
                while len(left) and (read := self.file.readinto(left)):  # at most two gigabytes come at a time
                    left = left[read:]
        except OSError as error:
            raise RunError(f"{self.name}: cannot be read ({error.strerror}); check the disk") from error
        if len(left):
            raise RunError(f"{self.name}: has become shorter while it was read; put the whole file there and start again")

    def part(self, first: int, count: int) -> "Stored":
        """So many images from the `first` of the file on."""
        block = max(1, min(_BLOCK // self.pixels, count // _FEWEST))
        blocks = np.arange(-(-count // block))
        return replace(self, start=self.start + first * self.pixels, count=count, block=block, blocks=blocks)

    def split(self, share: float, seed: int) -> "tuple[Stored, Stored]":
        """All but a share of the blocks, and that share (one at least) from all over the file, as `seed` draws it."""
        order = np.random.default_rng(seed).permutation(self.count // self.block)
        tested = max(1, round(share * self.count / self.block))
        rest = np.append(order[tested:], self.blocks[len(order) :])
        return replace(self, blocks=np.sort(rest)), replace(self, blocks=order[:tested], stripe=self.pool)

    def mixed(self, seed: int) -> "Stored":
        """The same images in an order that `seed` draws, block by block, the first ones from all over the file."""
        order = np.random.default_rng(seed).permutation(self.count // self.block)
        return replace(self, blocks=np.append(order, self.blocks[len(order) :]), stripe=self.pool)


def stored(file: io.FileIO, name: str, start: int, count: int, pixels: int) -> Stored:
    """The `count` images behind byte `start` of an open file, in its order."""
    return Stored(file, name, start, count, pixels, 0, np.empty(0, int)).part(0, count)


def store(images: Iterable[np.ndarray], pixels: int, folder: Path) -> Stored:
    """Write images, each (pixels,) uint8, to a file without a name in `folder`, which ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (it lives as long as the images)
        with open(file.fileno(), "wb", closefd=False) as writer:
            for image in images:
                writer.write(image.data)
            count = writer.tell() // pixels
    except OSError as error:
        raise RunError(f"{folder}: cannot hold the images of another size ({error.strerror}); make room there, or name "
                    f"another --data-root") from error  # fmt: skip
    return stored(file, str(folder), 0, count, pixels)
