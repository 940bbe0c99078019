import pytest
import torch
from torch import nn

from ae_models import SymmetricAutoencoder, to_range


class Foreign(nn.Module):
    """Anyone's class of the published shape, 784-64-25 and back, written without ours."""

    def __init__(self, code=25):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, code), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(code, 64), nn.ReLU(), nn.Linear(64, 784), nn.Tanh())

    def forward(self, x):
        code = self.encoder(x)
        return self.decoder(code), code


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SymmetricAutoencoder([784, 64, 25])


@pytest.fixture
def x():
    return torch.rand(50, 784, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_state_dict_has_the_keys_of_two_plain_sequentials(model):
    layers = ("encoder.0", "encoder.2", "decoder.0", "decoder.2")
    assert list(model.state_dict()) == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def test_a_foreign_class_of_that_shape_loads_our_weights_and_answers_the_same(model, x):
    foreign = Foreign()
    foreign.load_state_dict(model.state_dict())
    for ours, theirs in zip(model(x), foreign(x), strict=True):
        assert torch.equal(ours, theirs)


def test_the_decoder_mirrors_the_encoder_at_every_depth():
    model = SymmetricAutoencoder((784, 300, 100, 20, 5))
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    widths = [(m.in_features, m.out_features) for m in linear]
    assert widths[:4] == [(784, 300), (300, 100), (100, 20), (20, 5)]
    assert widths[4:] == [(b, a) for a, b in reversed(widths[:4])]


def test_without_hidden_layers_pixels_go_straight_to_the_code(x):
    model = SymmetricAutoencoder([784, 7])
    assert list(model.state_dict()) == ["encoder.0.weight", "encoder.0.bias", "decoder.0.weight", "decoder.0.bias"]
    code = (x @ model.encoder[0].weight.T + model.encoder[0].bias).clamp(min=0)
    assert torch.allclose(model.encode(x), code, atol=1e-6)


@pytest.mark.parametrize("sizes", [[], [784], [784, 0], [784, -5, 3]])
def test_fewer_than_two_layer_sizes_or_an_empty_layer_is_a_value_error(sizes):
    with pytest.raises(ValueError, match=r"layer.sizes"):
        SymmetricAutoencoder(sizes)


def test_forward_is_decode_after_encode_with_the_stated_shapes(model, x):
    reconstruction, code = model(x)
    assert reconstruction.shape == (50, 784) and code.shape == (50, 25)
    assert torch.equal(code, model.encode(x)) and torch.equal(reconstruction, model.decode(code))


def test_codes_are_never_negative_and_some_units_are_silent(model, x):
    code = model.encode(x)
    assert code.min() == 0 and code.max() > 0


def test_reconstructions_stay_in_the_signed_range_however_large_the_weights(model, x):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20)
    reconstruction, _ = model(x)
    assert reconstruction.abs().max() <= 1 and reconstruction.min() < -0.5 and reconstruction.max() > 0.5


def test_the_loss_is_the_squared_error_averaged_over_pixels_and_images(model, x):
    loss, _ = model.loss(x)
    direct = (model(x)[0] - x).double().square().sum() / (50 * 784)
    assert loss.ndim == 0 and loss.item() == pytest.approx(direct.item(), rel=1e-5)


def test_the_loss_reaches_every_weight(model, x):
    model.loss(x)[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_signed_and_unit_range_translate_into_each_other():
    unit = torch.linspace(0, 1, 11)
    signed = to_range(unit, "unit", "signed")
    assert torch.allclose(signed, torch.linspace(-1, 1, 11), atol=1e-6)
    assert torch.allclose(to_range(signed, "signed", "unit"), unit, atol=1e-6)
    assert torch.equal(to_range(unit, "unit", "unit"), unit)
