"""Every image comes once per epoch, in an order that depends on (seed, epoch) alone, from memory or a file."""

import threading
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_trainer, run_script, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from autoencoders.data.batches import cut, epoch_batches, pools, prefetched, to_device
from autoencoders.data.images import MappedImages
from autoencoders.data.sets import load_images
from autoencoders.runtime.errors import RunError

CPU = torch.device("cpu")
COUNT, BLOCK, POOL = 100_003, 83, 8300  # images: of the file (the last block is short), of a block, of a pool


@dataclass(frozen=True)
class Recorded(MappedImages):
    """Mapped images that record the rows of each read."""

    reads: list = field(default_factory=list)

    def __getitem__(self, index):
        self.reads.append(index)
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A function that gives the first n images of a file; the four bytes of each are its number."""
    path = tmp_path_factory.mktemp("numbered") / "images.npy"
    np.save(path, np.arange(COUNT, dtype="<u4").view(np.uint8).reshape(COUNT, 2, 2))
    return lambda count=COUNT: Recorded(path, np.arange(count, dtype=np.int32), 4)


def order(images, seed=0, epoch=0, block=BLOCK, pool=POOL, **settings):
    """The image numbers of each pool of an epoch."""
    found = pools(images, seed, epoch, block_bytes=4 * block, pool_bytes=4 * pool, **settings)
    return [np.ascontiguousarray(images).view("<u4").ravel() for images in found]


sizes = st.integers(1, 300)


@settings(deadline=None)
@given(count=sizes, block=sizes, pool=sizes, batch_size=sizes, skipped=st.integers(0, 5))
def test_every_image_comes_once_in_batches_of_one_size_from_any_batch_on(
    numbered, count, block, pool, batch_size, skipped
):
    def batches(skip):
        return list(cut(order(numbered(count), block=block, pool=pool, skip=skip * batch_size), batch_size))

    whole = batches(0)
    assert sorted(np.concatenate(whole)) == list(range(count))
    assert all(len(batch) == batch_size for batch in whole[:-1]) and 1 <= len(whole[-1]) <= batch_size
    resumed = batches(skipped)
    assert len(resumed) == len(whole[skipped:]) and all(map(np.array_equal, resumed, whole[skipped:]))


def test_the_order_depends_on_seed_and_epoch_alone(numbered):
    first, *others = (np.concatenate(order(numbered(), *which)) for which in ((0, 0), (0, 0), (0, 1), (1, 0)))
    assert [np.array_equal(first, other) for other in others] == [True, False, False]


def test_each_block_is_read_once_in_one_piece_and_skipped_pools_are_not_read(numbered):
    images = numbered()
    assert len(order(images)) == 13
    assert sorted(np.concatenate(images.reads)) == list(range(COUNT))
    for rows in images.reads:
        assert (np.diff(rows) > 0).all() and len(rows) <= POOL
        blocks, counts = np.unique(rows // BLOCK, return_counts=True)
        assert set(counts[blocks != COUNT // BLOCK]) == {BLOCK}
    resumed = numbered()
    order(resumed, skip=COUNT - 10)
    assert len(resumed.reads) == 1


def positions(images, **settings):
    """The position in the epoch of each image of the file."""
    position = np.empty(COUNT)
    position[np.concatenate(order(images, **settings))] = np.arange(COUNT)
    return position


def test_the_position_in_an_epoch_is_uncorrelated_with_the_position_in_the_file(numbered):
    """Blocks are permuted at random, 1,205 of them: the correlation has a standard deviation of 1 / sqrt(1205)."""
    found = [np.corrcoef(np.arange(COUNT), positions(numbered(), epoch=epoch))[0, 1] for epoch in range(5)]
    assert np.abs(found).max() < 4 / 1205**0.5 and np.std(found) > 0


def test_neighbours_in_the_file_share_a_batch_as_often_as_any_two_images_of_a_pool(numbered):
    batch = positions(numbered()) // 64
    together = np.mean(batch[:-1] == batch[1:])
    expected = (BLOCK - 1) / BLOCK * 63 / (POOL - 1)  # they lie in one block; a batch is a random 64 of its pool
    assert abs(together - expected) < 5 * (expected / COUNT) ** 0.5
    unshuffled = np.arange(COUNT) // 64
    assert together < np.mean(unshuffled[:-1] == unshuffled[1:]) / 100


def test_batches_of_a_file_sorted_by_label_are_as_mixed_as_the_pool_is_large(numbered):
    """With labels in ten runs, the count of a label in a batch varies by sampling and by the blocks of the pool."""
    labels = np.arange(COUNT) * 10 // COUNT
    batches = list(cut(order(numbered()), 64))[:-1]
    counts = np.stack([np.bincount(labels[batch], minlength=10) for batch in batches])
    uniform, of_pool = 64 * 0.1 * 0.9, 64**2 * 0.1 * 0.9 / (POOL // BLOCK)
    assert counts.var() == pytest.approx(uniform + of_pool, rel=0.25)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory, few):
    """Digits in a file of their own: 230 training images that stay there, 26 test images."""
    path = tmp_path_factory.mktemp("streamed") / "own.npy"
    np.save(path, few.train_images.reshape(-1, 28, 28))
    return load_images(str(path), path.parent, stream="on")


@pytest.mark.parametrize("source", ["file", "memory"])
def test_every_source_gives_all_images_and_starts_at_any_batch(streamed, source):
    held = streamed.train_images[:]
    images = to_device(streamed.train_images if source == "file" else held, CPU)

    def batches(first):
        return list(epoch_batches(images, 50, 0, 3, CPU, first=first))

    whole = batches(0)
    assert [len(batch) for batch in whole] == [50, 50, 50, 50, 30]
    assert sorted(map(bytes, torch.cat(whole).numpy())) == sorted(map(bytes, held))
    assert same_bits(batches(3), whole[3:]) and batches(5) == []


def test_a_run_on_a_file_resumes_inside_an_epoch_to_the_same_bits(streamed):
    class Enough(Exception):
        pass

    def stop(epoch, step, steps, loss):
        if (epoch, step) == (2, 3):
            raise Enough

    small = {"hidden_sizes": (16,), "code_size": 4, "epochs": 2, "batch_size": 50}
    whole, stopped, resumed = (make_trainer("denoising", streamed, **small) for _ in range(3))
    list(whole.epochs())
    with pytest.raises(Enough):
        list(stopped.epochs(stop))
    resumed.load_state_dict(stopped.state_dict())
    list(resumed.epochs())
    assert whole.batch_losses == resumed.batch_losses
    assert same_bits(whole.model.state_dict(), resumed.model.state_dict())


def test_an_exception_of_the_reading_thread_reaches_the_reader_and_closing_ends_the_thread():
    def items(end):
        yield from range(end)
        raise RunError("the disk")

    before = threading.active_count()
    found = prefetched(items(20))
    assert list(islice(found, 20)) == list(range(20))
    with pytest.raises(RunError, match="the disk"):
        next(found)
    unfinished = prefetched(items(10**9))
    assert next(unfinished) == 0
    unfinished.close()
    assert threading.active_count() == before


THREADS = """
import os, sys, numpy, torch
from pathlib import Path
from autoencoders.data.batches import epoch_batches
from autoencoders.data.images import MappedImages
torch.set_num_threads(2)
torch.ones(10**6).add_(1)  # starts the computing threads of this thread
images = MappedImages(Path(sys.argv[1]), numpy.arange(200_000), 16)
before = len(os.listdir("/proc/self/task"))
batches = epoch_batches(images, 128, 0, 0, torch.device("cpu"))
next(batches)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts the threads in /proc")
def test_the_reading_thread_starts_no_second_team_of_computing_threads(tmp_path):
    """More threads than cores, waiting for one another, would halve the speed."""
    np.save(tmp_path / "images.npy", np.zeros((200_000, 4, 4), np.uint8))
    done = run_script("-c", THREADS, tmp_path / "images.npy", OMP_NUM_THREADS="2")
    assert done.stdout == "1\n", done.stderr
