import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ae_models import SymmetricAutoencoder
from autoencoders.evaluation.metrics import outputs, reconstruction_error
from autoencoders.evaluation.scores import image_scores, summary


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SymmetricAutoencoder([784, 32, 8])


@pytest.fixture(scope="module")
def pairs(digits):
    """Images and reconstructions of several kinds of error, (n, 784) float32."""
    x = torch.from_numpy(digits.test_images[:60] / 255).float()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    y = torch.cat([(x[:20] + 0.1 * noise[:20]).clamp(0, 1), 0.7 * x[20:40], x[20:40].flip(1) + 0.05 * noise[20:40]])
    return x, y


def scores_of(x, y):
    return image_scores([(x, y, x)])


def test_every_score_agrees_with_scikit_image_and_scipy(pairs):
    a, b = (side.double().numpy().reshape(-1, 28, 28) for side in pairs)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    direct = {
        "mse": [np.square(x - y).mean() for x, y in zip(a, b)],
        "psnr": [peak_signal_noise_ratio(x, y, data_range=1.0) for x, y in zip(a, b)],
        "ssim": [structural_similarity(x, y, **settings) for x, y in zip(a, b)],
        "pearson": [pearsonr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b)],
    }
    scores = scores_of(*pairs)
    assert scores.keys() == direct.keys()
    for name, values in direct.items():
        np.testing.assert_allclose(scores[name][0].numpy(), values, rtol=0, atol=1e-9, err_msg=name)


def test_a_perfect_reconstruction_has_the_best_scores(pairs):
    scores = scores_of(pairs[0], pairs[0])
    for name, value in {"mse": 0, "psnr": 140, "ssim": 1, "pearson": 1}.items():
        assert scores[name][0].numpy() == pytest.approx(np.full(60, value), abs=1e-9)


def test_an_ensemble_is_scored_member_by_member(pairs):
    x, y = pairs
    both = scores_of(x, torch.stack((y, x)))
    for name, values in both.items():
        assert torch.equal(values, torch.cat((scores_of(x, y)[name], scores_of(x, x)[name])))
    found = summary(both, np.zeros(60, np.uint8))
    assert found["test_mse_unit"][1] == 0 and [m.keys() for m in found["mse_by_label"]] == [{0}, {0}]


def test_the_errors_of_the_labels_make_up_the_error_of_all(pairs, digits):
    labels = digits.test_labels[:60]
    found = summary(scores_of(*pairs), labels)
    counts = {label: int((labels == label).sum()) for label in found["mse_by_label"]}
    assert sum(counts.values()) == 60
    whole = sum(error * counts[label] for label, error in found["mse_by_label"].items()) / 60
    assert whole == pytest.approx(found["test_mse_unit"])


def test_a_constant_image_has_no_correlation_and_is_counted(pairs):
    x, y = (side.clone() for side in pairs)
    x[3] = 0.5
    whole, spoilt = (summary(scores_of(a, y), np.zeros(60, np.uint8)) for a in (pairs[0], x))
    assert (whole["undefined_pearson"], spoilt["undefined_pearson"]) == (0, 1) and np.isfinite(spoilt["pearson"])


def test_the_error_of_a_run_is_that_of_its_evaluation(model, digits):
    images = torch.from_numpy(np.concatenate([digits.train_images, digits.test_images]))
    found = summary(image_scores(outputs(model, images)), np.zeros(len(images), np.uint8))
    errors = reconstruction_error(model, images)
    assert found["test_mse_unit"] == pytest.approx(errors["test_mse_unit"], rel=1e-12)
