"""The scikit-learn transformer: scikit-learn's own checks, and what they do not ask."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from autoencoders import AutoencoderTransformer

SMALL = {"code_size": 3, "hidden_sizes": (16,), "epochs": 2}


@parametrize_with_checks([AutoencoderTransformer(**SMALL), AutoencoderTransformer("vae", **SMALL)])
def test_scikit_learns_own_checks_pass(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def table():
    """200 rows of 11 columns, far from [0, 1], that three numbers describe."""
    random = np.random.default_rng(0)
    return 1000 + 50 * random.normal(size=(200, 3)) @ random.normal(size=(3, 11))


def test_a_table_of_any_width_comes_back_nearly_as_it_was(table):
    model = AutoencoderTransformer(code_size=3, hidden_sizes=(64,), batch_size=16, random_state=0).fit(table)
    back = model.inverse_transform(model.transform(table))
    assert back.shape == table.shape
    assert np.square(back - table).mean() < 0.02 * table.var(axis=0).mean()
    assert list(model.get_feature_names_out()) == [f"autoencodertransformer{i}" for i in range(3)]


def test_values_outside_the_range_of_the_fit_are_clipped(table):
    model = AutoencoderTransformer(**SMALL).fit(table)
    low, high = np.full((1, 11), table.min()), np.full((1, 11), table.max())
    assert np.array_equal(model.transform(low - 500), model.transform(low))
    assert np.array_equal(model.transform(high + 500), model.transform(high))


def test_a_seed_decides_the_bits_and_torchs_random_state_and_threads_stay(table):
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first, again, other = (AutoencoderTransformer(**SMALL, random_state=s).fit_transform(table) for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


def test_pca_decides_a_code_size_of_none(table):
    model = AutoencoderTransformer(**SMALL | {"code_size": None}).fit(table)
    assert model.transform(table).shape[1] == len(model.get_feature_names_out()) <= 3


@pytest.mark.parametrize(
    ("name", "text"), [("sparse", "--code-size does not apply"), ("none", "'none': expected one of")]
)
def test_a_recipe_without_a_code_size_is_refused(table, name, text):
    with pytest.raises(ValueError, match=text):
        AutoencoderTransformer(name).fit(table)


def test_codes_are_features_of_a_pipeline():
    images, labels = load_digits(return_X_y=True)
    model = AutoencoderTransformer(code_size=16, hidden_sizes=(64,), epochs=15, random_state=0)
    pipeline = make_pipeline(model, LogisticRegression(max_iter=300)).fit(images[:1200], labels[:1200])
    assert pipeline.score(images[1200:], labels[1200:]) > 0.8
