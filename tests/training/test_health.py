"""Every ailment is brought about in a real training and seen; a healthy one is told nothing."""

from dataclasses import replace

import pytest
import torch
from conftest import call_script

import ae_train
from autoencoders.recipes import RECIPES
from autoencoders.runtime.device import Precision
from autoencoders.training import health
from autoencoders.training.health import Health
from autoencoders.training.trainer import Trainer

CPU = torch.device("cpu")


def said(name, images, change=lambda trainer: None, **settings):
    """The warnings of every epoch of a short real training; `change` is done to the trainer first."""
    recipe = RECIPES[name].override(settings)
    torch.manual_seed(recipe.seed)
    trainer = Trainer(recipe.build(), recipe, images.train_images, images.test_images, CPU, Precision("off", CPU))
    change(trainer)
    health = Health()
    return [line for _ in trainer.epochs() for line in health.epoch(trainer)]


def test_a_kl_weight_far_too_large_collapses_the_posterior(few):
    (line,) = said("vae", few, kl_weight=200.0, kl_anneal="none", epochs=4)
    assert line.startswith("posterior collapse") and "\n" not in line


def test_a_learning_rate_far_too_small_leaves_the_loss_where_it_was(few):
    for name in ("bce", "vae"):  # also where the loss moves because the weight of its KL term does
        lines = [line for line in said(name, few, lr=1e-30, epochs=4) if "has not moved" in line]
        assert len(lines) == 1 and "in epoch 2" in lines[0]


def test_code_units_that_cannot_fire_are_counted(few):
    def kill(trainer):
        with torch.no_grad():
            trainer.model.encoder[-2].bias -= 1000

    (line,) = said("simple", few, kill, hidden_sizes=(32,), code_size=8, epochs=3)
    assert line.startswith("8 of the 8 code units are dead")


def test_one_test_image_says_nothing_of_code_units(few):
    for count in (1, 2):
        lines = said("simple", replace(few, test_images=few.test_images[[0] * count]), hidden_sizes=(32,), epochs=1)
        assert any("units are dead" in line for line in lines) == (count == 2)


def test_a_fifth_of_dead_features_is_too_many(few):
    (line,) = said("sparse", few, num_saes=2, features=512, k=2, revive="off", epochs=2)
    assert "features are dead" in line
    rows = [{"dead_features": [0.1, share]} for share in (0.2, 0.21)]
    lines = [health.dead(type("Trainer", (), {"history": [row]})) for row in rows]
    assert lines[0] == "" and lines[1].startswith("21%")


def test_learning_a_handful_by_heart_makes_the_test_loss_rise(digits):
    handful = replace(digits, train_images=digits.train_images[:8])
    lines = said("bce", handful, hidden_sizes=(400,), lr=1e-2, epochs=60)
    assert len(lines) == 1 and "risen for three epochs" in lines[0]


def test_pixels_outside_of_the_range_are_seen_at_once(few):
    def brighten(trainer):
        trainer.train_images = trainer.train_images.short() + 60

    lines = said("bce", few, brighten, epochs=2)  # signed pixels
    assert lines == ["the pixels run from -0.5294 to 1.471, and the recipe takes them from -1 to 1"]


def test_a_run_that_ends_behind_pca_is_told_so_once(tmp_path, capsys):
    flags = ("--dataset", "digits", "--recipe", "bce", "--epochs", 1, "--output-dir", tmp_path)
    status, out, err = call_script(capsys, ae_train.main, *flags)
    assert status == 0 and err.count("\n") == 1
    assert err.startswith("warning: the autoencoder ends behind PCA: test MSE ") and "behind PCA" in out


def test_noise_and_wavering_are_no_ailments():
    rows = [{"epoch": n, "test_loss": loss} for n, loss in enumerate((1.0, 0.5, 0.501, 0.502, 0.503, 0.4), start=1)]
    for count in range(1, len(rows) + 1):
        assert not health.rising(rows[:count]) and not health.unmoved(rows[:count])
    annealed = [{"epoch": n, "test_loss": 75 + n, "test_recon_loss": 75, "test_kl_loss": 30 - n} for n in range(1, 9)]
    assert not any(health.rising(annealed[:count]) for count in range(1, 9))


HEALTHY = {
    "symmetric": {"hidden_sizes": (64,), "code_size": 16, "code_activation": "none"},
    "simple": {"code_activation": "none"},
    "conv": {},
    "denoising": {"code_activation": "none"},
    "bce": {},
    "vae": {},
    "sparse": {"num_saes": 2, "features": 64, "k": 16},
    "tuned": {"hidden_sizes": (64,), "code_size": 16},
    "speedrun": {"hidden_sizes": (64,), "code_size": 16},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_healthy_run_is_told_nothing(name, digits):
    assert said(name, digits, epochs=3, **HEALTHY[name]) == []


# What is true of the published recipes is said of them, and nothing else (the others take too long to train here).
PUBLISHED = {"simple": True, "denoising": True, "bce": False, "vae": False}


@pytest.mark.parametrize("name", PUBLISHED)
def test_of_a_published_recipe_on_mnist_only_dead_code_units_are_said(name, mnist):
    part = replace(mnist, train_images=mnist.train_images[:6000], test_images=mnist.test_images[:1000])
    lines = said(name, part, epochs=2)
    assert len(lines) == PUBLISHED[name] and all("code units are dead" in line for line in lines)
