import pytest
import torch
import torch.nn.functional as F
from conftest import make_trainer

from autoencoders.evaluation import dictionaries, metrics
from autoencoders.recipes import RECIPES
from autoencoders.training.trainer import Trainer
from autoencoders.wta import WinnerTakeAll

X = torch.rand(20, 784, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return WinnerTakeAll((784, 30), lifetime_sparsity=0.1, output="linear")


def test_in_training_every_unit_keeps_its_largest_activations_of_the_batch(model):
    code = F.relu(X @ model.encoder[0].weight.T + model.encoder[0].bias)
    kept = torch.where(code >= code.sort(dim=0, descending=True).values[1], code, 0)
    loss, parts = model.loss(X)
    torch.testing.assert_close(loss, F.mse_loss(model.decode(kept), X))
    torch.testing.assert_close(parts["least"][0], code.sort(dim=0, descending=True).values[1])
    model.lifetime_sparsity = 1.0
    torch.testing.assert_close(model.loss(X)[0], F.mse_loss(model.decode(code), X))


def test_a_code_does_not_depend_on_the_other_images_and_holds_what_is_above_the_thresholds(model):
    for least in (0.1, 0.3, 0.2):
        model.after_step({"least": torch.full((1, 30), least)})
    torch.testing.assert_close(model.threshold, torch.full((30,), 0.2))
    code, dense = model.encode(X), model.dense_code(X)
    assert torch.equal(code, torch.where(dense >= model.threshold, dense, 0))
    torch.testing.assert_close(model.encode(X[:1]), code[:1])
    assert "threshold" in model.state_dict()


def test_mixed_precision_trains_and_a_code_without_relu_resumes(few):
    recipe = RECIPES["wta"].override({"code_size": 40, "epochs": 1, "code_activation": "none"})
    trainer = Trainer(recipe, few, amp="on")
    next(trainer.epochs())
    again = Trainer(recipe, few, amp="on")
    again.load_state_dict(trainer.state_dict())
    assert torch.equal(again.model.threshold, trainer.model.threshold)


def test_trained_codes_are_about_as_sparse_as_asked_and_reconstruct(digits):
    trainer = make_trainer("wta", digits, code_size=100, lifetime_sparsity=0.1, batch_size=50, epochs=20)
    for _ in trainer.epochs():
        pass
    model, images = trainer.model.eval(), trainer.test_images
    share = metrics.firing_rates(model, images).mean()
    assert 0.1 / 3 < share < 0.3
    error = metrics.reconstruction_error(model, images)["test_mse_unit"]
    assert error < 0.5 * metrics.to_pixels(images, "unit").var(dim=0).mean()
    numbers = dictionaries.feature_statistics(model, images, digits.test_labels)[0]
    y, code = (part.detach() for part in model(metrics.to_pixels(images, "unit")))
    x, busiest = metrics.to_pixels(images, "unit"), int(numbers["explained"].argmax())
    code[:, busiest] = 0
    grown = (model.decode(code).detach() - x).square().sum() - (y - x).square().sum()
    variance = x.var(dim=0, correction=0).sum()
    assert numbers["explained"][busiest] == pytest.approx(float(grown / variance / len(x)), rel=1e-3)
