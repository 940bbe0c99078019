"""Pictures from a trained model: they show what the model's own encode and decode compute."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import call_script, is_one_error_line, make_trainer, run_script
from PIL import Image

import ae_generate
from autoencoders.evaluation.metrics import encode, reconstruct
from autoencoders.runtime.files import prepare_folder
from autoencoders.training.checkpoint import save_record, save_weights
from autoencoders.training.generation import decode, pick_pair
from autoencoders.training.trained import load_run

RUNS = {
    "vae": {"hidden_sizes": (32,), "code_size": 8},
    "denoising": {"hidden_sizes": (32,), "code_size": 8},
    "symmetric": {"hidden_sizes": (32,), "code_size": 8},
    "conv": {},
    "sparse": {"num_saes": 2, "features": 64, "k": 8},
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits):
    """A folder with a finished run of each recipe in RUNS, without pictures; for looking at, not for writing into."""
    root = tmp_path_factory.mktemp("runs")
    for name, settings in RUNS.items():
        trainer, folder = make_trainer(name, digits, epochs=2, **settings), prepare_folder(root / name)
        list(trainer.epochs())
        recipe = trainer.recipe
        save_record(folder, {
            "recipe": recipe.as_dict(), "weights": recipe.weights_file, "metrics": {}, "precision": "float32",
            "seconds": 1.0,
            "weights_sha256": save_weights(folder / recipe.weights_file, trainer.model),
            "dataset": {"name": digits.name, "title": digits.title, "fingerprint": digits.fingerprint, **digits.source,
                        "leave_out": None, "only": None},
        })  # fmt: skip
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


def shown(axes):
    """The images of a row as (n, pixels)."""
    return np.array([image.get_array().ravel() for image in axes.images])


def test_the_script_writes_samples_into_the_run_folder(runs, tmp_path):
    folder = tmp_path / "vae"
    shutil.copytree(runs / "vae", folder)
    process = run_script("ae_generate.py", "--run", folder)
    assert (process.returncode, process.stderr) == (0, "")
    assert str(folder / "generated.png") in process.stdout and Image.open(folder / "generated.png").width > 500


def test_samples_depend_on_the_seed_alone(generate, figures):
    for flags in (("--seed", 3), ("--seed", 3), ("--seed", 4)):
        status, _, err, files = generate("vae", "--num", 5, *flags)
        assert (status, err, files) == (0, "", ["generated.png"])
    first, again, other = (shown(figure.axes[0]) for figure in figures)
    assert np.array_equal(first, again) and not np.allclose(first, other) and first.min() >= 0 and first.max() <= 1


def test_a_recipe_without_a_distribution_of_codes_names_what_samples_need(generate):
    status, _, err, files = generate("conv")
    assert status == 2 and is_one_error_line(err) and "variational autoencoder" in err and not files


@pytest.mark.parametrize("recipe", ["vae", "symmetric", "conv"])
@pytest.mark.parametrize("method", ["spherical", "linear"])
def test_an_interpolation_runs_from_one_reconstruction_to_the_other(generate, figures, runs, digits, recipe, method):
    status, _, err, files = generate(recipe, "--interpolate", 3, 8, "--method", method, "--steps", 5)
    assert (status, err, files) == (0, "", ["interpolation.png"])
    row = shown(figures[0].axes[0])
    ends = pick_pair(digits.test_labels, [3, 8], seed=0)
    assert digits.test_labels[ends].tolist() == [3, 8] and row.shape == (7, 784)
    rebuilt = reconstruct(load_run(runs / recipe, CPU).model, torch.from_numpy(digits.test_images[ends]))
    np.testing.assert_allclose(row[[0, -1]], digits.test_images[ends] / 255)
    np.testing.assert_allclose(row[[1, -2]], rebuilt.numpy(), atol=1e-5)


@pytest.mark.parametrize("recipe", ["vae", "conv"])
def test_a_traversal_moves_one_dimension_through_its_range_and_no_other(generate, figures, runs, digits, recipe):
    status, _, err, files = generate(recipe, "--walk", 4, "--steps", 6)
    assert (status, err, files) == (0, "", ["walk.png"])
    run = load_run(runs / recipe, CPU)
    codes = encode(run.model, torch.from_numpy(digits.test_images)).numpy()
    ends = (-3, 3) if recipe == "vae" else (codes[:, 4].min(), codes[:, 4].max())
    for axes in figures[0].axes:
        number = int(axes.get_ylabel().split()[-1])
        expected = codes[[number]].repeat(6, axis=0)
        expected[:, 4] = np.linspace(*ends, 6)
        np.testing.assert_allclose(shown(axes)[0], digits.test_images[number] / 255)
        np.testing.assert_allclose(shown(axes)[1:], decode(run, expected), atol=1e-5)


@pytest.mark.parametrize(("recipe", "word"), [("vae", "reconstruction"), ("denoising", "restored")])
def test_ones_own_picture_stands_beside_its_reconstruction(generate, figures, photo, recipe, word):
    status, out, err, files = generate(recipe, "--input", photo)
    assert (status, err, files) == (0, "", ["your_picture.png"])
    axes = figures[0].axes[0]
    given, digit, rebuilt = (image.get_array() for image in axes.images)
    assert given.shape == (300, 400, 3)
    error, caption = f"{np.square(digit - rebuilt).mean():.4f}", axes.get_xticklabels()[-1].get_text()
    assert word in caption and error in caption and error in out


def test_each_of_an_ensemble_reconstructs_ones_own_picture(generate, figures, photo):
    status, _, err, files = generate("sparse", "--input", photo)
    assert (status, err, files) == (0, "", ["your_picture.png"])
    captions = [label.get_text().split(",")[0] for label in figures[0].axes[0].get_xticklabels()]
    assert captions[2:] == ["reconstruction 1", "reconstruction 2"]


@pytest.mark.parametrize(
    ("recipe", "flags", "text"),
    [
        ("sparse", ("--walk", 0), "several codes"),
        ("sparse", ("--interpolate", 1, 2), "several codes"),
        ("vae", ("--interpolate", 3, 65536), "at least 0 and at most 65535"),
        ("vae", ("--interpolate", 3, 12), "label 12"),
        ("vae", ("--walk", 8), "dimensions 0 to 7"),
        ("vae", ("--walk", 0, "--interpolate", 1, 2), "not allowed with"),
        ("vae", ("--walk", 0, "--num", 3), "--num is for new images"),
        ("vae", ("--invert", "on"), "--invert is for --input"),
        ("vae", ("--input", "missing.png"), "missing.png"),
        ("vae", ("--input", "pyproject.toml"), "pyproject.toml"),
        ("vae", ("--device", "abacus"), "abacus"),
    ],
)
def test_a_usage_error_is_one_line_and_nothing_is_written(generate, recipe, flags, text):
    status, out, err, files = generate(recipe, *flags)
    assert (status, out, files) == (2, "", []) and is_one_error_line(err) and text in err


def test_other_images_than_those_of_the_run_are_refused(generate, fake_mnist):
    status, _, err, _ = generate("vae", "--walk", 0, "--dataset", "mnist", "--data-root", fake_mnist[0])
    warning, error = err.splitlines(keepends=True)
    assert status == 2 and "not the published files" in warning
    assert is_one_error_line(error) and "other images" in error


def test_a_refused_flag_or_picture_needs_no_torch():
    code = (
        "import sys, ae_generate; from autoencoders.runtime import cli\n"
        "for flags in (['--num', '0'], ['--input', 'missing.png']):\n"
        "    try: cli.run(lambda: ae_generate.main(['--run', 'nowhere', *flags]))\n"
        "    except SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    process = run_script("-c", code)
    assert process.stdout == "2 False\n2 False\n" and process.stderr.count("error: ") == 2


@pytest.mark.parametrize("damage", ["no run", "no weights", "edited record"])
def test_a_folder_without_a_finished_run_is_one_error_line(capsys, runs, tmp_path, damage):
    folder = tmp_path / "run"
    if damage != "no run":
        shutil.copytree(runs / "vae", folder)
    if damage == "no weights":
        (folder / "mnist_vae.pt").unlink()
    if damage == "edited record":
        record = json.loads((folder / "run.json").read_text())
        record["dataset"]["name"] = "mnist"
        (folder / "run.json").write_text(json.dumps(record))
    status, _, err = call_script(capsys, ae_generate.main, "--run", folder, "--device", "cpu")
    assert status == (2 if damage == "no run" else 1) and is_one_error_line(err) and str(folder) in err
    assert not list(tmp_path.rglob("generated.png"))
