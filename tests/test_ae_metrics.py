import numpy as np
import pytest
import torch
from torchvision import transforms

from ae_metrics import evaluate, reconstruct, reconstruction_error, to_pixels
from ae_models import SymmetricAutoencoder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SymmetricAutoencoder([784, 32, 8])


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
