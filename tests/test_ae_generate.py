"""Pictures out of a trained model: what they show is what the model's own encode and decode say."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import call_script, is_one_error_line, run_script
from PIL import Image

import ae_generate
from ae_generate import path, pick_pair
from autoencoders.evaluation.metrics import encode, reconstruct
from autoencoders.figures import image_grid, image_rows
from autoencoders.recipes import RECIPES
from autoencoders.runtime.device import Precision
from autoencoders.runtime.files import prepare_folder
from autoencoders.training.checkpoint import load_run, save_record, save_weights
from autoencoders.training.trainer import Trainer

RUNS = {
    "vae": {"epochs": 20},
    "denoising": {"epochs": 5},
    "conv": {"epochs": 1},
    "symmetric": {"epochs": 5, "hidden_sizes": (64,), "code_size": 16},
    "sparse": {"epochs": 1, "num_saes": 2, "features": 64, "k": 8},
}
SINGLE = [name for name in RUNS if name != "sparse"]  # an image has one code
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def runs(tmp_path_factory, digits):
    """A folder with a trained run of each recipe in RUNS, no pictures drawn; for looking at, not for writing into."""
    root = tmp_path_factory.mktemp("runs")
    for name, settings in RUNS.items():
        recipe, folder = RECIPES[name].override(settings), prepare_folder(root / name)
        torch.manual_seed(recipe.seed)
        trainer = Trainer(recipe.build(), recipe, digits.train_images, digits.test_images, CPU, Precision("off", CPU))
        for _ in trainer.epochs():
            pass
        record = {
            "recipe": recipe.as_dict(), "weights": recipe.weights_file, "metrics": {}, "precision": "float32",
            "weights_sha256": save_weights(folder / recipe.weights_file, trainer.model),
            "dataset": {"name": digits.name, "title": digits.title, "fingerprint": digits.fingerprint, "root": "data"},
        }  # fmt: skip
        save_record(folder, record)
    return root


@pytest.fixture
def photo(tmp_path):
    """A thick dark 7 on a large bright sheet."""
    sheet = np.full((300, 400), 240, np.uint8)
    sheet[50:80, 100:240], sheet[50:250, 210:240] = 20, 20
    Image.fromarray(sheet).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def generate(capsys, tmp_path, runs):
    """Call the script on a run, into a folder of its own: (status, stdout, stderr, names written)."""

    def call(recipe, *flags):
        out = tmp_path / "out"
        arguments = ("--run", runs / recipe, "--output-dir", out, "--device", "cpu", *flags)
        result = call_script(capsys, ae_generate.main, *arguments)
        return *result, sorted(file.name for file in out.glob("*"))

    return call


@pytest.fixture
def drawn(monkeypatch):
    """What the next picture is made of: (rows of images by label, or the grid; notes)."""
    seen = []

    def rows(images, title, notes):
        seen.append((images, notes))
        return image_rows(images, title, notes)

    def grid(images, title, columns):
        seen.append((images, title))
        return image_grid(images, title, columns)

    monkeypatch.setattr("autoencoders.figures.image_rows", rows)
    monkeypatch.setattr("autoencoders.figures.image_grid", grid)
    return seen


def test_as_a_process_it_samples_into_the_run_folder(runs, tmp_path):
    folder = tmp_path / "vae"
    shutil.copytree(runs / "vae", folder)
    process = run_script("ae_generate.py", "--run", folder)
    assert (process.returncode, process.stderr) == (0, "")
    assert str(folder / "generated.png") in process.stdout
    assert Image.open(folder / "generated.png").width > 500


def test_samples_are_the_seeds_alone(generate, drawn):
    for flags in (("--seed", 3), ("--seed", 3), ("--seed", 4)):
        status, _, err, files = generate("vae", "--num", 5, *flags)
        assert (status, err, files) == (0, "", ["generated.png"])
    first, again, other = (images for images, _ in drawn)
    assert first.shape == (5, 784) and first.min() >= 0 and first.max() <= 1
    assert np.array_equal(first, again) and not np.allclose(first, other)


def test_at_temperature_zero_every_sample_is_what_the_mean_of_the_prior_decodes_to(generate, drawn, runs):
    generate("vae", "--num", 3, "--temperature", 0)
    with torch.no_grad():
        expected = load_run(runs / "vae", CPU)[0].decode(torch.zeros(1, 20)).numpy()
    np.testing.assert_allclose(drawn[0][0], expected.repeat(3, 0), atol=1e-6)


def test_a_recipe_without_a_distribution_of_codes_says_what_samples_need(generate):
    status, _, err, files = generate("conv")
    assert status == 2 and is_one_error_line(err) and "variational autoencoder" in err and not files


@pytest.mark.parametrize("recipe", SINGLE)
@pytest.mark.parametrize("method", ["spherical", "linear"])
def test_the_ends_of_an_interpolation_are_the_reconstructions_of_the_two_digits(
    generate, drawn, runs, digits, recipe, method
):
    status, _, err, files = generate(recipe, "--interpolate", 3, 8, "--method", method, "--steps", 5)
    assert (status, err, files) == (0, "", ["interpolation.png"])
    row = drawn[0][0][method]
    ends = pick_pair(digits.test_labels, [3, 8], seed=0)
    assert digits.test_labels[ends].tolist() == [3, 8] and row.shape == (7, 784)
    rebuilt = reconstruct(load_run(runs / recipe, CPU)[0], torch.from_numpy(digits.test_images[ends]))
    np.testing.assert_allclose(row[[0, -1]], digits.test_images[ends] / 255)
    np.testing.assert_allclose(row[[1, -2]], rebuilt.numpy(), atol=1e-5)


def test_two_digits_of_one_label_are_two_digits(digits):
    pairs = [pick_pair(digits.test_labels, [5, 5], seed) for seed in range(20)]
    assert all(first != last and (digits.test_labels[[first, last]] == 5).all() for first, last in pairs)
    assert pairs[0] == pick_pair(digits.test_labels, [5, 5], 0) and len({*map(tuple, pairs)}) > 1


def test_an_arc_keeps_the_length_and_turns_evenly():
    start, end = np.array([2.0, 0, 0]), np.array([0, 1.0, np.sqrt(3)])
    arc = path(start, end, 7, "spherical")
    np.testing.assert_allclose(np.linalg.norm(arc, axis=1), 2)
    np.testing.assert_allclose((arc[1:] * arc[:-1]).sum(axis=1) / 4, np.cos(np.pi / 2 / 6))
    np.testing.assert_array_equal(arc[0], start)
    np.testing.assert_allclose(arc[-1], end, atol=1e-12)


@pytest.mark.parametrize("end", [[0, 0, 0], [1, 2, 3], [2, 4, 6], [-1, -2, -3]])
def test_codes_without_an_arc_between_them_are_joined_by_a_line(end):
    start = np.array([1, 2, 3], np.float32)
    way = path(start, np.array(end, np.float32), 5, "spherical")
    np.testing.assert_allclose(way, np.linspace(start, end, 5), atol=1e-12)


@pytest.mark.parametrize("recipe", ["vae", "conv"])
def test_a_walk_moves_one_dimension_through_its_range_and_no_other(generate, drawn, runs, digits, monkeypatch, recipe):
    moved = []
    decode = ae_generate.decoded
    monkeypatch.setattr(ae_generate, "decoded", lambda run, codes: moved.append(codes) or decode(run, codes))
    status, _, err, files = generate(recipe, "--walk", 4, "--steps", 6)
    assert (status, err, files) == (0, "", ["walk.png"])
    codes = encode(load_run(runs / recipe, CPU)[0], torch.from_numpy(digits.test_images)).numpy()
    ends = (-3, 3) if recipe == "vae" else (codes[:, 4].min(), codes[:, 4].max())
    rows, _ = drawn[0]
    for (label, images), row_codes in zip(rows.items(), moved, strict=True):
        number = int(label.split()[-1])
        np.testing.assert_allclose(images[0], digits.test_images[number] / 255)
        np.testing.assert_allclose(row_codes[:, 4], np.linspace(*ends, 6), rtol=1e-5, atol=1e-5)
        others = np.delete(row_codes, 4, axis=1)
        np.testing.assert_allclose(others, np.delete(codes[[number]], 4, axis=1).repeat(6, 0), atol=1e-5)


def test_a_dimension_that_never_moves_cannot_be_walked(generate, monkeypatch):
    monkeypatch.setattr(ae_generate, "codes_of", lambda run, images: np.zeros((len(images), 64), np.float32))
    status, _, err, files = generate("conv", "--walk", 0)
    assert status == 2 and is_one_error_line(err) and "for every test image" in err and not files


@pytest.mark.parametrize(("recipe", "word"), [("vae", "reconstruction"), ("denoising", "restored"), ("conv", "MSE")])
def test_ones_own_picture_is_shown_beside_what_the_model_makes_of_it(generate, figures, photo, recipe, word):
    status, out, err, files = generate(recipe, "--input", photo)
    assert (status, err, files) == (0, "", ["your_picture.png"])
    given, digit, answer = figures[-1].axes
    assert given.images[0].get_array().shape == (300, 400, 3)
    error = np.square(digit.images[0].get_array() - answer.images[0].get_array()).mean()
    assert word in answer.get_xlabel() and f"{error:.4f}" in answer.get_xlabel() and f"{error:.4f}" in out


def test_each_of_an_ensemble_answers_to_ones_own_picture(generate, figures, photo):
    status, _, err, files = generate("sparse", "--input", photo)
    assert (status, err, files) == (0, "", ["your_picture.png"])
    assert [axes.get_xlabel().split(",")[0] for axes in figures[-1].axes[2:]] == [
        "reconstruction 1",
        "reconstruction 2",
    ]


@pytest.mark.parametrize("flags", [("--walk", 0), ("--interpolate", 1, 2)])
def test_a_model_that_gives_an_image_several_codes_is_refused(generate, flags):
    status, _, err, files = generate("sparse", *flags)
    assert status == 2 and is_one_error_line(err) and "several codes" in err and not files


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--interpolate", 3, 11), "from 0 to 9"),
        (("--interpolate", 3), "expected 2"),
        (("--walk", -1), "must be from 0"),
        (("--walk", 20), "dimensions 0 to 19"),
        (("--walk", 0, "--interpolate", 1, 2), "not allowed with"),
        (("--num", 0), "from 1"),
        (("--temperature", "nan"), "must be finite"),
        (("--walk", 0, "--num", 3), "--num is for new images"),
        (("--invert", "on"), "--invert is for --input"),
        (("--steps", 1, "--walk", 0), "from 2"),
        (("--input", "missing.png"), "missing.png"),
        (("--input", "pyproject.toml"), "not a whole picture"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(generate, flags, said):
    status, out, err, files = generate("vae", *flags)
    assert (status, out, files) == (2, "", []) and is_one_error_line(err) and said in err


def test_other_images_than_the_runs_own_are_refused(generate, fake_mnist):
    status, _, err, _ = generate("vae", "--walk", 0, "--dataset", "mnist", "--data-root", fake_mnist[0])
    assert status == 2 and is_one_error_line(err) and "was trained on other images" in err


def test_a_refused_flag_or_picture_does_not_wait_for_torch():
    code = (
        "import sys, ae_generate; from autoencoders.runtime import cli\n"
        "try: cli.run(ae_generate.main)\nfinally: print('torch' in sys.modules)"
    )
    for flags in (("--interpolate", 3, 11), ("--input", "missing.png")):
        process = run_script("-c", code, "--run", "nowhere", *flags)
        assert process.returncode == 2 and process.stdout == "False\n" and is_one_error_line(process.stderr)


def broken(name, runs, folder):
    """A folder that is not, or not quite, a finished run."""
    if name != "nothing":
        shutil.copytree(runs / "vae", folder)
    if name == "no weights":
        (folder / "mnist_vae.pt").unlink()
    if name == "other weights":
        shutil.copy(runs / "denoising" / "mnist_denoising.pt", folder / "mnist_vae.pt")
    if name == "other recipe":
        shutil.copy(runs / "denoising" / "run.json", folder)
        shutil.copy(folder / "mnist_vae.pt", folder / "mnist_denoising.pt")
    if name == "edited record":
        record = json.loads((folder / "run.json").read_text())
        record["dataset"]["name"] = "mnist"
        (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["nothing", "no weights", "other weights", "other recipe", "edited record"])
def test_a_folder_that_is_no_finished_run_is_one_line(capsys, runs, tmp_path, name):
    broken(name, runs, tmp_path / "run")
    status, _, err = call_script(capsys, ae_generate.main, "--run", tmp_path / "run", "--device", "cpu")
    assert status == (2 if name == "nothing" else 1) and is_one_error_line(err) and str(tmp_path / "run") in err
    assert not list(tmp_path.rglob("generated.png"))
