"""One's own images: a folder of pictures or a .npy file gives the set that its files describe, or one line of error."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_script, is_one_error_line, only_warnings
from PIL import Image

import ae_eval
import ae_generate
import ae_pca
import ae_train
from autoencoders.data.sets import load_again, load_images
from autoencoders.data.stored import Stored
from autoencoders.evaluation.metrics import to_pixels
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.training.checkpoint import load_run

TINY = ("--hidden-sizes", 16, "--code-size", 2, "--code-activation", "none", "--epochs", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def collections(tmp_path_factory, digits):
    """60 digits, as a folder of PNGs sorted into `even` and `odd`, and as a .npy file."""
    root = tmp_path_factory.mktemp("own")
    images = digits.train_images[:60].reshape(-1, 28, 28)
    for number, (image, label) in enumerate(zip(images, digits.train_labels)):
        folder = root / "pictures" / ("odd" if label % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    np.save(root / "array.npy", images)
    return root


def own(path, root=Path("unused"), **settings):
    return load_images(str(path), root, **settings)


def rows(images):
    return sorted(map(bytes, images))


def test_every_image_is_in_one_part_pixel_for_pixel_with_its_folder_as_label(collections, digits):
    images = own(collections / "pictures")
    assert len(images.train_images) == 54 and len(images.test_images) == 6 and images.side == 28
    both = np.concatenate((images.train_images, images.test_images))
    labels = np.concatenate((images.train_labels, images.test_labels))
    known = {bytes(x): label % 2 for x, label in zip(digits.train_images[:60], digits.train_labels)}
    assert rows(both) == sorted(known) and [known[bytes(x)] for x in both] == labels.tolist()


def test_a_npy_file_gives_the_same_images_as_the_folder(collections):
    images, others = own(collections / "array.npy"), own(collections / "pictures")
    parts = [[*i.train_images, *i.test_images] for i in (images, others)]
    assert rows(parts[0]) == rows(parts[1]) and not images.train_labels.any()


def test_the_seed_draws_the_test_part_and_the_fraction_its_size(collections):
    one, again, other = (own(collections / "array.npy", test_fraction=0.5, split_seed=s) for s in (0, 0, 1))
    assert one.fingerprint == again.fingerprint != other.fingerprint and len(one.test_images) == 30
    assert rows(one.test_images) != rows(other.test_images)


def test_a_folder_with_train_and_test_keeps_its_own_parts(tmp_path, digits):
    for part, label, image in zip(("train", "train", "test"), ("b", "a", "b"), digits.train_images):
        (tmp_path / part / label / "deeper").mkdir(parents=True)
        Image.fromarray(image.reshape(28, 28)).save(tmp_path / part / label / "deeper" / "x.png")
    images = own(tmp_path)
    assert rows(images.train_images) == rows(digits.train_images[:2])
    assert sorted(images.train_labels) == [0, 1] and images.test_labels.tolist() == [1]
    with pytest.raises(UsageError, match="test part of its own"):
        own(tmp_path, test_fraction=0.2)


def test_what_lies_beside_the_parts_is_counted(tmp_path, digits, capsys):
    for number, part in enumerate(("train", "train", "test", "validation", "validation/train", ".git", ".")):
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.train_images[number].reshape(28, 28)).save(tmp_path / part / f"{number}.png")
    (tmp_path / "linked").symlink_to(tmp_path / "train")
    images = own(tmp_path)
    assert len(images.train_images) == 2 and len(images.test_images) == 1
    # two of `validation`, that of the folder itself, the hidden folder and the link
    assert "3 pictures" in (err := capsys.readouterr().err) and "5 other files left out" in err


@pytest.mark.filterwarnings("error:The given NumPy array")
def test_pictures_of_16_bits_and_transparent_ones_keep_to_one_scale(tmp_path, capsys, figures):
    folder, out = tmp_path / "own", tmp_path / "out"
    folder.mkdir()
    ramp = np.tile(np.arange(28, dtype=np.uint16), (28, 1))
    for level in range(1, 7):
        Image.fromarray(ramp * level * 257).save(folder / f"{level}.png")
    white = np.full((28, 28), 255, np.uint8)
    Image.fromarray(np.dstack((white, white, white, ramp.astype(np.uint8)))).save(folder / "white.png")
    images = own(folder)
    known = [bytes((ramp * level).astype(np.uint8)) for level in range(1, 7)]
    assert rows([*images.train_images, *images.test_images]) == sorted([*known, bytes(white)])
    train = ("--dataset", folder, *TINY, "--output-dir", out)
    assert call_script(capsys, ae_train.main, *train)[0] == 0
    for name, image in {"2": known[1], "white": bytes(white)}.items():  # the model is shown what it was trained on
        flags = ("--run", out, "--device", "cpu", "--input", folder / f"{name}.png")
        assert call_script(capsys, ae_generate.main, *flags)[0] == 0
        shown = figures[-1].axes[1].images[0].get_array() * 255
        assert bytes(np.rint(shown).astype(np.uint8)) == image


def test_pictures_of_any_size_and_colour_become_squares(tmp_path):
    random = np.random.default_rng(0)
    for number, shape in enumerate([(40, 70, 3), (9, 5), (28, 28, 4), (200, 10)]):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    assert own(tmp_path, image_size=16).train_images.shape == (3, 256)


def test_an_image_keeps_its_left_and_right_when_it_is_resized(tmp_path):
    array = np.zeros((5, 30, 60), np.uint8)
    array[:, :, 30:] = np.arange(200, 250, 10)[:, None, None]
    np.save(tmp_path / "a.npy", array)
    images = own(tmp_path / "a.npy").train_images.reshape(-1, 28, 28)
    assert (images[:, :, :13] < 3).all() and (images[:, :, 15:] > 195).all()


def test_damaged_pictures_are_named_and_all_that_is_left_out_is_counted(tmp_path, digits, capsys):
    for number in range(4):
        Image.fromarray(digits.train_images[number].reshape(28, 28)).save(tmp_path / f"{number}.png")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_bytes(whole)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "0.png").write_bytes(whole)
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    images = own(tmp_path)
    *named, counted = capsys.readouterr().err.splitlines()
    assert len(images.train_images) + len(images.test_images) == 4
    assert len(named) == 2 and "cut.png" in named[0] and "empty.jpg" in named[1]
    assert "4 pictures" in counted and "2 damaged and 6 other files" in counted


@pytest.mark.parametrize("name", ["$\\frac{$", "a\nb", "\udcff\udcfe", "x" * 200, "mnist", "-rf"], ids=ascii)
def test_a_folder_may_be_called_anything(tmp_path, collections, capsys, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.npy").symlink_to(collections / "array.npy")
    (folder / "b").symlink_to(collections / "pictures" / "odd")
    for path in (collections / "pictures" / "odd").iterdir():
        (folder / path.name).symlink_to(path)
    status, _, err = call_script(capsys, ae_pca.main, f"--dataset={folder}", "--output-dir", tmp_path / "out")
    assert status == 0 and len(err.splitlines()) == 1 and "other files" in err


def saved(path, array):
    np.save(path, array)
    return path


BAD = {
    "an empty folder": lambda p: p.mkdir() or p,
    "a folder without pictures": lambda p: p.mkdir() or (p / "a.txt").write_text("") or p,
    "one picture": lambda p: p.mkdir() or Image.new("L", (9, 9)).save(p / "a.png") or p,
    "floats": lambda p: saved(p.with_suffix(".npy"), np.zeros((9, 28, 28), np.float32)),
    "flat images": lambda p: saved(p.with_suffix(".npy"), np.zeros((9, 784), np.uint8)),
    "no images": lambda p: saved(p.with_suffix(".npy"), np.zeros((0, 28, 28), np.uint8)),
    "no pixels": lambda p: saved(p.with_suffix(".npy"), np.zeros((9, 0, 28), np.uint8)),
    "blank images": lambda p: saved(p.with_suffix(".npy"), np.zeros((9, 28, 28), np.uint8)),
    "a pickle": lambda p: saved(p.with_suffix(".npy"), np.array([print, {}], object)),
    "a damaged file": lambda p: p.with_suffix(".npy").write_bytes(b"\x93NUMPY\x01\x00\xff") and p.with_suffix(".npy"),
    "no .npy": lambda p: p.with_suffix(".zip").write_bytes(b"PK") and p.with_suffix(".zip"),
    "a folder called .npy": lambda p: p.with_suffix(".npy").mkdir() or p.with_suffix(".npy"),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_what_holds_no_images_is_refused_by_name(tmp_path, capsys, make):
    path = make(tmp_path / "mine")
    status, out, err = call_script(capsys, ae_pca.main, "--dataset", path, "--output-dir", tmp_path / "out")
    assert status == 2 and out == "" and is_one_error_line(err.splitlines(True)[-1]) and str(path) in err
    assert not (tmp_path / "out").exists()


def test_a_truncated_array_is_refused(tmp_path, collections):
    data = (collections / "array.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(data[:-1000])
    with pytest.raises(UsageError, match=r"cut\.npy: is not a whole"):
        own(tmp_path / "cut.npy")


@pytest.mark.parametrize("flags", [("--test-fraction", 0.2), ("--split-seed", 1)], ids=str)
def test_a_known_set_is_not_split_anew(tmp_path, capsys, flags):
    status, _, err = call_script(capsys, ae_pca.main, "--dataset", "digits", "--output-dir", tmp_path / "out", *flags)
    assert status == 2 and is_one_error_line(err) and flags[0] in err


def test_a_run_on_ones_own_images_of_another_size_is_trained_loaded_again_and_shown(collections, tmp_path, capsys):
    data = ("--dataset", collections / "pictures", "--image-size", 16, "--test-fraction", 0.25)
    assert call_script(capsys, ae_pca.main, *data, "--output-dir", tmp_path)[0] == 0
    status, out, err = call_script(capsys, ae_train.main, *data, *TINY, "--output-dir", tmp_path)
    assert status == 0 and "pictures" in out and (tmp_path / "latent_map.png").exists()
    model, recipe, record = load_run(tmp_path, torch.device("cpu"))
    assert recipe.image_size == 16 and record["dataset"]["name"] == "pictures"
    images = load_again(record["dataset"])
    assert images.fingerprint == record["dataset"]["fingerprint"] and len(images.test_images) == 15
    assert model(to_pixels(torch.from_numpy(images.test_images), "signed"))[0].shape == (15, 256)
    picture = next((collections / "pictures" / "odd").iterdir())
    for flags in (("--walk", 0), ("--interpolate", 0, 1), ("--input", picture)):
        status, out, err = call_script(capsys, ae_generate.main, "--run", tmp_path, "--device", "cpu", *flags)
        assert status == 0 and f"Wrote {tmp_path}" in out, err
    assert json.loads((tmp_path / "run.json").read_text())["dataset"]["source"] == str(collections / "pictures")


@pytest.mark.parametrize("recipe", ["vae", "sparse", "denoising"])
def test_any_fully_connected_recipe_trains_at_any_size(recipe, collections, tmp_path, capsys):
    data = ("--dataset", collections / "array.npy", "--image-size", 12, "--output-dir", tmp_path, "--epochs", 1)
    small = ("--features", 32, "--k", 4, "--num-saes", 2) if recipe == "sparse" else ("--hidden-sizes", 8)
    status, _, err = call_script(capsys, ae_train.main, "--recipe", recipe, *data, *small, "--device", "cpu")
    assert status == 0 and only_warnings(err) and (tmp_path / "reconstructions.png").exists()


def test_a_recipe_built_for_28_pixels_refuses_others_in_one_line(collections, tmp_path, capsys):
    flags = ("--recipe", "conv", "--dataset", "digits", "--image-size", 16, "--output-dir", tmp_path / "out")
    status, _, err = call_script(capsys, ae_train.main, *flags, "--device", "cpu")
    assert status == 2 and is_one_error_line(err) and "28 x 28" in err and not (tmp_path / "out").exists()


def test_a_known_set_can_be_resized(digits, tmp_path):
    small = load_images("digits", Path("unused"), image_size=14)
    assert small.train_images.shape == (1500, 196) and small.fingerprint != digits.fingerprint
    halved = digits.train_images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).ravel()
    assert np.corrcoef(halved, small.train_images.ravel())[0, 1] > 0.98


def test_a_streamed_run_is_one_on_the_same_images_from_its_pca_to_its_evaluation(collections, tmp_path, capsys):
    out, data = tmp_path / "out", ("--dataset", collections / "array.npy", "--stream", "on")
    assert call_script(capsys, ae_pca.main, *data, "--output-dir", out)[0] == 0
    status, _, err = call_script(capsys, ae_train.main, *data, *TINY, "--output-dir", out)
    assert status == 0 and only_warnings(err)
    dataset = json.loads((out / "run.json").read_text())["dataset"]
    images = load_again(dataset)
    assert isinstance(images.train_images, Stored) and images.fingerprint == dataset["fingerprint"]
    status, table, err = call_script(capsys, ae_eval.main, "--run", out, "--device", "cpu")
    assert status == 0 and err == "" and "6 test images" in table
    shown = json.loads((out / "evaluation.json").read_text())["model"]["test_mse_unit"]
    assert shown == pytest.approx(json.loads((out / "run.json").read_text())["metrics"]["test_mse_unit"], rel=1e-5)
    status, _, err = call_script(capsys, ae_train.main, *data[:2], *TINY, "--output-dir", out, "--resume")
    assert status == 2 and "other images" in err  # in memory other ones are set aside to test on


@pytest.mark.parametrize("name", ["array.npy", "pictures"])
def test_pictures_and_arrays_of_another_size_are_kept_in_a_file_that_nobody_sees(collections, tmp_path, name):
    streamed = own(collections / name, root=tmp_path / "root", image_size=16, stream="on")
    held = own(collections / name, image_size=16)
    both = [[*i.train_images[:], *i.test_images[:]] for i in (streamed, held)]
    assert isinstance(streamed.train_images, Stored) and rows(both[0]) == rows(both[1])
    assert list((tmp_path / "root").iterdir()) == []
    labels = {bytes(x): label for x, label in zip(both[1], [*held.train_labels, *held.test_labels])}
    assert [labels[bytes(x)] for x in both[0]] == [*streamed.train_labels, *streamed.test_labels]


def test_a_streamed_folder_keeps_its_own_parts(tmp_path, digits):
    for number, image in enumerate(digits.train_images[:30]):
        folder = tmp_path / "own" / ("train" if number % 3 else "test") / str(digits.train_labels[number])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.reshape(28, 28)).save(folder / f"{number}.png")
    images, held = (own(tmp_path / "own", root=tmp_path, stream=stream) for stream in ("on", "off"))
    for part in ("train", "test"):
        pairs = [
            sorted((bytes(x), label) for x, label in zip(getattr(i, f"{part}_images")[:], getattr(i, f"{part}_labels")))
            for i in (images, held)
        ]
        assert pairs[0] == pairs[1] and len(pairs[0]) == (20 if part == "train" else 10)


def test_only_what_would_fill_the_memory_is_streamed_by_itself(collections, monkeypatch):
    assert not isinstance(own(collections / "array.npy").train_images, Stored)
    monkeypatch.setattr("autoencoders.data.stored.memory", lambda: 4 * 60 * 784 - 1)
    assert isinstance(own(collections / "array.npy").train_images, Stored)
    assert not isinstance(own(collections / "array.npy", stream="off").train_images, Stored)


def test_a_disk_too_full_for_the_images_is_a_fault_that_names_the_folder(collections, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(RunError, match=rf"{tmp_path}: cannot hold .*; make room there"):
            own(collections / "pictures", root=tmp_path, stream="on")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("flags", [("--workers", 1), ("--leave-out", 1), ("--dataset", "digits")], ids=str)
def test_what_streaming_cannot_do_is_refused(collections, tmp_path, capsys, flags):
    data = ("--dataset", collections / "array.npy", "--stream", "on", *TINY, "--output-dir", tmp_path / "out")
    status, _, err = call_script(capsys, ae_train.main, *data, *flags)
    assert status == 2 and is_one_error_line(err) and not (tmp_path / "out").exists()


def test_an_array_whose_images_lie_across_one_another_is_not_streamed(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8)))
    assert len(own(tmp_path / "a.npy").train_images) == 8
    with pytest.raises(UsageError, match="across one another"):
        own(tmp_path / "a.npy", stream="on")
