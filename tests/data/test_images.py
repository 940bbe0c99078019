"""An image set is identified by its pixels and labels; images that stay in a file behave like an array of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoencoders.data.images import MappedImages
from autoencoders.runtime.errors import RunError, UsageError


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The path of 100 random images of 5 x 5, and the images."""
    images = np.random.default_rng(0).integers(0, 256, (100, 5, 5), dtype=np.uint8)
    path = tmp_path_factory.mktemp("mapped") / "images.npy"
    np.save(path, images)
    return path, images.reshape(100, 25)


def test_one_changed_pixel_changes_the_fingerprint_and_nothing_else_does(digits):
    other = digits.test_images.copy()
    other[-1, -1] ^= 1
    assert replace(digits, test_images=other).fingerprint != digits.fingerprint
    assert replace(digits, title="another title").fingerprint == digits.fingerprint
    swapped = replace(digits, train_labels=digits.train_labels[::-1].copy())
    assert swapped.fingerprint != digits.fingerprint


def test_a_small_set_gets_more_epochs(digits):
    assert digits.epochs(10) > 10
    assert replace(digits, train_images=np.zeros((60_000, 1), np.uint8)).epochs(10) == 10


def test_a_set_without_a_label_has_it_in_no_training_image_and_its_test_images_whole(digits):
    fewer = digits.leaving_out(4)
    assert 4 not in fewer.train_labels and len(fewer.train_labels) == (digits.train_labels != 4).sum()
    assert np.array_equal(fewer.train_images, digits.train_images[digits.train_labels != 4])
    assert fewer.test_images is digits.test_images and fewer.left_out == 4 and "without 4" in fewer.title
    assert len({digits.fingerprint, fewer.fingerprint, digits.leaving_out(5).fingerprint}) == 3


def test_a_label_that_is_not_there_cannot_be_left_out(digits):
    with pytest.raises(UsageError, match="no training image"):
        digits.leaving_out(4).leaving_out(4)


@settings(deadline=None)
@given(st.data())
def test_mapped_images_are_indexed_as_an_array_is(file, data):
    path, images = file
    rows = np.array(data.draw(st.lists(st.integers(0, 99), unique=True)), np.int32)
    mapped, array = MappedImages(path, rows, 25), images[rows]
    assert len(mapped) == len(array) and mapped.shape == array.shape
    numbers = st.lists(st.integers(0, max(0, len(rows) - 1)), max_size=20 * bool(len(rows)))
    for index in (data.draw(st.slices(len(rows))), np.array(data.draw(numbers), int), rows % 2 == 0):
        found = mapped[index]
        assert type(found) is np.ndarray and np.array_equal(found, array[index])


def test_the_fingerprint_of_mapped_images_is_that_of_the_array(digits, tmp_path):
    np.save(tmp_path / "a.npy", digits.train_images.reshape(-1, 28, 28))
    mapped = MappedImages(tmp_path / "a.npy", np.arange(1500), 784)
    assert replace(digits, train_images=mapped).fingerprint == digits.fingerprint


CHANGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "replaced by fewer images": lambda path: np.save(path, np.zeros((50, 5, 5), np.uint8)),
    "written anew": lambda path: path.write_bytes(path.read_bytes()),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_file_that_changes_while_it_is_used_is_an_error_that_names_it(tmp_path, change):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((100, 5, 5), np.uint8))
    mapped = MappedImages(path, np.arange(100), 25)
    assert len(mapped[:10]) == 10
    change(path)
    with pytest.raises(RunError, match=rf"^{path}: "):
        mapped[:10]


def test_mapped_images_leave_out_no_label(digits, file):
    with pytest.raises(UsageError, match="--stream off"):
        replace(digits, train_images=MappedImages(file[0], np.arange(100), 25)).leaving_out(4)
