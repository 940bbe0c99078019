import numpy as np
import pytest
from scipy.stats import binomtest

from autoencoders.evaluation.probes import accuracy, linear_probe, nearest, planes, spread_out


@pytest.mark.parametrize(("right", "count"), [(0, 5), (1, 7), (95, 100), (9083, 10_000), (40, 40)])
def test_the_interval_is_wilsons(right, count):
    found = accuracy(np.arange(count) < right)
    interval = binomtest(right, count).proportion_ci(method="wilson")
    assert found["accuracy"] == right / count
    np.testing.assert_allclose(found["interval"], (interval.low, interval.high), atol=1e-6)


@pytest.fixture(scope="module")
def clouds():
    """Four labels as clouds in the plane, with eight features of noise: training and test halves."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 600)
    features = random.normal(0, 0.1, (600, 10)).astype(np.float32)
    features[:, 0] += labels % 2
    features[:, 1] += labels // 2
    return features[:400], labels[:400], features[400:], labels[400:]


def test_labels_that_can_be_told_apart_are(clouds):
    assert linear_probe(*clouds, seed=0)["accuracy"] == 1 == nearest(*clouds)["accuracy"]


def test_of_features_without_the_labels_no_more_than_chance_is_read(clouds):
    train, train_labels, test, test_labels = clouds
    for found in (linear_probe(train[:, 2:], train_labels, test[:, 2:], test_labels, 0),
                  nearest(train[:, 2:], train_labels, test[:, 2:], test_labels)):  # fmt: skip
        assert found["accuracy"] < 0.4


def test_the_scale_and_the_origin_of_a_feature_do_not_matter_to_the_linear_probe(clouds):
    train, train_labels, test, test_labels = clouds
    scale, origin = np.geomspace(0.01, 100, 10, dtype=np.float32), np.arange(10, dtype=np.float32)
    moved = linear_probe(train * scale + origin, train_labels, test * scale + origin, test_labels, 0)
    assert moved["accuracy"] == linear_probe(*clouds, seed=0)["accuracy"]
    assert moved["converged"] is True


@pytest.mark.parametrize("counts", [(1, 1), (1, 60), (2, 2, 2), (2, 40), (6, 6)], ids=str)
def test_few_or_unevenly_many_images_of_a_label_are_read_all_the_same(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.eye(len(counts), dtype=np.float32)[labels]
    for seed in range(5):
        found = linear_probe(features, labels, features, labels, seed)
        assert found["accuracy"] > 0.9
        assert found["strength"] == 1 or sum(counts) >= 6 * len(counts)


@pytest.mark.parametrize("size", [1, 2, 60])
def test_codes_of_any_size_have_a_place_in_the_plane(size):
    codes = np.random.default_rng(0).normal(size=(80, size)).astype(np.float32)
    places = planes(codes, seed=0)
    again = planes(codes, seed=0)
    for method, at in places.items():
        assert at.shape == (80, 2) and np.isfinite(at).all() and np.array_equal(at, again[method])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(3, 1), (3, 4), (40, 4)])
def test_codes_that_are_all_one_lie_in_one_place(shape):
    for at in planes(np.ones(shape, np.float32), seed=0).values():
        assert np.isfinite(at).all() and np.ptp(at, axis=0) == pytest.approx(0)


def test_thumbnails_lie_apart(clouds):
    places = np.random.default_rng(0).random((3000, 2))
    chosen = spread_out(places, cells=5)
    assert len(chosen) == 25
    apart = np.abs(places[chosen][:, None] - places[chosen]).max(axis=2)[~np.eye(25, dtype=bool)]
    assert apart.min() > 0.1
