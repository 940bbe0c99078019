"""Images in a file as batches on the device: shuffled block by block, and read ahead by a thread."""

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from autoencoders.data.stored import Stored
from autoencoders.runtime import processes
from autoencoders.runtime.device import seed_for

S = TypeVar("S")
T = TypeVar("T")
_TOGETHER = 4096  # images, of whole batches, that are read in one go: the thread is to take a core seldom
_AHEAD = 2  # times so many are read ahead


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
        # Of so many that the blocks of a bundle, which the shares of all processes are spread over, are still held.
        most = min(_TOGETHER, self.images.pool * self.images.block) // processes.size()
        bundles, wanted = itertools.tee(together(order, most))
        made = ahead(gatherer(self.images), (torch.cat(bundle).numpy() for bundle in wanted))
        for bundle, images in zip(bundles, made):
            yield from torch.from_numpy(images).to(self.device).split([len(index) for index in bundle])


Images = Tensor | Streamed


def to_device(images: np.ndarray | Stored, device: torch.device) -> Images:
    """Images (n, 784) uint8 on the device: a tensor, not to be written to; of those in a file what stands for it."""
    if isinstance(images, Stored):
        return Streamed(images, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of arrays that cannot be written, which nobody does
        return torch.from_numpy(np.ascontiguousarray(images)).to(device)


def together(order: Iterable[Tensor], images: int) -> Iterator[list[Tensor]]:
    """The numbers of several batches at a time, of so many images at least."""
    bundle: list[Tensor] = []
    for index in order:
        bundle.append(index)
        if sum(map(len, bundle)) >= images:
            yield bundle
            bundle = []
    if bundle:
        yield bundle


def gatherer(images: Stored) -> Callable[[np.ndarray], np.ndarray]:
    """What gives the images of an array of numbers; the blocks read last, two pools of them, are kept."""
    slots = min(2 * images.pool, len(images.blocks))
    rows = np.empty((slots * images.block, images.pixels), np.uint8)
    slot_of = np.full(images.blocks.max() + 2, -1)  # the last is that of no block, number -1
    kept, turn = np.full(slots, -1), itertools.cycle(range(slots))

    def gather(index: np.ndarray) -> np.ndarray:
        blocks, places = images.locate(index)
        for block in np.unique(blocks[slot_of[blocks] < 0]):
            here = next(turn)
            slot_of[kept[here]], slot_of[block], kept[here] = -1, here, block
            images.read_block(block, rows[here * images.block : (here + 1) * images.block])
        slot = slot_of[blocks]
        if slot.min() < 0:  # from more than two pools
            return images[index]
        taken: np.ndarray = rows.take(slot * images.block + places, axis=0)
        return taken

    return gather


def ahead(make: Callable[[S], T], wanted: Iterable[S]) -> Iterator[T]:
    """What `make` makes of each thing wanted, a few ahead by a thread; what goes wrong there is raised here.

    `make` is not to use torch: a second thread that does has OpenMP start a second team of threads, more than there
    are cores, whose waiting for one another costs half of the speed. What is wanted is asked for here.
    """
    with ThreadPoolExecutor(1) as thread:  # leaving waits for those begun
        begun = (thread.submit(make, item) for item in wanted)
        waiting = deque(islice(begun, _AHEAD))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(islice(begun, 1))
            yield made
