"""The papers' numbers: each can be measured, says where it was read, and is compared under one protocol alone."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT

from autoencoders.evaluation.pca import fit_pca
from autoencoders.recipes import RECIPES
from autoencoders.reproduction.claims import EACH, MISSED, OUR_WAY, REACHED, REFERENCE, THEIR_WAY, Claim, runs_of
from autoencoders.reproduction.literature import LITERATURE
from autoencoders.reproduction.runs import Setup, make_training, plan
from autoencoders.runtime.errors import RunError, UsageError

EVERY = [(name, claim) for name, claims in LITERATURE.items() for claim in claims]


@pytest.fixture
def setup(few, tmp_path):
    return Setup(few, fit_pca(few), tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(("name", "claim"), EVERY, ids=[f"{name}: {claim.name} {claim.value}" for name, claim in EVERY])
def test_every_number_can_be_measured_and_names_its_source(name, claim, setup):
    assert name in RECIPES and claim.kind in (THEIR_WAY, OUR_WAY, REFERENCE) and claim.source
    assert claim.metric.split(".")[0] in ("evaluation", "image_error", "-1")
    for flags in runs_of((name, *claim.flags)):
        assert make_training(flags, 0, setup).recipe.name == name
    assert bool(claim.protocol) == ("likelihood" in claim.metric)


def test_every_number_of_the_page_is_there():
    values = {claim.value for _, claim in EVERY}
    page = (ROOT / "docs" / "literature.md").read_text(encoding="utf-8")
    printed = re.findall(r"^\| (?!what|---)[^|]+\| ([\d.]+) \| [^|]+\| \d \|", page, re.MULTILINE)
    assert len(printed) > 10 and {float(number) for number in printed} == values


def test_a_paper_s_number_is_reached_or_not():
    claim = Claim("", "", 3.0, relation="<", kind=THEIR_WAY)
    assert claim.verdict(2.9, 3.0, 0) == REACHED and claim.verdict(3.0, 3.0, 0) == MISSED


def test_a_claim_for_each_digit_is_ten_runs_for_every_seed(setup):
    flags = ("simple", "--leave-out", EACH)
    assert [run[-1] for run in runs_of(flags)] == list("0123456789") and runs_of(("simple",)) == [("simple",)]
    claims = {"simple": (Claim("", "metrics.test_mse", 0.0, flags=flags[1:], relation="<"),)}
    planned = plan(claims, 2, setup)[flags]
    assert [run.recipe.seed for run in planned] == [42] * 10 + [43] * 10
    assert [run.images.left_out for run in planned] == [*range(10)] * 2
    assert len({run.folder for run in planned}) == 20


def test_images_without_all_ten_labels_have_no_run_for_each_digit(setup):
    unlabelled = replace(setup.images, train_labels=np.zeros_like(setup.images.train_labels))
    with pytest.raises(UsageError, match=r"novelty is about each of the labels 0 to 9.*--only"):
        plan({"novelty": LITERATURE["novelty"]}, 1, replace(setup, images=unlabelled))


def test_the_images_are_those_of_the_recipe_unless_the_report_has_others(setup):
    static = make_training(("vae_static",), 0, setup)
    assert set(static.images.train_images.ravel().tolist()) == {0, 255}
    assert make_training(("vae",), 0, setup).images is setup.images


def test_likelihoods_of_two_protocols_are_not_put_side_by_side(digits, tmp_path):
    setup = Setup(digits, fit_pca(digits), tmp_path, torch.device("cpu"))
    made = make_training(("vae_dynamic", "--hidden-sizes", "16"), 0, setup)
    run = replace(made, recipe=made.recipe.override({"epochs": 1, "code_size": 2}))
    run.train()
    flags = ("--importance-samples", "2")
    claim = Claim("nll", "evaluation.likelihood.nll", 1.0, evaluate=flags, relation="<", kind=THEIR_WAY)
    images = f"{len(setup.images.test_images)} images"
    right = replace(claim, protocol=f"dynamic: binary pixels drawn by seed 0; 2 importance samples, {images}")
    wrong = replace(claim, protocol=f"static: the published binary pixels; 2 importance samples, {images}")
    assert run.value_of(right) == run.evaluation(flags)["likelihood"]["nll"] > 0
    with pytest.raises(RunError, match="two protocols"):
        run.value_of(wrong)
