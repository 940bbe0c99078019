"""A folder of pictures or a .npy file gives the set that its files describe, or one line of error."""

import json
import logging
import os
import shutil
import subprocess
import tempfile
import tracemalloc
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_script, is_one_error_line, only_warnings, run_script
from PIL import Image

from ae_eval import load_all_images
from autoencoders.data.batches import POOL, epoch_batches
from autoencoders.data.images import MappedImages
from autoencoders.data.own import stays_in_file
from autoencoders.data.sets import load_images
from autoencoders.evaluation.pca import fit_pca
from autoencoders.runtime.errors import UsageError
from autoencoders.training.trained import load_run

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


@pytest.mark.parametrize("count", [10, 400])
def test_of_many_labels_the_first_ten_are_listed(tmp_path, digits, info, count):
    for number, image in enumerate(digits.train_images[:count]):
        folder = tmp_path / "pictures" / f"label{number:03d}"
        folder.mkdir(parents=True)
        Image.fromarray(image.reshape(28, 28)).save(folder / "a.png")
    assert len(set(own(tmp_path / "pictures").train_labels)) > count / 2
    first = ", ".join(f"{number} label{number:03d}" for number in range(10))
    assert f"labels {first}{', ... 400 in all' if count > 10 else ''}; 0 damaged" in info.text


@pytest.fixture
def info(caplog):
    """The messages that the package logs, also those that --quiet hides."""
    caplog.set_level(logging.INFO, "autoencoders")
    return caplog


def own(path, root=Path("unused"), **settings):
    return load_images(str(path), root, **settings)


def call(capsys, script, *flags):
    return call_script(capsys, import_module(script).main, *flags)


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


def test_files_beside_the_parts_are_counted(tmp_path, digits, info):
    for number, part in enumerate(("train", "train", "test", "validation", "validation/train", ".git", ".")):
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.train_images[number].reshape(28, 28)).save(tmp_path / part / f"{number}.png")
    (tmp_path / "linked").symlink_to(tmp_path / "train")
    images = own(tmp_path)
    assert len(images.train_images) == 2 and len(images.test_images) == 1
    # two of `validation`, that of the folder itself, the hidden folder and the link
    assert "3 pictures" in info.messages[0] and "5 other files left out" in info.messages[0]


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
    assert call(capsys, "ae_train", *train)[0] == 0
    for name, image in {"2": known[1], "white": bytes(white)}.items():  # the model is shown what it was trained on
        flags = ("--run", out, "--device", "cpu", "--input", folder / f"{name}.png")
        assert call(capsys, "ae_generate", *flags)[0] == 0
        shown = [picture.get_array() for axes in figures[-1].axes for picture in axes.images]
        assert image in [bytes(np.rint(pixels * 255).astype(np.uint8)) for pixels in shown if pixels.size == 784]


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


def test_damaged_pictures_are_named_and_all_files_left_out_are_counted(tmp_path, digits, info):
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
    named = [record.getMessage() for record in info.records if record.levelno == logging.WARNING]
    assert rows([*images.train_images, *images.test_images]) == rows(digits.train_images[:4])
    assert len(named) == 2 and "cut.png" in named[0] and "empty.jpg" in named[1]
    assert "4 pictures" in info.messages[-1] and "2 damaged and 6 other files" in info.messages[-1]


@pytest.mark.parametrize("name", ["$\\frac{$\n", "\udcff\udcfe", "-rf"], ids=ascii)
def test_a_folder_may_have_any_name(tmp_path, collections, capsys, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.npy").symlink_to(collections / "array.npy")
    (folder / "b").symlink_to(collections / "pictures" / "odd")
    for path in (collections / "pictures" / "odd").iterdir():
        (folder / path.name).symlink_to(path)
    status, _, err = call(capsys, "ae_pca", f"--dataset={folder}", "--output-dir", tmp_path / "out")
    assert status == 0 and len(err.splitlines()) == 1 and "2 other files" in err


def saved(path, array):
    np.save(path, array)
    return path


BAD = {
    "an empty folder": lambda p: p.mkdir() or p,
    "a folder without pictures": lambda p: p.mkdir() or (p / "a.txt").write_text("") or p,
    "one picture": lambda p: p.mkdir() or Image.new("L", (9, 9)).save(p / "a.png") or p,
    "floats": lambda p: saved(p.with_suffix(".npy"), np.full((9, 28, 28), np.nan, np.float32)),
    "flat images": lambda p: saved(p.with_suffix(".npy"), np.zeros((9, 785), np.uint8)),
    "no images": lambda p: saved(p.with_suffix(".npy"), np.zeros((0, 28, 28), np.uint8)),
    "no pixels": lambda p: saved(p.with_suffix(".npy"), np.zeros((9, 0, 28), np.uint8)),
    "blank images": lambda p: saved(p.with_suffix(".npy"), np.zeros((9, 28, 28), np.uint8)),
    "a pickle": lambda p: saved(p.with_suffix(".npy"), np.array([print, {}], object)),
    "a damaged file": lambda p: p.with_suffix(".npy").write_bytes(b"\x93NUMPY\x01\x00\xff") and p.with_suffix(".npy"),
    "no .npy": lambda p: p.with_suffix(".zip").write_bytes(b"PK") and p.with_suffix(".zip"),
    "a folder called .npy": lambda p: p.with_suffix(".npy").mkdir() or p.with_suffix(".npy"),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_a_path_without_usable_images_is_refused_by_name(tmp_path, make):
    path = make(tmp_path / "mine")
    for stream in ("on", "off"):
        with pytest.raises(UsageError, match=f"^{path}"):
            own(path, root=tmp_path, stream=stream)


def test_a_truncated_array_is_refused(tmp_path, collections):
    (tmp_path / "cut.npy").write_bytes((collections / "array.npy").read_bytes()[:-1000])
    with pytest.raises(UsageError, match=r"cut\.npy: is not a whole"):
        own(tmp_path / "cut.npy")


def test_a_shape_too_large_to_count_is_refused_without_a_warning(tmp_path, recwarn):
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (2**62, 28, 28)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(UsageError, match=r"a\.npy: is not a whole"):
        own(tmp_path / "a.npy")
    assert not recwarn.list


@pytest.mark.parametrize(
    "images",
    [
        np.random.default_rng(0).integers(0, 256, (9, 28, 28, 1), np.uint8),
        np.random.default_rng(0).integers(0, 256, (9, 784), np.uint8),
        np.random.default_rng(0).random((9, 28, 28)),
        np.random.default_rng(0).random((9, 784), np.float32),
        np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.int64),
        np.random.default_rng(0).integers(0, 2, (9, 28, 28)).astype(bool),
    ],
    ids=lambda images: f"{images.dtype} {images.shape}",
)
def test_an_array_of_a_usual_other_form_gives_the_images_it_holds(tmp_path, images):
    np.save(tmp_path / "a.npy", images)
    white = 1 if images.dtype.kind in "fb" else 255
    same = np.rint(images.reshape(9, 28, 28).astype(float) * 255 / white).astype(np.uint8)
    np.save(tmp_path / "b.npy", same)
    assert np.array_equal(own(tmp_path / "a.npy").train_images, own(tmp_path / "b.npy").train_images)


@pytest.mark.parametrize("shape", [(9, 28, 28), (9, 28, 28, 3), (9, 14, 14, 4), (9, 3, 28, 28)], ids=str)
def test_an_array_of_another_form_is_refused_with_the_code_that_mends_it(tmp_path, shape):
    images = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(UsageError) as caught:
        own(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", eval(str(caught.value).split("; save ")[1], {"numpy": np, "images": images}))
    assert own(tmp_path / "a.npy").train_images.shape == (8, 784)


CUT = """
import os, sys, numpy
from pathlib import Path
from autoencoders.data.own import read_images
from autoencoders.runtime.errors import RunError

def read(stream):
    return read_images(Path(sys.argv[1]), 28, False, stream)[0]

def cut_after_a_look(*args, **settings):
    array = load(*args, **settings)
    os.truncate(sys.argv[1], 1000)
    return array

held, left, load = read("off"), read("on"), numpy.load
numpy.load = cut_after_a_look
try:
    left[:]
except RunError as error:
    print(error)
print(held.sum())
"""


def test_a_file_that_is_cut_while_it_is_read_does_not_end_the_process(collections, tmp_path):
    """A read of a mapping beyond the end of its file would be a bus error."""
    path = shutil.copy(collections / "array.npy", tmp_path)
    done = run_script("-c", CUT, path)
    assert done.returncode == 0, done.stderr
    error, total = done.stdout.splitlines()
    assert error.startswith(f"{path}: is damaged or was changed") and int(total) == np.load(
        collections / "array.npy"
    ).sum(dtype=int)


def test_a_run_on_own_images_of_another_size_is_trained_loaded_again_and_shown(collections, tmp_path, capsys):
    data = ("--dataset", collections / "pictures", "--image-size", 16, "--test-fraction", 0.25)
    status, out, _ = call(capsys, "ae_train", *data, *TINY, "--output-dir", tmp_path)
    assert status == 0 and "pictures" in out and (tmp_path / "latent_map.png").exists()
    run = load_run(tmp_path, torch.device("cpu"))
    assert run.record["dataset"]["source"] == str(collections / "pictures")
    images = run.load_images()
    assert run.recipe.image_size == 16 and run.record["dataset"]["name"] == "pictures"
    assert images.fingerprint == run.record["dataset"]["fingerprint"] and len(images.test_images) == 15
    picture = next((collections / "pictures" / "odd").iterdir())
    for flags in (("--walk", 0), ("--interpolate", 0, 1), ("--input", picture)):
        status, out, err = call(capsys, "ae_generate", "--run", tmp_path, "--device", "cpu", *flags)
        assert status == 0 and f"Wrote {tmp_path}" in out, err


def test_a_run_whose_images_are_gone_asks_for_them(collections, tmp_path, capsys):
    path = shutil.copy(collections / "array.npy", tmp_path / "before.npy")
    assert call(capsys, "ae_train", "--dataset", path, *TINY, "--output-dir", tmp_path / "out")[0] == 0
    path.rename(tmp_path / "after.npy")
    flags = ("--run", tmp_path / "out", "--device", "cpu")
    status, _, err = call(capsys, "ae_eval", *flags)
    assert status == 2 and is_one_error_line(err) and str(path) in err and "--dataset" in err
    assert call(capsys, "ae_eval", *flags, "--dataset", tmp_path / "after.npy")[0] == 0


@pytest.mark.parametrize("recipe", ["vae", "sparse", "denoising"])
def test_any_fully_connected_recipe_trains_at_any_size(recipe, collections, tmp_path, capsys):
    data = ("--dataset", collections / "array.npy", "--image-size", 12, "--output-dir", tmp_path, "--epochs", 1)
    small = ("--features", 32, "--k", 4, "--num-saes", 2) if recipe == "sparse" else ("--hidden-sizes", 8)
    status, _, err = call(capsys, "ae_train", "--recipe", recipe, *data, *small, "--device", "cpu")
    assert status == 0 and only_warnings(err) and (tmp_path / "reconstructions.png").exists()


def test_a_recipe_built_for_28_pixels_refuses_others_in_one_line(collections, tmp_path, capsys):
    flags = ("--recipe", "conv", "--dataset", "digits", "--image-size", 16, "--output-dir", tmp_path / "out")
    status, _, err = call(capsys, "ae_train", *flags, "--device", "cpu")
    assert status == 2 and is_one_error_line(err) and "28 x 28" in err and not (tmp_path / "out").exists()


def pairs(images, part):
    """The images of a part with their labels, in any order."""
    return sorted(
        (bytes(x), label) for x, label in zip(getattr(images, f"{part}_images")[:], getattr(images, f"{part}_labels"))
    )


@pytest.mark.parametrize("settings", [{}, {"test_fraction": 0.3, "split_seed": 5}], ids=str)
def test_a_streamed_set_has_the_same_test_part_and_the_same_training_images(collections, settings):
    path = collections / "array.npy"
    streamed, held = (own(path, stream=stream, **settings) for stream in ("on", "off"))
    assert isinstance(streamed.train_images, MappedImages) and isinstance(held.train_images, np.ndarray)
    assert type(streamed.test_images) is np.ndarray and np.array_equal(streamed.test_images, held.test_images)
    assert np.array_equal(streamed.test_labels, held.test_labels)
    assert pairs(streamed, "train") == pairs(held, "train") and (np.diff(streamed.train_images.rows) > 0).all()
    for images in (streamed, held):
        stream = "on" if images.source["stream"] else "off"
        assert own(path, stream=stream, **settings).fingerprint == images.fingerprint


def test_at_most_10_000_test_images_are_taken_unless_a_fraction_is_given(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (110_000, 4, 4), np.uint8))
    counts = [len(own(tmp_path / "a.npy", image_size=4, test_fraction=share).test_images) for share in (None, 0.5)]
    assert counts == [10_000, 55_000]


def test_all_images_of_a_path_are_loaded_also_where_they_are_few_or_one(collections, tmp_path):
    name, images = load_all_images(collections / "pictures", 28)
    assert name == "pictures" and images.shape == (60, 784)
    np.save(tmp_path / "one.npy", np.zeros((1, 28, 28), np.uint8))
    assert load_all_images(tmp_path / "one.npy", 28)[1].shape == (1, 784)


def test_images_stay_in_their_file_when_asked_to_or_above_a_quarter_of_the_memory(collections):
    assert [stays_in_file(25, stream, memory=100) for stream in ("auto", "on", "off")] == [False, True, False]
    assert [stays_in_file(26, stream, memory=100) for stream in ("auto", "on", "off")] == [True, True, False]
    assert not isinstance(own(collections / "array.npy").train_images, MappedImages)


OTHERS = {
    "floats": lambda images: images / np.float32(255),
    "smaller": lambda images: images[:, 1:, 1:],
    "columns first": np.asfortranarray,
}


@pytest.mark.parametrize("other", OTHERS)
def test_only_bytes_of_the_right_size_and_order_can_stay_in_their_file(other, collections, tmp_path):
    np.save(tmp_path / "a.npy", OTHERS[other](np.load(collections / "array.npy")))
    assert len(own(tmp_path / "a.npy").train_images) == 54
    with pytest.raises(UsageError, match="can stay in their file"):
        own(tmp_path / "a.npy", stream="on")
    with pytest.raises(UsageError, match="is read into memory"):
        own(collections / "pictures", stream="on")


@pytest.mark.parametrize("flags", [("--leave-out", 1), ("--dataset", "digits")], ids=str)
def test_streaming_is_refused_where_it_does_not_apply(collections, tmp_path, capsys, flags):
    data = ("--dataset", collections / "array.npy", "--stream", "on", *TINY, "--output-dir", tmp_path / "out")
    status, _, err = call(capsys, "ae_train", *data, *flags)
    assert status == 2 and is_one_error_line(err) and not (tmp_path / "out").exists()


def test_the_pca_of_a_file_is_that_of_its_images_bit_for_bit(digits, tmp_path):
    np.save(tmp_path / "a.npy", digits.train_images.reshape(-1, 28, 28))
    streamed = own(tmp_path / "a.npy", stream="on")
    one, other = fit_pca(streamed), fit_pca(replace(streamed, train_images=streamed.train_images[:]))
    assert all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items())
    assert fit_pca(streamed, max_samples=100).samples == 100


def test_a_streamed_run_uses_the_same_images_from_its_pca_to_its_evaluation(collections, tmp_path, capsys):
    out, data = tmp_path / "out", ("--dataset", collections / "array.npy", "--stream", "on")
    assert call(capsys, "ae_pca", *data, "--output-dir", out)[0] == 0
    status, _, err = call(capsys, "ae_train", *data, *TINY, "--output-dir", out)
    assert status == 0 and only_warnings(err)
    status, table, err = call(capsys, "ae_eval", "--run", out, "--device", "cpu")
    assert status == 0 and err == "" and "6 test images" in table
    evaluated, record = (json.loads((out / name).read_text()) for name in ("evaluation.json", "run.json"))
    assert evaluated["model"]["test_mse_unit"] == pytest.approx(record["metrics"]["test_mse_unit"], rel=1e-5)


def test_a_streamed_run_resumes_as_a_streamed_run_only(collections, tmp_path, capsys):
    data = ("--dataset", collections / "array.npy", *TINY, "--output-dir", tmp_path)
    assert call(capsys, "ae_train", *data, "--stream", "on")[0] == 0
    for stream, expected in (("on", 0), ("off", 2)):
        status, _, err = call(capsys, "ae_train", *data, "--epochs", 2, "--stream", stream, "--resume")
        assert status == expected, err


def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path):
    shape = (1_000_000, 28, 28)  # 784 MB, sparse: all but the first image take no space on the disk
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, shape)[0] = 1
    tracemalloc.start()
    images = own(tmp_path / "a.npy", stream="on", split_seed=1)
    next(epoch_batches(images.train_images, 100, 0, 0, torch.device("cpu")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(images.train_images) == 990_000 and peak < 4 * POOL


@pytest.fixture
def place_for_deep_folders():
    """A folder that `rm` deletes: pytest deletes its own by recursion."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    subprocess.run(["rm", "-r", folder], check=True)


def test_folders_nested_deeper_than_pythons_calls_are_walked(place_for_deep_folders, collections):
    folder, picture = place_for_deep_folders, next((collections / "pictures").rglob("*.png")).read_bytes()
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("a", dir_fd=here)
        here, above = os.open("a", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(picture)
    with pytest.raises(UsageError, match="same"):  # all were found
        own(folder)


@pytest.mark.parametrize("output", ["", "out/deep"])
def test_results_are_not_written_among_the_pictures_they_are_made_of(output, collections, capsys):
    pictures = collections / "pictures"
    status, _, err = call_script(
        capsys, import_module("ae_pca").main, "--dataset", pictures, "--output-dir", pictures / output
    )
    assert status == 2 and is_one_error_line(err) and "another --output-dir" in err
    assert not (pictures / "out").exists()


def test_the_second_axis_may_be_the_channel_as_in_pytorch(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8)
    np.save(tmp_path / "a.npy", images[:, None])
    np.save(tmp_path / "b.npy", images)
    assert np.array_equal(own(tmp_path / "a.npy").train_images, own(tmp_path / "b.npy").train_images)
