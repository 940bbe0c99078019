"""SAP and NAP (Kim et al. 2020) against their definitions, and their laws."""

import numpy as np
import pytest
import torch
from torch import nn

from ae_models import LayeredAutoencoder, SymmetricAutoencoder
from autoencoders.evaluation.metrics import to_pixels
from autoencoders.evaluation.novelty import Novelty, layer_differences, whitening
from autoencoders.recipes import RECIPES

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SymmetricAutoencoder((784, 40, 30, 8), "tanh", "none", output="sigmoid").eval()


def test_sap_is_the_squared_length_and_nap_the_mahalanobis_distance_of_the_differences(model, digits):
    train, test = digits.train_images, digits.test_images
    found = Novelty.fit(model, train, CPU).scores(test)

    def differences(images):
        x = to_pixels(torch.tensor(images), "unit")
        y = model(x)[0]
        parts = []
        for a, b in ((x, y),):
            parts.append(a - b)
            for layer in model.encoder:
                a, b = layer(a), layer(b)
                if isinstance(layer, nn.Tanh):
                    parts.append(a - b)
            parts.append(a - b)
        return torch.cat(parts, dim=1).detach().double().numpy()

    of_train, of_test = differences(train), differences(test)
    assert found["sap"] == pytest.approx((of_test**2).sum(axis=1), rel=1e-4)
    for name, first in {"nap": 0, "nap_hidden": 784}.items():
        fitted, centred = of_train[:, first:], of_test[:, first:] - of_train[:, first:].mean(axis=0)
        # By the singular vectors of the differences themselves, as in the paper, instead of their covariance.
        _, lengths, directions = np.linalg.svd(fitted - fitted.mean(axis=0), full_matrices=False)
        kept = lengths > lengths[0] * len(directions) * np.finfo(np.float32).eps
        expected = len(fitted) * ((centred @ directions[kept].T / lengths[kept]) ** 2).sum(axis=1)
        assert np.corrcoef(found[name], expected)[0, 1] > 0.99
        assert found[name].mean() == pytest.approx(expected.mean(), rel=0.1)


def test_nap_is_invariant_to_a_rotation_of_the_layers_and_sap_too():
    random = np.random.default_rng(0)
    differences = torch.tensor(random.normal(size=(500, 12)) @ random.normal(size=(12, 12)))
    rotation = torch.linalg.qr(torch.tensor(random.normal(size=(12, 12)))).Q
    lengths = []
    for d in (differences, differences @ rotation):
        centred = d - d.mean(dim=0)
        lengths.append((centred @ whitening(torch.cov(d.T, correction=0))).square().sum(dim=1))
    assert torch.allclose(*lengths)
    assert lengths[0].mean() == pytest.approx(12)  # the mean of a Mahalanobis distance is the rank


def test_directions_without_spread_are_left_out():
    covariance = torch.diag(torch.tensor([4.0, 1.0, 0.0, 1e-20], dtype=torch.double))
    found = whitening(covariance)
    assert found.shape == (4, 2)
    assert torch.allclose(found @ found.T, torch.diag(torch.tensor([0.25, 1, 0, 0], dtype=torch.double)))


def test_sap_of_an_identity_is_0(digits):
    identity = LayeredAutoencoder([nn.Identity()], [], "sigmoid")
    identity.decode = lambda code: code
    assert (Novelty.fit(identity, digits.train_images, CPU).scores(digits.test_images)["sap"] == 0).all()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_layers(name, digits):
    recipe = RECIPES[name].override({"code_size": 5} if RECIPES[name].code_size is None else {})
    torch.manual_seed(0)
    model = recipe.build().eval()
    x = to_pixels(torch.tensor(digits.test_images[:3]), model.input_range)
    layers = model.activations(x)
    assert torch.equal(layers[0], x) and len(layers) >= 2 and all(layer.shape[0] == 3 for layer in layers)
    code = model.encode(x)
    assert torch.equal(layers[-1], code[0] if code.ndim > 2 else code)
    (difference,) = layer_differences(model, digits.test_images[:3], CPU)
    assert difference.shape == (3, sum(layer.shape[1] for layer in layers))
