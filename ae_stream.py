"""Images in a file as batches on the device: shuffled block by block, and read ahead by a thread."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ae_runtime import seed_for
from ae_stored import Stored

T = TypeVar("T")
_AHEAD = 16  # batches that are read ahead


@dataclass(frozen=True)
class BlockOrder:
    """The image numbers of each batch of an epoch over images in blocks, made as they are asked for.

    The blocks are permuted; the images of `pool` blocks at a time are permuted, and batches are cut off. So a block is
    read once an epoch, in one go, and its images meet those of blocks from all over the file. Every image comes once;
    the order depends on (seed, epoch) alone; `order[steps:]` is what is left after so many steps.
    """

    count: int
    block: int
    pool: int
    batch_size: int
    seed: int
    epoch: int

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __getitem__(self, part: slice) -> Iterator[Tensor]:
        return islice(self, part.start, part.stop)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed_for(self.seed, self.epoch))
        left = torch.empty(0, dtype=torch.long)
        for blocks in torch.randperm(-(-self.count // self.block), generator=generator).split(self.pool):
            numbers = (blocks[:, None] * self.block + torch.arange(self.block)).flatten()
            numbers = numbers[numbers < self.count]
            numbers = numbers[torch.randperm(len(numbers), generator=generator)]
            *whole, left = torch.cat((left, numbers)).split(self.batch_size)
            yield from whole
        yield left


class Streamed:
    """Images (n, 784) uint8 that stay in their file, in place of a tensor: what is taken of them is on the device."""

    def __init__(self, images: Stored, device: torch.device) -> None:
        self.images, self.device = images, device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        numbers = index if isinstance(index, slice) else index.cpu().numpy()
        return torch.from_numpy(self.images[numbers]).to(self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, so many at a time."""
        count = len(self)
        return self.batches(torch.arange(start, min(start + size, count)) for start in range(0, count, size))

    def order(self, batch_size: int, seed: int, epoch: int) -> BlockOrder:
        """The image numbers of each batch of an epoch."""
        return BlockOrder(len(self), self.images.block, self.images.pool, batch_size, seed, epoch)

    def batches(self, order: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each tensor of numbers; quick where they keep to two pools of blocks for a while."""
        for batch in ahead(gather(self.images, order)):
            yield torch.from_numpy(batch).to(self.device)


Images = Tensor | Streamed


def to_device(images: np.ndarray | Stored, device: torch.device) -> Images:
    """Images (n, 784) uint8 on the device: a tensor, not to be written to; of those in a file what stands for it."""
    if isinstance(images, Stored):
        return Streamed(images, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of arrays that cannot be written, which nobody does
        return torch.from_numpy(np.ascontiguousarray(images)).to(device)


def gather(images: Stored, order: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """The images of each tensor of numbers; the blocks read last, two pools of them, are kept."""
    slots = min(2 * images.pool, len(images.blocks))
    rows = np.empty((slots * images.block, images.pixels), np.uint8)
    slot_of = np.full(images.blocks.max() + 2, -1)  # the last is that of no block, number -1
    kept, turn = np.full(slots, -1), 0
    for index in order:
        blocks, places = images.locate(index.numpy())
        for block in np.unique(blocks[slot_of[blocks] < 0]):
            slot_of[kept[turn]], slot_of[block], kept[turn] = -1, turn, block
            images.read_block(block, rows[turn * images.block : (turn + 1) * images.block])
            turn = (turn + 1) % slots
        slot = slot_of[blocks]
        if slot.min() < 0:  # a batch from more than two pools
            yield images[index.numpy()]
        else:
            yield rows.take(slot * images.block + places, axis=0)


def ahead(made: Iterator[T]) -> Iterator[T]:
    """What `made` yields, made a few ahead by a thread; what goes wrong there is raised here."""
    with ThreadPoolExecutor(1) as thread:  # leaving waits for those begun
        waiting = deque(thread.submit(next, made, None) for _ in range(_AHEAD))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, made, None))
            yield item
