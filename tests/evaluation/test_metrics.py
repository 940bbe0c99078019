"""Metrics agree with independent implementations, image by image, and their parts add up to the whole."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same_bits
from scipy.stats import pearsonr
from torchvision import transforms

from ae_models import SymmetricAutoencoder
from autoencoders import evaluation
from autoencoders.evaluation.analyses import first_member_codes
from autoencoders.evaluation.metrics import (
    code_statistics,
    denoise,
    encode,
    evaluation_means,
    evaluation_sums,
    firing_rates,
    outputs,
    pearson,
    reconstruct,
    reconstruction_error,
    restoration_error,
    to_pixels,
)
from autoencoders.sparse import SparseEnsemble
from autoencoders.vae import VAE


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SymmetricAutoencoder([784, 32, 8])


def evaluate(model, images, seed):
    return evaluation_means(evaluation_sums(model, images, seed), len(images), model.epoch_metrics)


def test_pixels_equal_those_of_torchvisions_pipeline():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    unit = transforms.ToTensor()(levels)
    signed = transforms.Normalize((0.5,), (0.5,))(unit)
    ours = torch.from_numpy(levels.copy())
    assert torch.allclose(to_pixels(ours, "unit"), unit[0], rtol=0, atol=1e-6)
    assert torch.allclose(to_pixels(ours, "signed"), signed[0], rtol=0, atol=1e-6)


def test_scaling_pixels_leaves_the_images_as_they_were():
    images = torch.arange(256, dtype=torch.uint8)
    to_pixels(images, "signed")
    assert torch.equal(images, torch.arange(256, dtype=torch.uint8))


def test_the_test_loss_is_the_mean_over_all_images_not_over_batches(model, digits):
    images = torch.from_numpy(np.concatenate([digits.train_images, digits.test_images]))  # 1,797: no round number
    x = to_pixels(images, "signed")
    with torch.no_grad():
        direct = (model(x)[0] - x).double().square().mean().item()
    assert evaluate(model, images, seed=0)["test_loss"] == pytest.approx(direct, rel=1e-5)


def test_reconstructions_come_in_unit_range_one_per_image(model, digits):
    images = torch.from_numpy(digits.test_images.copy())
    with torch.no_grad():
        direct = (model(to_pixels(images, "signed"))[0] + 1) / 2
    assert torch.allclose(reconstruct(model, images), direct, atol=1e-6)


def test_a_signed_error_is_four_times_the_unit_error(model, digits):
    images = torch.from_numpy(digits.test_images.copy())
    errors = reconstruction_error(model, images)
    unit = (reconstruct(model, images).double() - images.double() / 255).square().mean().item()
    assert errors["test_mse_unit"] == pytest.approx(unit, rel=1e-5)
    assert errors["test_mse"] == pytest.approx(4 * unit, rel=1e-5)


def test_pearson_agrees_with_scipy(digits):
    torch.manual_seed(2)
    x = torch.from_numpy(digits.test_images / 255).float()
    y = 0.8 * x + 0.1 + 0.1 * torch.randn_like(x)
    direct = [pearsonr(a, b).statistic for a, b in zip(x.double().numpy(), y.double().numpy())]
    np.testing.assert_allclose(pearson(x, y).numpy(), direct, rtol=0, atol=1e-6)


def test_pearson_is_undefined_for_every_constant_image_and_for_no_other():
    levels = to_pixels(torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 784), "unit")
    other = torch.rand(256, 784, generator=torch.Generator().manual_seed(3))
    assert pearson(levels, other).isnan().all() and pearson(other, levels).isnan().all()
    faint = levels.clone()
    faint[:, 5] += 1 / 255
    assert pearson(faint, faint * 1e-3).numpy() == pytest.approx(np.ones(256), abs=1e-3)


def test_constant_images_are_counted_and_left_out_of_the_mean(digits):
    torch.manual_seed(0)
    model = SparseEnsemble(num_saes=2, features=40, k=6)
    images = torch.from_numpy(digits.test_images.copy())
    spoilt = torch.cat([images, torch.full((3, 784), 7, dtype=torch.uint8)])
    clean, counted = code_statistics(model, images), code_statistics(model, spoilt)
    assert counted["undefined_pearson"] == [3, 3] and clean["undefined_pearson"] == [0, 0]
    assert counted["pearson"] == pytest.approx(clean["pearson"], rel=1e-6)


def test_codes_of_an_ensemble_and_their_firing_rates_span_the_passes():
    torch.manual_seed(0)
    model = SparseEnsemble(num_saes=2, features=40, k=6)
    images = torch.randint(0, 256, (1100, 784), dtype=torch.uint8)  # more than a pass takes
    codes = encode(model, images)
    assert codes.shape == (2, 1100, 40)
    assert torch.equal(first_member_codes(model, images), codes[0])
    rates = firing_rates(model, images)
    torch.testing.assert_close(rates, (codes != 0).double().mean(dim=1))
    measured = code_statistics(model, images)
    assert measured["l0"] == pytest.approx([6, 6]) and measured["mean_activity"] == pytest.approx([6 / 40, 6 / 40])
    assert measured["dead_features"] == pytest.approx((rates == 0).double().mean(dim=1).tolist())


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_the_sums_of_all_parts_are_those_of_the_whole(digits, parts):
    torch.manual_seed(0)
    images = torch.from_numpy(digits.train_images)
    for model in (VAE([784, 16, 4]), SparseEnsemble(num_saes=2, features=40, k=6)):
        each = [evaluation_sums(model, images, 5, part, parts) for part in range(parts)]
        whole = evaluate(model, images, 5)
        added = evaluation_means(
            {name: sum(sums[name] for sums in each) for name in each[0]}, len(images), model.epoch_metrics
        )
        assert added.keys() == whole.keys()
        for name, value in whole.items():
            assert added[name] == pytest.approx(value, rel=1e-14), name


def test_restoration_is_measured_against_the_clean_images(digits):
    torch.manual_seed(0)
    model = SymmetricAutoencoder([784, 16, 4], output="sigmoid", noise_factor=0.5)
    images = torch.from_numpy(digits.test_images.copy())  # one pass
    found = restoration_error(model, images, seed=3)
    assert found == restoration_error(model, images, seed=3) != restoration_error(model, images, seed=4)
    noisy, restored = denoise(model, images, seed=3)
    clean = to_pixels(images, "unit")
    assert noisy.min() >= 0 and noisy.max() <= 1 and not torch.equal(noisy, clean)
    assert found["noisy_mse"] == pytest.approx((noisy - clean).square().mean().item(), rel=0.02)  # another draw
    assert found["restored_mse"] == pytest.approx((restored - clean).square().mean().item(), rel=0.02)


def test_measuring_leaves_the_weights_and_needs_no_gradient(model, digits):
    images, before = torch.from_numpy(digits.test_images.copy()), {k: v.clone() for k, v in model.state_dict().items()}
    x, y, code = next(outputs(model, images))
    assert not y.requires_grad and not code.requires_grad and torch.equal(x, to_pixels(images, "unit"))
    evaluate(model, images, 0)
    assert same_bits(model.state_dict(), before) and torch.is_grad_enabled()


def test_no_metric_knows_of_other_processes():
    for path in Path(evaluation.__file__).parent.glob("*.py"):  # one that did would hang on a single process
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
        assert not any("processes" in name or "distributed" in name for name in names), path
