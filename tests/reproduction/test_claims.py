import numpy as np
import pytest

from autoencoders.recipes import RECIPES
from autoencoders.reproduction.claims import CLAIMS, EXPECTED_MISS, FAILED, REPRODUCED, Claim
from autoencoders.reproduction.literature import LITERATURE

EVERY = [(name, claim) for name, claims in CLAIMS.items() for claim in claims]


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_number_of_the_same_distribution_is_reproduced_in_95_of_100_cases(seeds):
    draws = np.random.default_rng(0).normal(70, 0.2, (20_000, seeds + 1))
    claim = Claim("loss", "metrics.test_loss", 0)
    held = [
        claim.holds(runs.mean(), published, claim.tolerance(runs.std(ddof=1), seeds))
        for published, runs in zip(draws[:, 0], draws[:, 1:])
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.005)


def test_a_printed_number_agrees_with_every_one_that_rounds_to_it_and_no_other():
    claim = Claim("correlation", "metrics.pearson", 0.97, rounding=0.005)
    assert claim.holds(0.9749, 0.97, claim.tolerance(0.0, 3))
    assert not claim.holds(0.9751, 0.97, claim.tolerance(0.0, 3))


def test_below_three_runs_the_recorded_spread_counts():
    claim = Claim("loss", "metrics.test_loss", 1.0, spread=0.1)
    assert claim.tolerance(None, 1) == pytest.approx(4.303 * 0.1 * 2**0.5, rel=1e-4)
    assert claim.tolerance(0.1, 3) < claim.tolerance(5.0, 2) < claim.tolerance(None, 1)


def test_above_and_below_are_strict():
    above, below = Claim("", "", 0.96, relation=">"), Claim("", "", 0.5, relation="<")
    assert above.holds(0.961, 0.96, 0) and not above.holds(0.96, 0.96, 0)
    assert below.holds(0.49, 0.5, 0) and not below.holds(0.5, 0.5, 0)


def test_a_known_miss_is_no_failure_and_only_near_its_recorded_value():
    claim = Claim("", "", 0.96, relation=">", expected_miss=0.95)
    found = [claim.verdict(value, 0.96, 0.001) for value in (0.97, 0.9505, 0.94)]
    assert found == [REPRODUCED, EXPECTED_MISS, FAILED]
    assert Claim("", "", 0.96, relation=">").verdict(0.95, 0.96, 0.001) == FAILED


@pytest.mark.parametrize(("name", "claim"), EVERY, ids=[f"{name}: {claim.name}" for name, claim in EVERY])
def test_every_claim_can_be_measured_and_judged(name, claim):
    kind, _, metric = claim.metric.partition(".")
    assert kind in ("metrics", "analysis", "pca", "compression") or 1 <= int(kind) <= RECIPES[name].epochs
    assert metric and claim.relation in "=<>"
    assert (claim.value is None) == bool(claim.baseline)


def test_the_published_recipes_are_those_that_are_not_ours():
    assert list(CLAIMS) == [name for name in RECIPES if name in CLAIMS]
    assert {*CLAIMS, *LITERATURE} == {name for name, row in RECIPES.items() if row.source != "ours"}


def test_every_number_that_the_write_ups_print_is_claimed():
    values = {claim.value for _, claim in EVERY}
    assert values >= {154, 5.2, 68.6832, 68.4474, 69.1569, 69.0569, 103.5454, 77.1958, 26.8873, 0.067, 0.97, 0.96}
    assert [claim.name for _, claim in EVERY if claim.reason] == ["correlation after epoch 1"]
