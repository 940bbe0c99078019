"""Scores agree with independent implementations, image by image."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, pearsonr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import average_precision_score, roc_auc_score

from autoencoders.evaluation.scores import detection, scores, summary


@pytest.fixture(scope="module")
def pairs(digits):
    """Images and reconstructions of several kinds of badness, (n, 784) float32."""
    x = torch.from_numpy(digits.test_images[:60] / 255).float()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    y = torch.cat([(x[:20] + 0.1 * noise[:20]).clamp(0, 1), 0.7 * x[20:40], x[20:40].flip(1) + 0.05 * noise[20:40]])
    return x, y


def test_every_score_agrees_with_scikit_image_and_scipy(pairs):
    scored = scores(*pairs)
    a, b = (side.double().numpy().reshape(-1, 28, 28) for side in pairs)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    direct = {
        "mse": [np.square(x - y).mean() for x, y in zip(a, b)],
        "psnr": [peak_signal_noise_ratio(x, y, data_range=1.0) for x, y in zip(a, b)],
        "ssim": [structural_similarity(x, y, **settings) for x, y in zip(a, b)],
        "pearson": [pearsonr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b)],
    }
    assert scored.keys() == direct.keys()
    for name, values in direct.items():
        np.testing.assert_allclose(scored[name].numpy(), values, rtol=0, atol=1e-9, err_msg=name)


def test_a_perfect_answer_has_the_best_scores(pairs):
    scored = scores(pairs[0], pairs[0])
    best = {"mse": 0, "psnr": 140, "ssim": 1, "pearson": 1}
    for name, value in best.items():
        assert scored[name].numpy() == pytest.approx(np.full(60, value), abs=1e-9)


def test_scores_span_the_passes(pairs):
    x, y = (side.repeat(20, 1) for side in pairs)  # more than a pass takes
    assert torch.equal(scores(x, y)["ssim"], scores(*pairs)["ssim"].repeat(20))


def test_the_errors_of_the_labels_make_up_the_error_of_all(pairs, digits):
    labels = digits.test_labels[:60]
    found = summary(scores(*pairs), labels)
    counts = {label: int((labels == label).sum()) for label in found["mse_by_label"]}
    assert sum(counts.values()) == 60
    whole = sum(error * counts[label] for label, error in found["mse_by_label"].items()) / 60
    assert whole == pytest.approx(found["test_mse_unit"]) and found["test_mse_signed"] == pytest.approx(4 * whole)


def test_a_constant_image_has_no_correlation_and_is_counted(pairs):
    x, y = (side.clone() for side in pairs)
    x[3] = 0.5
    whole, spoilt = (summary(scores(a, y), np.zeros(60, np.uint8)) for a in (pairs[0], x))
    assert (whole["undefined_pearson"], spoilt["undefined_pearson"]) == (0, 1) and np.isfinite(spoilt["pearson"])


@pytest.mark.parametrize("ties", [False, True])
def test_detection_agrees_with_scikit_learn_and_with_the_rank_test(ties):
    random = np.random.default_rng(0)
    usual, strange = random.gamma(2, 1, 700), random.gamma(3, 1.3, 150)
    if ties:
        usual, strange = usual.round(), strange.round()
    found = detection(usual, strange)
    truth, errors = np.repeat((0, 1), (700, 150)), np.concatenate((usual, strange))
    ranks = mannwhitneyu(strange, usual).statistic / (700 * 150)
    assert found["auroc"] == pytest.approx(ranks, abs=1e-9)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, errors), abs=1e-9)
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, errors), abs=1e-9)
    assert found["auroc"] + detection(strange, usual)["auroc"] == pytest.approx(1)


def test_no_smaller_usual_error_would_do_for_the_threshold():
    random = np.random.default_rng(1)
    usual, strange = random.random(333), random.random(50) + 0.5
    found = detection(usual, strange)
    below = usual[usual < found["threshold"]]
    assert (usual <= found["threshold"]).mean() == found["specificity"] >= 0.95 > (usual <= below.max()).mean()
    assert found["sensitivity"] == (strange > found["threshold"]).mean()
