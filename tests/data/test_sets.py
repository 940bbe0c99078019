"""Known image sets are read exactly, a damaged file is named, and a missing set is downloaded or refused in time."""

import logging
import socket
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import write_idx

from autoencoders.data.sets import DATASETS, download, is_on_disk, load_images, preparation_notice
from autoencoders.runtime.errors import RunError, UsageError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def network(monkeypatch):
    """A function that applies an environment with proxies to this process until the test ends."""

    def use(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(urllib.request, "_opener", None)  # it caches the proxies of its first use

    return use


def test_digits_are_1500_and_297_images_of_784_grey_levels_with_their_labels(digits):
    assert digits.train_images.shape == (1500, 784) and digits.test_images.shape == (297, 784)
    assert digits.train_images.dtype == digits.test_images.dtype == np.uint8
    assert digits.train_images.min() == 0 and digits.train_images.max() > 200
    assert sorted(set(digits.train_labels)) == sorted(set(digits.test_labels)) == list(range(10))
    assert digits.train_labels.shape == (1500,) and digits.test_labels.shape == (297,)


def test_a_digit_keeps_its_shape_when_it_is_enlarged(digits):
    from sklearn.datasets import load_digits

    small = load_digits().images[0] / 16
    large = digits.train_images[0].reshape(28, 28) / 255
    corners = large[np.ix_(np.arange(8) * 28 // 8 + 1, np.arange(8) * 28 // 8 + 1)]
    assert np.corrcoef(corners.ravel(), small.ravel())[0, 1] > 0.9


def test_idx_files_are_read_pixel_for_pixel(fake_mnist):
    root, raw = fake_mnist
    images = load_images("mnist", root)
    stored = np.fromfile(raw / TRAIN_IMAGES, np.uint8)[16:].reshape(30, 784)
    assert np.array_equal(images.train_images, stored)
    assert np.array_equal(images.train_labels, np.fromfile(raw / TRAIN_LABELS, np.uint8)[8:])
    assert images.test_images.shape == (20, 784) and images.test_labels.shape == (20,)


def test_files_that_are_not_the_published_ones_are_named_so(fake_mnist, caplog):
    images = load_images("mnist", fake_mnist[0])
    assert (images.name, images.title) == ("files-in-place-of-mnist", "files in place of MNIST")
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "not the published files of MNIST" in warning and str(fake_mnist[1]) in warning


def test_auto_takes_mnist_when_it_is_on_disk(fake_mnist):
    assert load_images("auto", fake_mnist[0]).fingerprint == load_images("mnist", fake_mnist[0]).fingerprint


@pytest.mark.parametrize(("name", "folder"), [("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_the_other_sets_lie_in_torchvisions_folders(fake_mnist, name, folder):
    root, raw = fake_mnist
    raw.parent.rename(root / folder)
    images = load_images(name, root)
    assert images.name.endswith(name) and len(images.train_images) == 30


def test_every_name_the_command_line_offers_is_known(fake_mnist, dead_network, network):
    network(dead_network)
    for name in DATASETS:
        try:
            assert load_images(name, fake_mnist[0]).train_images.shape[1] == 784
        except RunError as error:
            assert name in str(error)  # a set that is not on disk


def _overwrite(position, value):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[position : position + len(value)] = value
        path.write_bytes(data)

    return damage


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "too long": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "header cut": lambda path: path.write_bytes(path.read_bytes()[:9]),
    "a web page": lambda path: path.write_bytes(b"<html><body>Please log in</body></html>" * 9),
    "still gzipped": _overwrite(0, b"\x1f\x8b\x08\x00"),
    "signed bytes": _overwrite(2, b"\x09"),
    "labels for images": _overwrite(3, b"\x01"),
    "32 pixels wide": lambda path: write_idx(path, np.zeros((30, 28, 32))),
    "no images": lambda path: write_idx(path, np.zeros((0, 28, 28))),
    "absurdly many": _overwrite(4, b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_image_file_is_an_error_that_names_it_and_the_way_out(fake_mnist, damage):
    root, raw = fake_mnist
    damage(raw / TRAIN_IMAGES)
    with pytest.raises(RunError, match=TRAIN_IMAGES) as caught:
        load_images("mnist", root)
    assert "good copy" in str(caught.value) and "delete" in str(caught.value)


@pytest.mark.parametrize(
    "labels", [np.full(30, 10), np.zeros(29), np.zeros(0)], ids=["a label above 9", "one too few", "none"]
)
def test_labels_that_cannot_belong_to_the_images_are_an_error_that_names_their_file(fake_mnist, labels):
    root, raw = fake_mnist
    write_idx(raw / TRAIN_LABELS, labels)
    with pytest.raises(RunError, match=TRAIN_LABELS):
        load_images("mnist", root)


def test_a_set_of_one_image_is_a_set(fake_mnist):
    root, raw = fake_mnist
    write_idx(raw / "t10k-images-idx3-ubyte", np.zeros((1, 28, 28)))
    write_idx(raw / "t10k-labels-idx1-ubyte", np.zeros(1))
    images = load_images("mnist", root)
    assert images.test_images.shape == (1, 784) and images.test_labels.shape == (1,)


def test_a_file_that_cannot_be_read_is_an_error(fake_mnist, dead_network, network):
    root, raw = fake_mnist
    network(dead_network)
    (raw / TRAIN_LABELS).unlink()
    (raw / TRAIN_LABELS).mkdir()
    with pytest.raises(RunError, match=TRAIN_LABELS):
        load_images("mnist", root)


def test_without_mnist_and_network_the_error_names_both_ways_out(tmp_path, dead_network, network):
    network(dead_network)
    with pytest.raises(RunError) as caught:
        load_images("mnist", tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "MNIST" / "raw") in message and TRAIN_IMAGES in message and "--dataset digits" in message


def test_a_network_that_never_answers_is_given_up(tmp_path, silent_network, network):
    network(silent_network)
    start = time.monotonic()
    assert download("mnist", tmp_path, timeout=0.5) != ""
    assert time.monotonic() - start < 10 and socket.getdefaulttimeout() is None


def test_an_incomplete_set_is_downloaded_and_not_half_read(fake_mnist, dead_network, network):
    root, raw = fake_mnist
    network(dead_network)
    (raw / TRAIN_LABELS).unlink()
    with pytest.raises(RunError, match=TRAIN_LABELS):
        load_images("mnist", root)


def test_auto_falls_back_to_digits_with_a_warning(tmp_path, dead_network, network, caplog, digits):
    network(dead_network)
    images = load_images("auto", tmp_path)
    assert images.fingerprint == digits.fingerprint and images.name == "digits"
    assert "in place of MNIST" in images.title
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and "MNIST" in warnings[1]


def test_the_digits_fingerprint_is_the_same_on_every_machine():
    fingerprint = load_images("digits", Path("anywhere")).fingerprint
    assert fingerprint == "a2ee756624d31ecee4805ec8fda1f068b17d9e9cce80a0a0ae8f4a97aaaf919f"


def test_real_mnist_is_60000_and_10000_images_with_this_fingerprint(mnist):
    assert mnist.train_images.shape == (60_000, 784) and mnist.test_images.shape == (10_000, 784)
    assert mnist.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.mean(mnist.train_images / np.float32(255)) == pytest.approx(0.1307, abs=1e-4)
    assert (mnist.name, mnist.title) == ("mnist", "MNIST")
    assert mnist.fingerprint == "5a4d4600f9ae243d0ab9ee1ff6d948035e6f85a423fdfacf899262ac3ca6f325"


@pytest.mark.parametrize("settings", [{"test_fraction": 0.2}, {"split_seed": 1}, {"stream": "on"}], ids=str)
def test_a_known_set_is_neither_split_nor_streamed(settings):
    with pytest.raises(UsageError, match=next(iter(settings)).replace("_", "-")):
        load_images("digits", Path("unused"), **settings)


def test_a_known_set_can_be_resized(digits):
    small = load_images("digits", Path("unused"), image_size=14)
    assert small.train_images.shape == (1500, 196) and small.fingerprint != digits.fingerprint
    halved = digits.train_images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).ravel()
    assert np.corrcoef(halved, small.train_images.ravel())[0, 1] > 0.98


def test_a_data_root_in_a_loop_of_links_does_not_matter_where_nothing_is_read_from_it(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert load_images("digits", tmp_path / "loop").name == "digits"


def test_a_dry_run_says_which_set_would_be_downloaded(fake_mnist, tmp_path):
    assert is_on_disk("auto", fake_mnist[0]) and preparation_notice("mnist", fake_mnist[0]) == ""
    assert preparation_notice("digits", tmp_path) == preparation_notice(str(tmp_path), tmp_path) == ""
    assert "digits" in preparation_notice("auto", tmp_path) and not is_on_disk("kmnist", fake_mnist[0])
