import itertools

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score

from autoencoders.evaluation.probes import (
    accuracy,
    detection,
    embed_2d,
    k_means,
    knn,
    linear_probe,
    matching_accuracy,
    pick_thumbnails,
)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (1, 7), (95, 100), (9083, 10_000), (40, 40)])
def test_the_interval_is_wilsons(right, count):
    found = accuracy(np.arange(count) < right)
    assert found["accuracy"] == right / count
    for bound in found["interval"]:  # Wilson 1927: the shares whose own standard error the measured share is 1.96 off
        assert abs(right / count - bound) == pytest.approx(1.959964 * np.sqrt(bound * (1 - bound) / count), abs=1e-7)


@pytest.fixture(scope="module")
def clouds():
    """Four labels as clouds in the plane, with eight features of noise: training and test halves."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 600)
    features = random.normal(0, 0.1, (600, 10)).astype(np.float32)
    features[:, 0] += labels % 2
    features[:, 1] += labels // 2
    return features[:400], labels[:400], features[400:], labels[400:]


def test_labels_that_are_separable_are_predicted(clouds):
    assert linear_probe(*clouds, seed=0)["accuracy"] == 1 == knn(*clouds)["accuracy"]


def test_features_without_the_labels_give_chance(clouds):
    train, train_labels, test, test_labels = clouds
    for found in (linear_probe(train[:, 2:], train_labels, test[:, 2:], test_labels, 0),
                  knn(train[:, 2:], train_labels, test[:, 2:], test_labels)):  # fmt: skip
        assert found["accuracy"] < 0.4


@pytest.mark.filterwarnings("error")
def test_many_labels_for_few_images_give_no_warning(clouds):
    train, _, test, _ = clouds
    train_labels, test_labels = np.arange(len(train)) // 2, np.arange(len(test)) // 2
    few = train[:60], train_labels[:60], test[:30], test_labels[:30]
    assert linear_probe(*few, seed=0)["accuracy"] < 0.5 and knn(*few)["accuracy"] < 0.5


def test_the_scale_and_the_origin_of_a_feature_do_not_matter_to_the_linear_probe(clouds):
    train, train_labels, test, test_labels = clouds
    scale, origin = np.geomspace(0.01, 100, 10, dtype=np.float32), np.arange(10, dtype=np.float32)
    moved = linear_probe(train * scale + origin, train_labels, test * scale + origin, test_labels, 0)
    assert moved["accuracy"] == linear_probe(*clouds, seed=0)["accuracy"]
    assert moved["converged"] is True
    assert linear_probe(*clouds, seed=0, iterations=1)["converged"] is False


@pytest.mark.parametrize("counts", [(1, 1), (1, 60), (2, 2, 2), (2, 40), (6, 6)], ids=str)
def test_few_or_unevenly_many_images_of_a_label_are_predicted_all_the_same(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.eye(len(counts), dtype=np.float32)[labels]
    for seed in range(5):
        found = linear_probe(features, labels, features, labels, seed)
        assert found["accuracy"] > 0.9
        assert found["strength"] == 1 or sum(counts) >= 6 * len(counts)


@pytest.mark.parametrize("size", [1, 2, 60])
def test_codes_of_any_size_have_a_position_in_the_plane(size):
    codes = np.random.default_rng(0).normal(size=(80, size)).astype(np.float32)
    positions = embed_2d(codes, seed=0)
    again = embed_2d(codes, seed=0)
    for method, at in positions.items():
        assert at.shape == (80, 2) and np.isfinite(at).all() and np.array_equal(at, again[method])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(3, 1), (3, 4), (40, 4)])
def test_identical_codes_share_a_position(shape):
    for at in embed_2d(np.ones(shape, np.float32), seed=0).values():
        assert np.isfinite(at).all() and np.ptp(at, axis=0) == pytest.approx(0)


def test_thumbnails_lie_apart(clouds):
    positions = np.random.default_rng(0).random((3000, 2))
    chosen = pick_thumbnails(positions, cells=5)
    assert len(chosen) == 25
    apart = np.abs(positions[chosen][:, None] - positions[chosen]).max(axis=2)[~np.eye(25, dtype=bool)]
    assert apart.min() > 0.1


def test_tsne_starts_from_pca(clouds):
    positions = embed_2d(clouds[0], seed=0)
    for one, other in zip(positions["PCA"].T, positions["t-SNE"].T):
        assert np.corrcoef(one, other)[0, 1] > 0.5


@pytest.mark.parametrize("ties", [False, True])
def test_detection_agrees_with_scikit_learn_and_with_the_rank_test(ties):
    random = np.random.default_rng(0)
    inliers, outliers = random.gamma(2, 1, 700), random.gamma(3, 1.3, 150)
    if ties:
        inliers, outliers = inliers.round(), outliers.round()
    found = detection(inliers, outliers)
    truth, errors = np.repeat((0, 1), (700, 150)), np.concatenate((inliers, outliers))
    ranks = mannwhitneyu(outliers, inliers).statistic / (700 * 150)
    assert found["auroc"] == pytest.approx(ranks, abs=1e-9)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, errors), abs=1e-9)
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, errors), abs=1e-9)
    assert found["auroc"] + detection(outliers, inliers)["auroc"] == pytest.approx(1)


def test_no_smaller_inlier_error_would_do_for_the_threshold():
    random = np.random.default_rng(1)
    inliers, outliers = random.random(333), random.random(50) + 0.5
    found = detection(inliers, outliers)
    below = inliers[inliers < found["threshold"]]
    assert (inliers <= found["threshold"]).mean() == found["specificity"] >= 0.95 > (inliers <= below.max()).mean()
    assert found["sensitivity"] == (outliers > found["threshold"]).mean()


def test_matching_accuracy_does_not_depend_on_the_names_of_the_clusters():
    labels = np.random.default_rng(0).integers(0, 5, 300)
    assert matching_accuracy(labels, (labels * 3 + 1) % 5 + 20) == 1
    merged = np.where(labels == 4, 3, labels)  # two labels in one cluster: the larger counts
    counts = np.bincount(labels)
    assert matching_accuracy(labels, merged) == pytest.approx(1 - min(counts[3], counts[4]) / 300)


def test_the_best_matching_is_that_of_all_permutations():
    random = np.random.default_rng(1)
    labels, clusters = random.integers(0, 4, (2, 200))
    best = max((labels == np.array(order)[clusters]).mean() for order in itertools.permutations(range(4)))
    assert matching_accuracy(labels, clusters) == pytest.approx(best)


def test_k_means_finds_separate_clouds_and_reports_every_start(clouds):
    train, _, test, labels = clouds
    found = k_means(train, test, labels, seed=0)
    assert found["best"] == {"accuracy": 1.0, "nmi": pytest.approx(1.0)} and found["starts"] == 10
    assert found["accuracy"] <= 1 and found["accuracy_spread"] >= 0
    assert k_means(train, test, labels, seed=0) == found != k_means(train[:, 2:], test[:, 2:], labels, seed=0)
