"""What the pictures of a trained model are computed from; tests/test_ae_generate.py has them on trained runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_trainer

from autoencoders.runtime.errors import UsageError
from autoencoders.training.generation import decode, interpolate, pick_pair, samples, traverse
from autoencoders.training.trained import TrainedRun


def untrained(name, digits, **settings):
    trainer = make_trainer(name, digits, hidden_sizes=(32,), **settings)
    record = {"dataset": {"name": digits.name, "title": digits.title}}
    return TrainedRun(Path("unused"), trainer.model.eval(), trainer.recipe, record, torch.device("cpu"))


def test_at_temperature_zero_every_sample_is_the_decoded_mean_of_the_prior(figures, digits):
    run = untrained("vae", digits, code_size=8)
    samples(run, 3, 0.0, seed=0)
    sheet = figures[0].axes[0].images[0].get_array()
    for number in range(3):
        image = sheet[:, 29 * number : 29 * number + 28]
        np.testing.assert_allclose(image.ravel(), decode(run, np.zeros((1, 8)))[0], atol=1e-6)


def test_a_pair_has_the_wanted_labels_and_two_different_images(digits):
    pairs = [pick_pair(digits.test_labels, [5, 5], seed) for seed in range(20)]
    assert all(first != last and (digits.test_labels[[first, last]] == 5).all() for first, last in pairs)
    assert pairs[0] == pick_pair(digits.test_labels, [5, 5], 0) and len({*map(tuple, pairs)}) > 1
    assert pick_pair(np.array([3, 60000]), [60000, 3], 0) == [1, 0]  # one's own images may have large labels
    with pytest.raises(UsageError, match="label 7"):
        pick_pair(np.array([7, 3]), [7, 7], 0)


def test_an_arc_keeps_the_length_and_turns_evenly():
    start, end = np.array([2.0, 0, 0]), np.array([0, 1.0, np.sqrt(3)])
    arc = interpolate(start, end, 7, "spherical")
    np.testing.assert_allclose(np.linalg.norm(arc, axis=1), 2)
    np.testing.assert_allclose((arc[1:] * arc[:-1]).sum(axis=1) / 4, np.cos(np.pi / 2 / 6))
    np.testing.assert_array_equal(arc[0], start)
    np.testing.assert_allclose(arc[-1], end, atol=1e-12)


@pytest.mark.parametrize("end", [[0, 0, 0], [1, 2, 3], [2, 4, 6], [-1, -2, -3]])
def test_codes_without_an_arc_between_them_are_joined_by_a_line(end):
    start = np.array([1, 2, 3], np.float32)
    codes = interpolate(start, np.array(end, np.float32), 5, "spherical")
    np.testing.assert_allclose(codes, np.linspace(start, end, 5), atol=1e-12)


def test_a_dimension_that_never_moves_cannot_be_traversed(digits):
    run = untrained("symmetric", digits, code_size=8)
    with torch.no_grad():
        run.model.encoder[-2].bias[0] = -1000  # a dead unit
    with pytest.raises(UsageError, match="for every test image"):
        traverse(run, digits, 0, steps=3, seed=0)
