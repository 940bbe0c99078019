"""The batches of epoch e, in an order that depends on (seed, e) alone: from memory or a file."""

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from autoencoders.data.images import Images, MappedImages
from autoencoders.runtime.device import seed_for

T = TypeVar("T")

# Larger blocks are read faster; smaller blocks and larger pools mix the images of a sorted file better.
BLOCK = 2**16  # bytes of images that lie next to each other in the file and are read in one piece
POOL = 2**26  # bytes of images that are shuffled together; two pools are in memory


def to_device(images: Images, device: torch.device) -> Tensor | MappedImages:
    """Images (n, 784) uint8 as a tensor on the device, not to be written to; images in a file stay there."""
    if isinstance(images, MappedImages):
        return images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about arrays that are not writable
        return torch.from_numpy(np.ascontiguousarray(images)).to(device)


def epoch_batches(
    images: Tensor | MappedImages, batch_size: int, seed: int, epoch: int, device: torch.device,
    first: int = 0,
) -> Iterator[Tensor]:  # fmt: skip
    """The shuffled batches (batch_size, 784) uint8 of an epoch on the device, from number `first` on.

    The last may be smaller.
    """
    if isinstance(images, MappedImages):
        shuffled = prefetched(pools(images, seed, epoch, first * batch_size))
        yield from (torch.from_numpy(batch).to(device) for batch in cut(shuffled, batch_size))
        return
    order = batch_order(len(images), batch_size, seed, epoch)[first:]
    if order:
        one_transfer = torch.cat(order).to(images.device)
        yield from (images.index_select(0, index) for index in one_transfer.split(batch_size))  # faster than [index]


def batch_order(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The image numbers of each batch of an epoch: a permutation that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(seed_for(seed, epoch))
    return torch.randperm(count, generator=generator).split(batch_size)


def pools(
    images: MappedImages, seed: int, epoch: int, skip: int = 0, block_bytes: int = BLOCK, pool_bytes: int = POOL
) -> Iterator[np.ndarray]:
    """All images of an epoch but the first `skip`, shuffled, in pools (n, pixels).

    The blocks of the file are permuted, then the images of the next few blocks, a pool. Skipped pools are not read.
    """
    random = np.random.default_rng(seed_for(seed, epoch))
    block = max(1, block_bytes // images.row_bytes)
    starts = random.permutation(-(-len(images) // block)) * block
    blocks = max(1, pool_bytes // (block * images.row_bytes))
    for first in range(0, len(starts), blocks):
        rows = (np.sort(starts[first : first + blocks])[:, None] + np.arange(block)).ravel()
        rows = rows[rows < len(images)]
        order = random.permutation(len(rows))
        if skip < len(rows):
            yield images[rows][order[skip:]]
        skip = max(0, skip - len(rows))


def cut(pools: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Batches of one size from pools of any size; the rest of a pool begins the next batch."""
    parts: list[np.ndarray] = []  # of the next batch
    missing = batch_size
    for pool in pools:
        while len(pool):
            parts.append(pool[:missing])
            pool, missing = pool[missing:], missing - len(parts[-1])
            if not missing:
                yield np.concatenate(parts)
                parts, missing = [], batch_size
    if parts:
        yield np.concatenate(parts)


def prefetched(items: Iterable[T]) -> Iterator[T]:
    """The items, each computed by a thread while the previous one is in use; its exceptions are raised here.

    The items must not need torch: for a second thread OpenMP starts a second team of threads, at half the speed.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, iterator, end)
        while (item := future.result()) is not end:
            future = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]
