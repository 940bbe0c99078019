"""Binary images: a fixed draw with the right frequencies, and the published static set from its text files."""

import gzip

import numpy as np
import pytest

from autoencoders.data import binary
from autoencoders.data.binary import binarized, load_binarized, static_draw
from autoencoders.runtime.errors import RunError, UsageError


def no_network(address, path):
    return "no network"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with small files in the published form."""
    monkeypatch.setattr(binary, "_FILES", {"train": 30, "test": 20})
    (tmp_path / "binarized").mkdir()
    random = np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 20)):
        rows = random.integers(0, 2, (count, 784))
        text = "".join(" ".join(map(str, row)) + " \n" for row in rows)
        (tmp_path / "binarized" / f"binarized_mnist_{part}.amat").write_text(text)
    return tmp_path


def test_a_static_draw_is_always_the_same_and_follows_the_grey_levels():
    images = np.tile(np.arange(256, dtype=np.uint8), (2000, 1))
    drawn = static_draw(images, "train")
    assert set(np.unique(drawn)) == {0, 255} and (drawn == static_draw(images, "train")).all()
    assert (drawn != static_draw(images, "test")).any()
    assert np.abs(drawn.mean(axis=0) - images[0]).max() < 255 * 4.5 * np.sqrt(0.25 / 2000)
    assert (static_draw(drawn, "train") == drawn).all()  # binary pixels stay


def test_a_set_in_binary_pixels_is_another_set_with_the_same_labels(digits):
    images = binarized(digits, "static")
    assert set(np.unique(images.train_images)) == set(np.unique(images.test_images)) == {0, 255}
    assert images.fingerprint != digits.fingerprint and (images.test_labels == digits.test_labels).all()
    assert "binary" in images.title


def test_compressed_and_plain_files_hold_the_same_images(root):
    plain = load_binarized(root, 28, no_network)
    for path in list((root / "binarized").iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert load_binarized(root, 28, no_network).fingerprint == plain.fingerprint
    assert plain.train_images.shape == (30, 784) and set(np.unique(plain.train_images)) == {0, 255}
    first = np.random.default_rng(0).integers(0, 2, (30, 784))
    assert (plain.train_images == 255 * first).all()
    assert binarized(plain, "static") is plain and binarized(plain, None) is plain


def cut(path):
    path.write_text(path.read_text()[:-100])


def with_a_two(path):
    path.write_text(path.read_text().replace("1", "2", 1))


def a_broken_archive(path):
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-30])
    path.unlink()


def an_archive_with_a_wrong_byte(path):
    data = bytearray(gzip.compress(path.read_bytes()))
    data[20] ^= 0xFF
    path.with_name(f"{path.name}.gz").write_bytes(data)
    path.unlink()


def a_web_page(path):
    path.write_text("<html><body>Please log in</body></html>")


@pytest.mark.parametrize("damage", [cut, with_a_two, a_broken_archive, an_archive_with_a_wrong_byte, a_web_page])
def test_a_damaged_file_is_named(root, damage):
    damage(root / "binarized" / "binarized_mnist_test.amat")
    with pytest.raises(RunError, match=r"binarized_mnist_test.*damaged"):
        load_binarized(root, 28, no_network)


def test_a_missing_file_names_its_address_and_where_to_put_it(tmp_path):
    with pytest.raises(RunError, match=r"binarized.*toronto.*no network.*put binarized_mnist_train.amat"):
        load_binarized(tmp_path, 28, no_network)


def test_a_missing_file_is_downloaded_from_where_it_was_published(root):
    test, wanted = (root / "binarized" / "binarized_mnist_test.amat"), []
    text = test.read_text()
    test.unlink()

    def download(address, path):
        wanted.append(address)
        path.write_text(text)
        return ""

    assert len(load_binarized(root, 28, download).test_images) == 20
    assert wanted == ["http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/binarized_mnist_test.amat"]


def test_other_sizes_would_not_be_binary(root):
    with pytest.raises(UsageError, match="28 x 28"):
        load_binarized(root, 14, no_network)
