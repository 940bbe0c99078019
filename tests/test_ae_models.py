import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ae_models import (
    ConvAutoencoder,
    CrossEntropy,
    SymmetricAutoencoder,
    softplus,
    to_range,
)
from autoencoders.recipes import RECIPES


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


def test_signed_and_unit_range_translate_into_each_other():
    unit = torch.linspace(0, 1, 11)
    signed = to_range(unit, "unit", "signed")
    assert torch.allclose(signed, torch.linspace(-1, 1, 11), atol=1e-6)
    assert torch.allclose(to_range(signed, "signed", "unit"), unit, atol=1e-6)
    assert torch.equal(to_range(unit, "unit", "unit"), unit)


@pytest.fixture
def unit_x():
    return torch.rand(9, 784, generator=torch.Generator().manual_seed(2))


def test_the_cross_entropy_is_that_of_the_decoded_pixels_against_the_unit_image(unit_x):
    model = SymmetricAutoencoder([784, 20, 4], output="sigmoid", loss="bce", pixels="signed", code_activation="none")
    signed = to_range(unit_x, "unit", "signed")
    direct = F.binary_cross_entropy(model(signed)[0], unit_x, reduction="sum") / len(unit_x)
    assert model.loss(signed)[0].item() == pytest.approx(direct.item(), rel=1e-5)
    assert model(signed)[0].min() >= 0 and model(signed)[0].max() <= 1


def test_the_cross_entropy_stays_finite_where_the_pixels_saturate(unit_x):
    model = SymmetricAutoencoder([784, 20, 4], output="sigmoid", loss="bce")
    with torch.no_grad():
        model.decoder[-2].bias.fill_(200.0)  # the sigmoid of it is 1 in every digit of a float32
    loss, _ = model.loss(unit_x)
    assert loss.isfinite() and loss.item() == pytest.approx((200 * (1 - unit_x)).sum().item() / 9, rel=1e-2)


def test_noise_is_added_in_training_alone_and_the_target_stays_clean(unit_x):
    model = SymmetricAutoencoder([784, 20, 4], output="sigmoid", noise_factor=0.5)
    assert model.train().loss(unit_x)[0] != model.loss(unit_x)[0]
    assert model.eval().loss(unit_x)[0] == F.mse_loss(model(unit_x)[0], unit_x)
    model.test_noise = True
    assert model.loss(unit_x)[0] != model.loss(unit_x)[0]
    noisy = model.corrupt(unit_x)
    assert noisy.min() >= 0 and noisy.max() <= 1
    inside = (noisy > 0) & (noisy < 1) & (unit_x > 0.4) & (unit_x < 0.6)
    assert 0.2 < (noisy - unit_x)[inside].std() < 0.5


def test_the_products_of_the_convolutional_autoencoder_are_its_convolutions(unit_x):
    """With torch's own modules, images with their channels first."""
    model = RECIPES["conv"].build()
    encoder, decoder = (list(part) for part in (model.encoder, model.decoder))
    x = unit_x.view(-1, 1, 28, 28)
    for layer in encoder[1:-1]:
        x = layer(x)
    code = F.conv2d(x.contiguous(), encoder[-1].weight, encoder[-1].bias)
    assert code.flatten(1).allclose(model.encode(unit_x), atol=1e-6)
    x = F.conv_transpose2d(code, decoder[1].weight, decoder[1].bias)
    for layer in decoder[2:]:
        x = layer(x)
    assert x.allclose(model(unit_x)[0], atol=1e-6)


def test_weights_of_earlier_versions_of_the_convolutional_autoencoder_load():
    names = [f"{half}.{layer}" for half in ("encoder", "decoder") for layer in (1, 3, 5)]
    expected = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert ConvAutoencoder().state_dict().keys() == expected
    with pytest.raises(RuntimeError):
        ConvAutoencoder()(torch.zeros(3, 1568))


def test_the_convolutional_code_is_one_place_of_as_many_channels(unit_x):
    for size in (64, 7):
        reconstruction, code = ConvAutoencoder(code_size=size)(unit_x)
        assert code.shape == (9, size) and reconstruction.shape == (9, 784)


def test_cross_entropy_is_refused_where_pixels_can_be_negative():
    with pytest.raises(ValueError, match="sigmoid"):
        SymmetricAutoencoder([784, 4], output="tanh", loss="bce")


def test_with_a_linear_path_either_half_is_its_layers_plus_one_linear_map(x):
    torch.manual_seed(0)
    model = SymmetricAutoencoder([784, 64, 25], code_activation="none", linear_path=True)
    half = model.encoder[0]
    assert torch.equal(model.encode(x), half.layers(x) + x @ half.linear.weight.T)
    with torch.no_grad():
        for weight in (*half.layers.parameters(), *model.decoder[0].layers.parameters()):
            weight.zero_()
    straight = x @ half.linear.weight.T @ model.decoder[0].linear.weight.T
    assert torch.allclose(model(x)[0], straight.tanh(), atol=1e-6)


def test_gelu_replaces_the_relu_between_layers_and_nothing_else(x):
    torch.manual_seed(0)
    relu, gelu = (SymmetricAutoencoder([784, 64, 25], activation=kind) for kind in ("relu", "gelu"))
    gelu.load_state_dict(relu.state_dict())
    hidden = F.linear(x, relu.encoder[0].weight, relu.encoder[0].bias)
    expected = F.linear(F.gelu(hidden), relu.encoder[2].weight, relu.encoder[2].bias).relu()
    assert torch.allclose(gelu.encode(x), expected, atol=1e-6) and (gelu.encode(x) >= 0).all()


def test_our_own_recipes_keep_the_budget_of_the_published_one():
    def built(name):
        recipe = RECIPES[name].override({"code_size": 154})
        return recipe, sum(weight.numel() for weight in recipe.build().parameters())

    (published, most), (tuned, weights), (speedrun, few) = map(built, ("symmetric", "tuned", "speedrun"))
    assert weights <= most and few <= most
    assert tuned.epochs <= published.epochs and speedrun.epochs <= published.epochs
    assert {model.output_range for model in (published.build(), tuned.build(), speedrun.build())} == {"signed"}


@pytest.mark.parametrize("pixels", ["unit", "signed"])
def test_training_images_are_moved_by_whole_pixels_and_test_images_are_not(pixels):
    model = SymmetricAutoencoder([784, 8, 2], output="sigmoid", pixels=pixels, shift=2)
    black = 0.0 if pixels == "unit" else -1.0
    x = torch.full((500, 28, 28), black)
    x[:, 10, 12] = 1.0
    moved = model.shifted(x.flatten(1)).view(-1, 28, 28)
    assert (moved.flatten(1).sum(1) == x.flatten(1).sum(1)).all()
    rows, columns = (moved == 1).nonzero()[:, 1:].T
    assert set(rows.tolist()) == set(range(8, 13)) and set(columns.tolist()) == set(range(10, 15))
    unit = torch.rand(9, 784)
    assert model.eval().loss(unit)[0] == model.loss(unit)[0] != model.train().loss(unit)[0]


def test_the_cross_entropy_and_its_gradient_are_torchs_also_far_from_0():
    logits = torch.cat((torch.linspace(-200, 200, 700), torch.randn(84))).repeat(3, 1).requires_grad_()
    for x in (torch.rand(3, 784), torch.rand(3, 784).round()):
        ours = CrossEntropy.apply(logits, x)
        theirs = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        assert torch.allclose(ours, theirs, rtol=1e-6)
        weights = torch.tensor([1.0, -2.0, 0.5])
        (mine,), (other,) = (torch.autograd.grad((loss * weights).sum(), logits) for loss in (ours, theirs))
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7)
    assert torch.autograd.gradcheck(lambda z: CrossEntropy.apply(z, x[:, :20].double()), logits[:, 700:720].double())
    assert torch.allclose(softplus(logits), F.softplus(logits), atol=2e-7)
