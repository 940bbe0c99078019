"""The analyses of a model, beside independent implementations; tests/test_ae_eval.py has them on trained runs."""

import numpy as np
import pytest
from conftest import make_trainer
from skimage.metrics import structural_similarity
from sklearn.decomposition import PCA

from autoencoders.evaluation.analyses import Subject, format_accuracy, reconstruction
from autoencoders.evaluation.metrics import reconstruct
from autoencoders.evaluation.pca import fit_pca


def subject(digits, max_samples=60_000):
    """An untrained model beside PCA of at most so many images."""
    trainer, pca = make_trainer("simple", digits), fit_pca(digits, max_samples)
    return Subject(trainer.model, trainer.recipe, digits, trainer.test_images, pca, seed=0, likelihood={}, split=None)


def test_pcas_scores_are_those_of_scikit_learns_pca_of_the_same_code_size(digits):
    found = reconstruction(subject(digits))[0]["pca"]
    pca = PCA(32, svd_solver="full").fit(digits.train_images / 255)
    rebuilt = pca.inverse_transform(pca.transform(digits.test_images / 255))
    assert found["components"] == 32
    assert found["test_mse_unit"] == pytest.approx(np.square(rebuilt - digits.test_images / 255).mean(), abs=1e-5)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    ssim = [structural_similarity(a.reshape(28, 28) / 255, b.reshape(28, 28), **settings)
            for a, b in zip(digits.test_images, rebuilt)]  # fmt: skip
    assert found["ssim"] == pytest.approx(np.mean(ssim), abs=1e-5)


def test_a_pca_of_some_images_is_called_that(digits):
    results, text, _ = reconstruction(subject(digits, max_samples=900))
    assert "PCA of 900 images, 32" in text and results["pca"]["samples"] == 900


def test_the_figure_shows_the_best_and_the_worst(figures, digits):
    untrained = subject(digits)
    assert list(reconstruction(untrained)[2]) == ["evaluation.png"]
    rebuilt = reconstruct(untrained.model, untrained.test_images).numpy().astype(float)
    errors = np.square(rebuilt - digits.test_images / 255).mean(axis=1)
    order = errors.argsort()
    best, _, worst, _ = figures[0].axes[1:]
    for axes, index in ((best, order[:8]), (worst, order[::-1][:8])):
        shown = np.array([image.get_array().ravel() for image in axes.images])
        np.testing.assert_allclose(shown, digits.test_images[index] / 255, atol=1e-6)
    captions = [tick.get_text() for axes in figures[0].axes[1:] for tick in axes.get_xticklabels()]
    assert captions == [f"MSE {errors[i]:.4f}" for i in (*order[:8], *order[::-1][:8])]


def test_a_fit_that_has_not_converged_says_so_in_the_table():
    found = {"accuracy": 0.5, "interval": [0.4, 0.6], "converged": False}
    assert format_accuracy(found) == "0.5000 [0.4000, 0.6000], not converged"
    assert format_accuracy({**found, "converged": True}) == "0.5000 [0.4000, 0.6000]"
