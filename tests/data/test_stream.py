"""Images that stay in their file are the same images, each once an epoch, in an order close to uniform."""

import io
import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from sklearn.decomposition import PCA

from autoencoders.data import stored as stored_module
from autoencoders.data.sets import load_images
from autoencoders.data.stored import stored
from autoencoders.data.stream import BlockOrder, Streamed, ahead, to_device
from autoencoders.evaluation.pca import fit_pca
from autoencoders.recipes import RECIPES
from autoencoders.runtime.device import Precision
from autoencoders.runtime.errors import RunError
from autoencoders.training.report import measure
from autoencoders.training.trainer import Trainer

CPU = torch.device("cpu")
SMALL = RECIPES["denoising"].override({"hidden_sizes": (32,), "code_size": 8, "epochs": 2, "batch_size": 50})
ORDER = BlockOrder(count=100_003, block=83, pool=100, batch_size=64, seed=0, epoch=0)  # 12 pools, the last block short


@pytest.fixture
def file(tmp_path):
    """A file of 1,003 random images of 5 x 5 behind a few bytes, and what they are."""
    images = np.random.default_rng(0).integers(0, 256, (1003, 25), dtype=np.uint8)
    path = tmp_path / "images"
    path.write_bytes(b"header" + images.tobytes())
    return path, images


@pytest.fixture
def small(file, monkeypatch):
    """The file's images in blocks of 7, pools of 10 blocks; and what they are."""
    monkeypatch.setattr(stored_module, "_POOL", 10 * 7 * 25)
    path, images = file
    whole = stored(path.open("rb", buffering=0), str(path), 6, 1003, 25)
    return replace(whole, block=7, blocks=np.arange(144)), images


@pytest.fixture
def own(tmp_path, few, monkeypatch):
    """256 digits in a .npy file, left there, in blocks of 4 and pools of 16 blocks."""
    np.save(tmp_path / "own.npy", few.train_images.reshape(-1, 28, 28))
    monkeypatch.setattr(stored_module, "_POOL", 16 * 4 * 784)
    monkeypatch.setattr(stored_module, "_FEWEST", 64)
    return load_images(str(tmp_path / "own.npy"), tmp_path, stream="on")


def in_memory(images):
    """The same set as arrays."""
    return replace(images, train_images=images.train_images[:], test_images=images.test_images[:])


def trainer(images, **settings):
    recipe = SMALL.override(settings)
    torch.manual_seed(0)
    return Trainer(recipe.build(), recipe, images.train_images, images.test_images, CPU, Precision("off", CPU))


def timeless(row):
    return {name: value for name, value in row.items() if "second" not in name}


@pytest.mark.parametrize("part", [lambda x: x, lambda x: x.mixed(3), lambda x: x.split(0.3, 1)[0],
                                  lambda x: x.split(0.3, 1)[1], lambda x: x.part(100, 200).mixed(0)])  # fmt: skip
def test_stored_images_are_indexed_as_an_array_is(small, part):
    some, images = part(small[0]), small[1]
    first = (some.start - 6) // 25
    expected = images[first:][some.rows()]
    random = np.random.default_rng(0)
    numbers, mask = random.integers(0, len(some), 40), random.random(len(some)) < 0.2
    assert len(some) == len(expected) == len(np.unique(some.rows())) and some.shape == expected.shape
    for index in (slice(None), slice(5, 60), slice(-3, None), slice(9, 9), slice(0, None, 17), numbers, mask):
        assert np.array_equal(some[index], expected[index])


def test_a_split_takes_whole_blocks_from_all_over_the_file_and_leaves_no_image_out(small):
    train, test = small[0].split(0.3, 1)
    assert sorted([*train.rows(), *test.rows()]) == list(range(1003)) and len(test) == 43 * 7
    assert set(test.rows() // 7).isdisjoint(train.rows() // 7) and np.array_equal(train.rows(), np.sort(train.rows()))
    assert len(set(test.rows()[:10] // 7)) == 10  # what pictures show comes from ten places
    assert not np.array_equal(test.rows(), small[0].split(0.3, 2)[1].rows())


def test_streamed_images_are_those_a_tensor_would_give(small):
    some, images = small
    for part in (some, some.mixed(0)):
        streamed, held = to_device(part, CPU), torch.from_numpy(images[part.rows()])
        assert isinstance(streamed, Streamed) and len(streamed) == len(held)
        assert torch.equal(torch.cat(list(streamed.split(100))), held) and torch.equal(streamed[:10], held[:10])
        for order in (streamed.order(64, 0, 0), torch.randperm(1003).split(400)):  # kept to pools, and to nothing
            assert torch.equal(torch.cat(list(streamed.batches(order))), held[torch.cat(list(order))])


def test_a_block_is_read_once_an_epoch(small, monkeypatch):
    read = []
    monkeypatch.setattr(stored_module.Stored, "read_block", lambda self, number, into: read.append(number))
    streamed = Streamed(small[0], CPU)
    assert sum(len(batch) for batch in streamed.batches(streamed.order(64, 0, 0))) == 1003
    assert sorted(read) == list(range(144))


@pytest.mark.parametrize("settings", [{}, {"batch_size": 1}, {"batch_size": 2000}, {"block": 1}, {"pool": 10_000},
                                      {"count": 5, "batch_size": 5}, {"count": 1}], ids=str)  # fmt: skip
def test_every_image_comes_once_an_epoch_in_batches_of_one_size(settings):
    order = replace(ORDER, **{"count": 5003, "pool": 9, **settings})
    got = list(order)
    assert torch.equal(torch.cat(got).sort().values, torch.arange(order.count))
    assert len(order) == len(got) and {len(batch) for batch in got[:-1]} <= {order.batch_size}


def test_the_order_depends_on_seed_and_epoch_alone():
    def flat(**settings):
        return torch.cat(list(replace(ORDER, **settings)))

    torch.manual_seed(1)
    first = flat()
    torch.manual_seed(2)
    assert torch.equal(first, flat()) and torch.equal(first, flat(batch_size=7))
    assert not torch.equal(first, flat(epoch=1)) and not torch.equal(first, flat(seed=1))


def test_an_epoch_goes_on_from_any_step():
    whole = list(ORDER)
    for step in (0, 1, 700, len(whole) - 1, len(whole)):
        assert all(map(torch.equal, ORDER[step:], whole[step:])) and len(list(ORDER[step:])) == len(whole) - step


def places(order):
    """When in the epoch each image of the file comes."""
    when = np.empty(order.count)
    when[torch.cat(list(order)).numpy()] = np.arange(order.count)
    return when


def test_when_an_image_comes_says_nothing_about_where_it_lies():
    """Chance mixes blocks, 1,205 of them: Spearman's correlation has a standard deviation of 1 / sqrt(1205)."""
    lies = np.arange(ORDER.count)
    of_epochs = [np.corrcoef(lies, places(replace(ORDER, epoch=epoch)))[0, 1] for epoch in range(5)]
    assert np.abs(of_epochs).max() < 4 / 1205**0.5 and np.std(of_epochs) > 0


def test_neighbours_in_the_file_share_a_batch_as_often_as_any_two_images_of_a_pool():
    batch = places(ORDER) // 64
    together = np.mean(batch[:-1] == batch[1:])
    within, pool = 82 / 83, 8300  # they lie in one block; a batch is a random 64 of its pool
    expected = within * 63 / (pool - 1)
    assert abs(together - expected) < 5 * (expected / ORDER.count) ** 0.5
    unshuffled = np.arange(ORDER.count) // 64
    assert together < np.mean(unshuffled[:-1] == unshuffled[1:]) / 100


def test_batches_of_a_file_sorted_by_label_are_as_mixed_as_the_pool_is_large():
    """With labels in ten runs, the count of a label in a batch varies by sampling and by what the pool drew."""
    labels = np.arange(ORDER.count) * 10 // ORDER.count
    counts = np.stack([np.bincount(labels[batch], minlength=10) for batch in list(ORDER)[:-1]])
    uniform, of_pool = 64 * 0.1 * 0.9, 64**2 * 0.1 * 0.9 / ORDER.pool
    assert counts.var() == pytest.approx(uniform + of_pool, rel=0.25)


def test_training_on_a_file_is_training_on_its_images_in_the_same_order(own, monkeypatch):
    streamed, held = trainer(own), trainer(in_memory(own))
    monkeypatch.setattr(
        "autoencoders.training.trainer.batch_order", lambda *of: tuple(streamed.train_images.order(*of[1:]))
    )
    assert isinstance(streamed.train_images, Streamed) and isinstance(held.train_images, torch.Tensor)
    for one, other in zip(streamed.epochs(), held.epochs(), strict=True):
        assert timeless(one) == timeless(other)
    assert all(map(torch.equal, streamed.model.state_dict().values(), held.model.state_dict().values()))
    pca = fit_pca(own)
    assert timeless(measure(streamed, own, pca)) == timeless(measure(held, in_memory(own), pca))


def test_a_run_is_resumed_inside_of_an_epoch_to_the_same_bits(own):
    class Enough(Exception):
        pass

    def stop(epoch, step, steps, loss):
        if (epoch, step) == (2, 3):
            raise Enough

    whole, cut, resumed = trainer(own), trainer(own), trainer(own)
    list(whole.epochs())
    with pytest.raises(Enough):
        list(cut.epochs(stop))
    resumed.load_state_dict(cut.state_dict())
    list(resumed.epochs())
    assert whole.batch_losses == resumed.batch_losses
    assert all(map(torch.equal, whole.model.state_dict().values(), resumed.model.state_dict().values()))


def test_the_pca_of_a_file_is_that_of_its_images_bit_for_bit(own):
    one, other = fit_pca(own), fit_pca(in_memory(own))
    assert all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items())
    assert one.test_mse(own.test_images, 5) == other.test_mse(own.test_images[:], 5)
    assert fit_pca(own, max_samples=100).samples == 100


def test_the_pca_of_mnist_in_a_file_is_scikit_learns(mnist, tmp_path):
    np.save(tmp_path / "mnist.npy", mnist.train_images.reshape(-1, 28, 28))
    images = load_images(str(tmp_path / "mnist.npy"), tmp_path, stream="on")
    ours, theirs = fit_pca(images), PCA().fit(images.train_images[:] / 255)
    spectrum = np.cumsum(theirs.explained_variance_ratio_)
    assert np.allclose(ours.cumulative_variance, spectrum, rtol=1e-6, atol=0)
    assert ours.components_for(0.95) == np.searchsorted(spectrum, 0.95) + 1


def test_a_file_that_is_cut_short_while_it_is_read_is_a_fault(file):
    path, _ = file
    streamed = Streamed(stored(path.open("rb", buffering=0), str(path), 6, 1003, 25), CPU)
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(RunError, match="has become shorter"):
        list(streamed.split(10))
    with pytest.raises(RunError, match="has become shorter"):
        streamed[:]


def test_what_the_thread_raises_reaches_the_run_and_leaving_ends_the_thread():
    def make(number):
        if number == 20:
            raise RunError("the disk")
        return -number

    before = threading.active_count()
    got = ahead(make, range(100))
    assert list(islice(got, 20)) == [-number for number in range(20)]
    with pytest.raises(RunError, match="the disk"):
        next(got)
    left = ahead(make, iter(range(10**9)))
    assert next(left) == 0
    left.close()
    assert threading.active_count() == before


THREADS = """
import os, sys, torch
from autoencoders.data.stored import stored
from autoencoders.data.stream import Streamed
torch.set_num_threads(2)
torch.ones(10**6).add_(1)  # starts the team of this thread
images = Streamed(stored(open(sys.argv[1], "rb", buffering=0), "x", 0, 200_000, 16), torch.device("cpu"))
before = len(os.listdir("/proc/self/task"))
batches = images.batches(images.order(128, 0, 0))
next(batches)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts the threads in /proc")
def test_the_thread_that_reads_starts_no_second_team_of_computing_threads(tmp_path):
    """More threads than cores, waiting for one another, would take half of the speed."""
    (tmp_path / "images").write_bytes(bytes(200_000 * 16))
    done = run_script("-c", THREADS, tmp_path / "images", OMP_NUM_THREADS="2")
    assert done.stdout == "1\n", done.stderr


def test_a_read_that_comes_in_pieces_is_put_together(tmp_path):
    class Slow(io.FileIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:7])

    content = np.random.default_rng(0).integers(0, 256, (40, 25), dtype=np.uint8)
    (tmp_path / "images").write_bytes(content.tobytes())
    assert np.array_equal(stored(Slow(tmp_path / "images"), "x", 0, 40, 25)[:], content)
