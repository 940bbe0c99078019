"""Every recipe through the real script on digits: the files it writes, and the effect of its flags."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import call_script, is_one_error_line, only_warnings, run_script
from PIL import Image

import ae_train
from autoencoders.recipes import RECIPES

FLAGS = {
    "symmetric": ("--hidden-sizes", 32),
    "tuned": ("--hidden-sizes", 32),
    **{name: ("--hidden-sizes", "32,16") for name in ("hinton", "novelty")},
    **{name: ("--hidden-sizes", 32, "--code-size", 4) for name in ("vae_static", "vae_dynamic", "iwae")},
    "sparse": ("--features", 64, "--k", 8, "--num-saes", 2),
    "sparse_tuned": ("--features", 64, "--k", 8),
    "vae": ("--hidden-sizes", "128,64", "--code-size", 2, "--kl-anneal", "none", "--log-interval", 5,
            "--pictures-every", 2, "--weights-every", 1),
}  # fmt: skip
EVERY_EPOCH = {"reconstructions_epoch_002.png", "mnist_vae_epoch_001.pt", "mnist_vae_epoch_002.pt"}
EXTRA = {**{name: {"samples.png"} for name in ("vae_static", "vae_dynamic", "iwae")},
         "vae": {"samples.png", "latent_map.png"} | EVERY_EPOCH,
         **{name: {"training_metrics.png", "sae_features.png", "feature_activity.png"}
            for name in ("sparse", "sparse_tuned")}}  # fmt: skip
PUBLISHED = {  # SPEC: hidden sizes, code, pixels, loss, optimizer, batch, epochs, seed
    "symmetric": ((2500,), None, "signed", "mse", "adam", 256, 10, 0),
    "simple": ((128, 64), 32, "unit", "mse", "adam", 128, 10, 42),
    "denoising": ((128, 64), 32, "unit", "mse", "adam", 128, 10, 42),
    "bce": ((400,), 20, "signed", "bce", "adam", 128, 10, 42),
    "vae": ((256,), 20, "unit", "bce", "adamw", 128, 50, 42),
}


def train(capsys, folder, *more):
    return call_script(capsys, ae_train.main, "--dataset", "digits", "--epochs", 2, "--output-dir", folder, *more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function that trains a recipe once: (output folder, status, stdout, stderr); for looking at only."""
    finished = {}

    def run(name, capsys):
        if name not in finished:
            folder = tmp_path_factory.mktemp(name)
            finished[name] = (folder, *train(capsys, folder, "--recipe", name, *FLAGS.get(name, ())))
        return finished[name]

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_to_its_pictures_and_a_complete_record(name, runs, capsys):
    recipe, (folder, status, out, err) = RECIPES[name], runs(name, capsys)
    assert status == 0 and only_warnings(err) and "Epoch 2/2" in out and "Test MSE" in out
    expected = {"run.json", "history.csv", "checkpoint.pt", ".lock", "training_loss.png", "reconstructions.png"}
    expected |= {recipe.weights_file} | EXTRA.get(name, set())
    if recipe.code_size is None:
        expected |= {"n_components_95.txt", "pca.npz", "pca_cumulative_variance.png"}
    assert {path.name for path in folder.iterdir()} == expected
    for picture in folder.glob("*.png"):
        assert np.asarray(Image.open(picture).convert("L")).std() > 5
    record = json.loads((folder / "run.json").read_text())
    assert record["recipe"]["name"] == name and np.all(np.array(record["metrics"]["test_mse"]) > 0)
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["test_loss"]) == record["metrics"]["test_loss"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_settings_of_its_write_up(name):
    hidden, code, pixels, loss, optimizer, batch, epochs, seed = PUBLISHED[name]
    recipe = RECIPES[name]
    assert (recipe.model_args["hidden_sizes"], recipe.model_args["code_size"]) == (hidden, code)
    assert (recipe.optimizer, recipe.batch_size, recipe.epochs, recipe.seed) == (optimizer, batch, epochs, seed)
    assert (recipe.lr, recipe.lr_schedule) == (1e-3, "constant")
    model = recipe.override({"code_size": code or 154}).build()
    assert (model.input_range, model.loss_name) == (pixels, loss)


def test_a_deeper_vae_is_a_matter_of_flags(runs, capsys):
    folder, *_ = runs("vae", capsys)
    shapes = {k: tuple(v.shape) for k, v in torch.load(folder / "mnist_vae.pt", weights_only=True).items()}
    assert shapes["encoder.0.weight"] == (128, 784) and shapes["encoder.2.weight"] == (64, 128)
    assert shapes["mean.weight"] == shapes["logvar.weight"] == (2, 64)
    assert [shapes[f"decoder.{i}.weight"] for i in (0, 2, 4)] == [(64, 2), (128, 64), (784, 128)]


def test_every_nth_batch_is_printed_and_every_nth_epoch_written(runs, capsys):
    folder, _, out, _ = runs("vae", capsys)
    assert "Epoch 1, step 10/12 (83%): batch loss" in out
    assert (folder / "mnist_vae_epoch_002.pt").read_bytes() == (folder / "mnist_vae.pt").read_bytes()
    assert (folder / "mnist_vae_epoch_001.pt").read_bytes() != (folder / "mnist_vae.pt").read_bytes()


def test_noise_can_be_added_to_the_test_images_too(runs, tmp_path, capsys):
    clean, *_ = runs("denoising", capsys)
    assert train(capsys, tmp_path, "--recipe", "denoising", "--test-noise")[0] == 0
    metrics = [json.loads((folder / "run.json").read_text())["metrics"] for folder in (clean, tmp_path)]
    assert all(of_one["noisy_mse"] > of_one["restored_mse"] > 0 for of_one in metrics)
    assert metrics[0]["test_loss"] != metrics[1]["test_loss"]
    status, _, err = train(capsys, tmp_path, "--recipe", "simple", "--test-noise")
    assert status == 2 and is_one_error_line(err) and "noise" in err


@pytest.mark.parametrize("flags", [("--loss", "bce"), ("--device", "tpu")])
def test_a_setting_that_is_refused_late_still_writes_nothing(tmp_path, capsys, flags):
    status, _, err = train(capsys, tmp_path / "new", *flags)
    assert status == 2 and is_one_error_line(err) and not (tmp_path / "new").exists()


def test_the_list_of_recipes_names_each_with_its_shape_loss_settings_and_source():
    process = run_script("ae_train.py", "--list-recipes")
    assert process.returncode == 0 and process.stderr == ""
    blocks = {block.split(":")[0]: block for block in process.stdout.split("\n\n")}
    assert blocks.keys() == RECIPES.keys()
    for name, block in blocks.items():
        assert all(f"  {line} " in block for line in ("model", "loss", "arguments", "training", "source"))
        assert f"epochs {RECIPES[name].epochs}" in block and RECIPES[name].source in block
    assert "784-400-20-400-784" in blocks["bce"] and "784-2500-PCA-2500-784" in blocks["symmetric"]
