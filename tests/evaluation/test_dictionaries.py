from itertools import permutations
from time import process_time

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from autoencoders.evaluation import dictionaries
from autoencoders.evaluation.metrics import to_pixels
from autoencoders.recipes import RECIPES
from autoencoders.runtime.errors import UsageError
from autoencoders.sparse import SparseEnsemble


def rows(features, pixels=9, seed=0):
    return torch.randn(features, pixels, generator=torch.Generator().manual_seed(seed))


def test_the_matching_is_the_best_of_all_permutations():
    a, b = rows(5), rows(5, seed=1)
    cosines = (normalize(a, dim=1) @ normalize(b, dim=1).T).numpy()
    best = max(permutations(range(5)), key=lambda order: cosines[range(5), order].sum())
    _, columns, matched = dictionaries.match(a, b)
    assert tuple(columns) == best
    assert np.allclose(matched, cosines[range(5), best], atol=1e-6)


def test_a_dictionary_agrees_with_itself_in_another_order_and_scale_and_not_with_its_negative():
    a = rows(40)
    shuffled = a[torch.randperm(40)] * torch.rand(40, 1).add(0.1)
    found, cosines = dictionaries.compare([(a, shuffled)])
    assert found["pw_mcc"] == pytest.approx(1) == found["mmcs"]
    assert found["shared"] == 1
    assert cosines.shape == (40,)
    assert dictionaries.compare([(rows(2, 2), -rows(2, 2))])[0]["pw_mcc"] < 1


def test_one_to_one_is_never_above_the_best_of_all_and_pairs_are_averaged():
    pairs = [(rows(30, seed=2 * n), rows(30, seed=2 * n + 1)) for n in range(3)]
    found, cosines = dictionaries.compare(pairs)
    assert found["pw_mcc"] < found["mmcs"]
    cosines_of = [(normalize(a, dim=1) @ normalize(b, dim=1).T).numpy() for a, b in pairs]
    assert found["mmcs"] == pytest.approx(np.mean([(c.max(0).mean() + c.max(1).mean()) / 2 for c in cosines_of]))
    singles = [dictionaries.compare([pair])[0]["pw_mcc"] for pair in pairs]
    assert found["pw_mcc"] == pytest.approx(np.mean(singles))
    assert found["pw_mcc_spread"] == pytest.approx(np.std(singles, ddof=1))
    assert found["pairs"] == 3
    assert len(cosines) == 90
    assert found["shared"] == np.mean(cosines > 0.7)


def test_of_two_sizes_the_smaller_one_is_matched_and_the_rest_is_not_stable():
    small, large = rows(3), torch.cat([rows(3), -rows(2, seed=9)])
    assert dictionaries.compare([(small, large)])[0]["pw_mcc"] == pytest.approx(1)
    stable = dictionaries.stability([small, large])
    assert np.allclose(stable[0], 1)
    assert np.allclose(stable[1], [1, 1, 1, 0, 0])


def test_stability_is_the_mean_cosine_with_the_matches_in_all_others():
    three = [rows(6, seed=seed) for seed in range(3)]
    expected = np.zeros(6)
    for other in three[1:]:
        first, _, cosines = dictionaries.match(three[0], other)
        expected[first] += cosines / 2
    assert np.allclose(dictionaries.stability(three)[0], expected)


def test_random_rows_have_the_covariance_of_the_images():
    images = np.random.default_rng(0).integers(0, 256, (500, 6), np.uint8)
    images[:, 1] = images[:, 0]
    drawn = dictionaries.random(images, 20_000, seed=0).numpy()
    expected = np.cov(images.T, ddof=0)
    assert np.allclose(np.cov(drawn.T), expected, atol=0.03 * expected.max())
    assert np.allclose(drawn[:, 0], drawn[:, 1], rtol=1e-3, atol=1e-2)


def test_what_a_feature_explains_is_what_the_error_grows_by_without_it():
    torch.manual_seed(0)
    model = SparseEnsemble(num_saes=2, features=12, k=3, inputs=16)
    images = torch.randint(0, 256, (40, 16), dtype=torch.uint8)
    labels = np.arange(40) % 4
    found = dictionaries.feature_statistics(model, images, labels)
    x = to_pixels(images, "unit")
    variance = x.var(dim=0, correction=0).sum()
    for member in range(2):
        y, code = (part[member].detach() for part in model(x))
        for feature in range(12):
            less = code.clone()
            less[:, feature] = 0
            without = model.decode(less)[member].detach()
            grown = ((x - without).square().sum() - (x - y).square().sum()) / len(x) / variance
            assert found[member]["explained"][feature] == pytest.approx(grown.item(), abs=1e-5)
        assert np.allclose(found[member]["firing_rate"], (code != 0).float().mean(0))
        means = np.stack([code.clamp(min=0)[labels == label].mean(0) for label in range(4)])
        top, rest = means.max(0), (means.sum(0) - means.max(0)) / 3
        expected = np.divide(top - rest, top + rest, out=np.zeros_like(top), where=top + rest > 0)
        assert np.allclose(found[member]["selectivity"], expected, atol=1e-5)


@pytest.mark.parametrize("recipe", ["symmetric", "tuned", "sparse", "vae"])
def test_a_dictionary_is_what_the_last_layer_adds_up(recipe):
    model = RECIPES[recipe].override({"code_size": 5} if "code_size" in RECIPES[recipe].model_args else {}).build()
    for one in dictionaries.of_model(model):
        assert one.shape[1] == 784
    assert len(dictionaries.of_model(model)) == model.members


def test_convolutions_have_no_dictionary():
    with pytest.raises(UsageError, match="fully connected"):
        dictionaries.of_model(RECIPES["conv"].build())


def test_2048_features_are_matched_with_2048_in_under_2_seconds():
    a, b = rows(2048, 784), rows(2048, 784, seed=1)
    start = process_time()
    dictionaries.match(a, b)
    assert process_time() - start < 2


def test_untrained_dictionaries_follow_from_the_seed_and_leave_the_random_state_alone():
    before = torch.random.get_rng_state()
    first, again, other = (dictionaries.untrained(RECIPES["simple"], seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())
