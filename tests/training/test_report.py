"""The results of a run: the summary compares with PCA, and every picture that a recipe names exists."""

import csv
import io

import numpy as np
import pytest
import torch
from conftest import make_trainer

from autoencoders.evaluation.pca import fit_pca
from autoencoders.recipes import RECIPES
from autoencoders.runtime import cli
from autoencoders.training import report
from autoencoders.training.trackers import flatten_lists

METRICS = {"test_mse_unit": 0.03, "pca_test_mse_unit": 0.02, "pca_samples": 60_000}
SPARSE = {"pearson": [0.9, 0.8], "dead_features": [0.25, 0.5], "undefined_pearson": [0, 0]}


def summary(**metrics):
    return report.format_summary(RECIPES["simple"], {**METRICS, **metrics})


def test_the_summary_compares_the_test_error_with_that_of_pca():
    assert "behind PCA, with 1.50 times" in summary() and "32 components 0.02000" in summary()
    assert "ahead of PCA, with 0.50 times" in summary(test_mse_unit=[0.01, 0.01])
    assert "times" not in summary(pca_test_mse_unit=1e-9)  # a ratio to nothing
    assert "PCA with 11 components" in summary(pca_samples=11)


def test_the_summary_tells_whether_noise_was_removed():
    assert "2.0 times" in summary(noisy_mse=0.1, restored_mse=0.05)
    assert "times less" not in summary(noisy_mse=0.1, restored_mse=0.15)


def test_the_summary_gives_the_values_of_each_autoencoder_of_an_ensemble():
    text = summary(**SPARSE)
    assert all(value in text for value in ("0.9000, 0.8000", "25.0%, 50.0%")) and "MMCS" not in text
    assert "MMCS of the dictionaries 0.7000" in summary(**SPARSE, mmcs=0.7)
    assert "leaves out 0, 3 test images" in summary(**{**SPARSE, "undefined_pearson": [0, 3]})


def test_the_history_has_a_column_for_each_autoencoder():
    rows = [{"epoch": 1, "loss": [0.5, 0.25]}, {"epoch": 2, "loss": [0.4, 0.2]}]
    table = list(csv.reader(io.StringIO(cli.format_csv([flatten_lists(row) for row in rows]).decode())))
    assert len(table) == 3 and len(table[0]) == 3 and table[2] == ["2", "0.4", "0.2"]


def test_every_picture_that_a_recipe_names_can_be_drawn():
    assert {name for recipe in RECIPES.values() for name in recipe.pictures} == report.PICTURES.keys()


def drawn(trainer, images):
    pca = fit_pca(images)
    return report.pictures(trainer, images, pca, report.measure(trainer, images, pca))


@pytest.mark.parametrize("members", [1, 2])
def test_an_ensemble_of_any_number_is_measured_and_drawn(members, few, figures):
    trainer = make_trainer("sparse", few, num_saes=members, features=64, k=8, epochs=1)
    list(trainer.epochs())
    pca = fit_pca(few)
    metrics = report.measure(trainer, few, pca)
    assert len(metrics["test_mse"]) == len(metrics["dead_features"]) == members and ("mmcs" in metrics) == (members > 1)
    names = [name for name, _ in report.pictures(trainer, few, pca, metrics)]
    assert names == ["training_loss.png", "reconstructions.png", "training_metrics.png", "sae_features.png",
                     "feature_activity.png"]  # fmt: skip
    labels = [axes.get_ylabel().replace("\n", " ") for axes in figures[1].axes]
    assert labels[:4] == ["original", "PCA", "autoencoder 1", "active features"]
    assert not any("PCA" in line.get_label() for line in figures[0].axes[0].lines)  # its loss is a sum


def test_pictures_show_what_the_model_computes(few, figures):
    trainer = make_trainer("denoising", few, hidden_sizes=(32,), code_size=2, epochs=1)
    list(trainer.epochs())
    names = list(dict(drawn(trainer, few)))
    assert names == ["training_loss.png", "reconstructions.png", "latent_map.png"]
    clean, noisy, restored = ([image.get_array() for image in axes.images] for axes in figures[1].axes)
    np.testing.assert_allclose(np.reshape(clean, (10, -1)), few.test_images[:10] / 255, atol=1e-6)
    with torch.no_grad():
        expected = trainer.model(torch.tensor(np.reshape(noisy, (10, -1))))[0]
    np.testing.assert_allclose(np.reshape(restored, (10, -1)), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "scale"), [("symmetric", 4), ("simple", 1)])
def test_a_squared_error_is_drawn_in_unit_range_with_pca_beside_it(name, scale, few, figures):
    trainer = make_trainer(name, few, hidden_sizes=(32,), code_size=8, epochs=2)
    rows = list(trainer.epochs())
    list(drawn(trainer, few))
    axes, pca_mse = figures[0].axes[0], fit_pca(few).test_mse(few.test_images, 8)
    _, test, pca = axes.lines
    np.testing.assert_allclose(test.get_ydata(), [row["test_loss"] / scale for row in rows])
    assert set(pca.get_ydata()) == {pca_mse} and axes.get_ylabel() == "MSE, pixels in [0, 1]"
    assert f"test MSE {rows[-1]['test_loss'] / scale:.4f}" in figures[0]._suptitle.get_text()


def test_a_loss_in_nats_has_no_line_of_pca(few, figures):
    trainer = make_trainer("bce", few, epochs=1)
    list(trainer.epochs())
    list(drawn(trainer, few))
    assert len(figures[0].axes[0].lines) == 2 and figures[0].axes[0].get_ylabel() == "nats per image"
    assert figures[0]._suptitle.get_text().endswith("after 1 epoch")


def test_the_reconstructions_of_pca_stand_between_with_the_error_of_each(few, figures):
    trainer = make_trainer("simple", few, hidden_sizes=(32,), code_size=8, epochs=1)
    pca, shown = fit_pca(few), few.test_images[:10]
    report.reconstructions(trainer, few, pca, "title")
    original, by_pca, autoencoder = figures[0].axes
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["original", "PCA", "autoencoder"]
    rebuilt = np.reshape([image.get_array() for image in by_pca.images], (10, -1))
    np.testing.assert_allclose(rebuilt, pca.decode(pca.encode(shown, 8)), atol=1e-6)
    errors = np.square(rebuilt - shown / 255).mean(axis=1)
    assert [tick.get_text() for tick in by_pca.get_xticklabels()] == [f"MSE {error:.4f}" for error in errors]
    assert len(autoencoder.get_xticklabels()) == 10 and not original.get_xticklabels()
