"""Every problem is brought about in a real training and reported; a healthy training gives no warning."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import make_trainer

from autoencoders.recipes import RECIPES
from autoencoders.training import health

PROBLEMS = (health.posterior_collapse, health.not_learning, health.rising_test_loss, health.dead_features)


@pytest.fixture
def warnings(caplog):
    """A function that runs a short real training and returns its warnings; `change` alters the trainer first."""

    def run(name, images, change=lambda trainer: None, **settings):
        caplog.clear()
        trainer, reported = make_trainer(name, images, **settings), set()
        change(trainer)
        with caplog.at_level(logging.WARNING):
            for _ in trainer.epochs():
                health.check(trainer, reported)
        return caplog.messages

    return run


def after(rows):
    """A trainer that has this history, of a recipe whose KL term is annealed where the rows have one."""
    return SimpleNamespace(history=rows, recipe=RECIPES["vae" if "test_kl_loss" in rows[0] else "simple"])


def test_a_kl_weight_far_too_large_collapses_the_posterior(few, warnings):
    (line,) = warnings("vae", few, hidden_sizes=(64,), kl_weight=200.0, kl_anneal="none", epochs=4)
    assert "posterior collapse" in line and "\n" not in line


@pytest.mark.parametrize("name", ["bce", "vae"])  # also where annealing the KL term changes the loss itself
def test_a_learning_rate_far_too_small_changes_nothing_and_is_reported_once(name, few, warnings):
    lines = [line for line in warnings(name, few, hidden_sizes=(32,), lr=1e-30, epochs=4) if "not learning" in line]
    assert len(lines) == 1 and "epoch 2" in lines[0]


def test_where_a_schedule_ends_the_loss_may_stand_still(few, warnings):
    settings = {"hidden_sizes": (32,), "lr": 1e-30, "epochs": 4}
    assert any("epoch 2" in line for line in warnings("bce", few, lr_schedule="one-cycle", **settings))
    still = [{"epoch": number, "test_loss": 87.0} for number in range(1, 5)]
    trainer = SimpleNamespace(history=still, recipe=replace(RECIPES["bce"], epochs=4))
    assert health.not_learning(trainer)
    trainer.recipe = replace(trainer.recipe, lr_schedule="cosine")
    assert not health.not_learning(trainer)


def test_dead_code_units_are_counted(few, warnings):
    def kill(trainer):
        with torch.no_grad():
            trainer.model.encoder[-2].bias -= 1000

    (line,) = warnings("simple", few, kill, hidden_sizes=(32,), code_size=8, epochs=3)
    assert "8 of the 8 code units are dead" in line


def test_one_test_image_does_not_show_dead_units(few, warnings):
    for count in (1, 2):
        same = replace(few, test_images=few.test_images[[0] * count], test_labels=few.test_labels[[0] * count])
        lines = warnings("simple", same, hidden_sizes=(32,), epochs=1)
        assert any("units are dead" in line for line in lines) == (count == 2)


def test_more_than_a_fifth_of_dead_features_is_reported(few, warnings):
    (line,) = warnings("sparse", few, num_saes=2, features=512, k=2, revive="off", epochs=2)
    assert "features are dead" in line
    texts = [health.dead_features(after([{"dead_features": [0.1, share]}])) for share in (0.2, 0.21)]
    assert texts[0] == "" and "21%" in texts[1]


def test_overfitting_a_handful_of_images_makes_the_test_loss_rise(digits, warnings):
    handful = replace(digits, train_images=digits.train_images[:8], train_labels=digits.train_labels[:8])
    lines = warnings("bce", handful, hidden_sizes=(400,), lr=1e-2, epochs=30)
    assert len(lines) == 1 and "has risen" in lines[0]


def test_fluctuations_are_no_problem():
    rows = [{"epoch": n, "test_loss": loss} for n, loss in enumerate((1.0, 0.5, 0.501, 0.502, 0.503, 0.4), start=1)]
    annealed = [{"epoch": n, "test_loss": 75 + n, "test_recon_loss": 75, "test_kl_loss": 30 - n} for n in range(1, 9)]
    perfect = [{"epoch": n, "test_loss": 0.0} for n in (1, 2, 3)]
    for history in (rows, annealed, perfect):
        for count in range(1, len(history) + 1):
            assert not any(problem(after(history[:count])) for problem in PROBLEMS)


def test_a_run_behind_pca_is_warned_about_unless_it_removes_noise(few, caplog):
    for name in ("denoising", "simple"):
        for error in (0.01, 0.03):
            assert not caplog.messages
            health.warn_if_behind_pca(make_trainer(name, few), {"test_mse_unit": error, "pca_test_mse_unit": 0.02})
    (line,) = caplog.messages
    assert "behind PCA" in line


HEALTHY = {
    "symmetric": {"hidden_sizes": (64,), "code_size": 16, "code_activation": "none"},
    "simple": {"code_activation": "none"},
    "denoising": {"code_activation": "none"},
    "sparse": {"num_saes": 2, "features": 64, "k": 16},
    "sparse_tuned": {"features": 32, "k": 16},
    "tuned": {"hidden_sizes": (64,), "code_size": 16},
    "speedrun": {"hidden_sizes": (64,), "code_size": 16},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_healthy_run_gives_no_warning(name, digits, warnings):
    assert warnings(name, digits, epochs=3, **HEALTHY.get(name, {})) == []


# The other published recipes take too long to train here.
@pytest.mark.parametrize(("name", "dead"), [("simple", True), ("denoising", True), ("bce", False), ("vae", False)])
def test_the_only_problem_of_a_published_recipe_on_mnist_is_dead_code_units(name, dead, mnist, warnings):
    part = replace(
        mnist, train_images=mnist.train_images[:6000], train_labels=mnist.train_labels[:6000],
        test_images=mnist.test_images[:1000], test_labels=mnist.test_labels[:1000],
    )  # fmt: skip
    lines = warnings(name, part, epochs=2)
    assert len(lines) == dead and all("code units are dead" in line for line in lines)
