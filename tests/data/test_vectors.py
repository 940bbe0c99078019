"""Vectors in a .npy file become the same set in memory and in their file, or one line of error."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from autoencoders.data.batches import epoch_batches
from autoencoders.data.images import MappedImages
from autoencoders.data.vectors import load_vectors
from autoencoders.evaluation.metrics import to_pixels
from autoencoders.evaluation.pca import fit_pca
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.training.trainer import pixel_moments


@pytest.fixture
def file(tmp_path):
    """50 vectors of 7 numbers, the second number constant."""
    vectors = np.random.default_rng(0).normal(3, 10, (50, 7)).astype(np.float32)
    vectors[:, 1] = 5.005
    np.save(tmp_path / "vectors.npy", vectors)
    return tmp_path / "vectors.npy"


def load(path, stream="off"):
    return load_vectors(path, 0.1, 0, stream)


def test_vectors_keep_their_numbers_and_a_tenth_is_for_testing(file):
    vectors = load(file)
    assert len(vectors.test_images) == 5
    both = np.concatenate([vectors.train_images, vectors.test_images])
    assert sorted(map(tuple, both)) == sorted(map(tuple, np.load(file)))
    assert torch.equal(to_pixels(torch.tensor(both), "signed"), torch.tensor(both))


def test_streamed_vectors_are_those_in_memory(file):
    memory, streamed = load(file), load(file, "on")
    assert isinstance(streamed.train_images, MappedImages)
    assert memory.fingerprint == streamed.fingerprint
    numbers = [set(map(tuple, each.train_images[:])) for each in (memory, streamed)]
    assert numbers[0] == numbers[1]
    batches = torch.cat(list(epoch_batches(streamed.train_images, 8, 0, 0, torch.device("cpu"))))
    assert set(map(tuple, batches.tolist())) == {tuple(map(float, row)) for row in memory.train_images}


def test_moments_and_pca_are_in_the_units_of_the_vectors(file):
    vectors = load(file)
    for images in (vectors.train_images, load(file, "on").train_images):
        mean, deviation = pixel_moments(images)
        assert np.allclose(mean, vectors.train_images.mean(axis=0), atol=1e-4)
        assert np.allclose(deviation, vectors.train_images.std(axis=0), atol=1e-4) and deviation[1] == 0
    pca = fit_pca(vectors)
    assert pca.test_mse(vectors.test_images, 7) == pytest.approx(0, abs=1e-8)
    variances = np.linalg.eigvalsh(np.cov(vectors.train_images.T, ddof=0))[::-1]
    assert np.allclose(pca.cumulative_variance, np.cumsum(variances) / variances.sum(), atol=1e-5)
    few = replace(vectors, train_images=vectors.train_images[:4])  # fewer vectors than numbers
    assert np.allclose(fit_pca(few).mean, few.train_images.mean(axis=0), atol=1e-5)


def test_too_few_vectors_or_equal_ones_for_testing_are_refused(tmp_path):
    np.save(tmp_path / "v.npy", np.eye(4, 5))
    with pytest.raises(UsageError, match="gives 0 training and 4 test vectors"):
        load_vectors(tmp_path / "v.npy", 0.9, 0, "off")
    equal = np.full((40, 5), 0.1)  # but for one, which is a training vector
    equal[np.random.default_rng(0).permutation(40)[-1]] = 1
    np.save(tmp_path / "v.npy", equal)
    with pytest.raises(UsageError, match="must differ"):
        load(tmp_path / "v.npy")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((5, 4, 4), np.float32), "expected floats (N, d)"),
        (np.ones((50, 7), np.int64), "expected floats (N, d)"),
        (np.ones((2, 7)), "expected floats (N, d)"),
        (np.ones((50, 7)), "expected different ones"),
        (np.full((50, 7), np.nan), "nan"),
        (np.linspace(0, 1e9, 70).reshape(10, 7), "1e+09"),
    ],
)
def test_other_numbers_are_refused(tmp_path, array, words):
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(UsageError) as error:
        load(tmp_path / "v.npy")
    assert words in str(error.value)


def test_a_missing_or_damaged_file_is_named_and_only_float32_stays_in_its_file(tmp_path, file):
    with pytest.raises(RunError, match=r"none\.npy"):
        load(tmp_path / "none.npy")
    file.write_bytes(file.read_bytes()[:90])
    with pytest.raises(UsageError, match=r"whole \.npy file"):
        load(file)
    np.save(file, np.eye(4))
    assert load(file).train_images.dtype == np.float32
    with pytest.raises(UsageError, match="--stream off"):
        load(file, "on")
