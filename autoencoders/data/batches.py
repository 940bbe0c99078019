"""The batches of an epoch, on the device: from memory, from DataLoader workers, or from a mapped file.

The order of the images in epoch e depends on (seed, e) alone.
"""

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from autoencoders.data.images import Images, MappedImages
from autoencoders.runtime.device import seed_for

T = TypeVar("T")

# Measured on a cold virtual disk: reads of 16 KB reach 0.5, of 64 KB 0.8 of the speed of long reads. Smaller blocks and
# larger pools bring the order of a sorted file closer to a uniform one (docs/streaming.md).
BLOCK = 2**16  # bytes read in one piece
POOL = 2**26  # bytes of the blocks whose images are shuffled together; two pools are held


def to_device(images: Images, device: torch.device) -> Tensor | MappedImages:
    """Images (n, 784) uint8 as a tensor on the device, not to be written to; a mapped file stays what it is."""
    if isinstance(images, MappedImages):
        return images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about arrays that are not writable
        return torch.from_numpy(np.ascontiguousarray(images)).to(device)


def epoch_batches(
    images: Tensor | MappedImages, batch_size: int, seed: int, epoch: int, device: torch.device,
    first: int = 0, workers: int = 0,
) -> Iterator[Tensor]:  # fmt: skip
    """The uint8 batches (batch_size, 784) of an epoch from batch `first` on, shuffled; the last may be smaller."""
    if isinstance(images, MappedImages):
        batches = cut(prefetched(pools(images, seed, epoch)), batch_size)
        yield from (torch.from_numpy(batch).to(device) for batch in islice(batches, first, None))
        return
    order = batch_order(len(images), batch_size, seed, epoch)[first:]
    if workers:
        # The loader gets a generator of its own: it must not draw from the models' noise.
        loader = torch.utils.data.DataLoader(
            _Batches(images), sampler=order, batch_size=None, num_workers=workers, generator=torch.Generator()
        )
        yield from (batch.to(device, non_blocking=True) for batch in loader)
    elif order:
        on_device = torch.cat(order).to(images.device).split([len(index) for index in order])  # one transfer for all
        yield from (images[index] for index in on_device)


def batch_order(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The image numbers of each batch of an epoch: a permutation that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(seed_for(seed, epoch))
    return torch.randperm(count, generator=generator).split(batch_size)


class _Batches(torch.utils.data.Dataset[Tensor]):
    """Images as a data set indexed by whole batches: an index tensor in, the batch out."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __getitem__(self, index: Any) -> Tensor:
        return self.images[index]


def pools(
    images: MappedImages, seed: int, epoch: int, block_bytes: int = BLOCK, pool_bytes: int = POOL
) -> Iterator[np.ndarray]:
    """All images in pools of shuffled blocks; each block is read once, in one piece."""
    random = np.random.default_rng(seed_for(seed, epoch))
    block = max(1, block_bytes // images.pixels)
    starts = random.permutation(-(-len(images) // block)) * block
    together = max(1, pool_bytes // (block * images.pixels))
    for first in range(0, len(starts), together):
        chosen = np.sort(starts[first : first + together])
        rows = np.concatenate([np.arange(start, min(start + block, len(images))) for start in chosen])
        yield images[rows][random.permutation(len(rows))]


def cut(pools: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Batches of one size from pools of any size; the rest of a pool begins the next batch."""
    rest: np.ndarray | None = None
    for pool in pools:
        pool = pool if rest is None else np.concatenate((rest, pool))
        whole = len(pool) // batch_size * batch_size
        yield from np.split(pool[:whole], whole // batch_size) if whole else ()
        rest = pool[whole:]
    if rest is not None and len(rest):
        yield rest


def prefetched(items: Iterable[T]) -> Iterator[T]:
    """The items, each computed by a thread while the previous one is in use; its exception is raised here.

    The thread should not compute with torch: a second thread makes OpenMP start a second team of threads, which
    costs half of the speed.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]
