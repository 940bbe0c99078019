import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import make_trainer
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.distributions import Bernoulli, Normal

from ae_models import (
    VAE,
    ConvAutoencoder,
    CrossEntropy,
    SymmetricAutoencoder,
    kl_to_standard_normal,
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


def test_an_infinite_kl_of_weight_0_leaves_the_loss_finite():
    model = VAE((784, 8, 2))
    with torch.no_grad():
        model.logvar.bias.fill_(100.0)
        model.decoder[0].weight.zero_()
    for epoch, finite in ((0, True), (1, False)):
        model.on_epoch(epoch, 10)
        loss, parts = model.loss(torch.rand(3, 784))
        assert parts["kl_loss"].isinf() and loss.isfinite() == finite


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


def tiny_vae(**settings):
    torch.manual_seed(3)
    return VAE((784, 16, 4), **settings)


def test_the_kl_term_agrees_with_torch_distributions():
    mean, logvar = torch.randn(2, 50, 7, dtype=torch.double)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    direct = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(dim=1)
    assert torch.allclose(kl_to_standard_normal(mean, logvar), direct)
    assert kl_to_standard_normal(torch.zeros(1, 7), torch.zeros(1, 7)).item() == 0


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


def test_the_loss_of_a_vae_is_cross_entropy_plus_beta_times_kl(unit_x):
    model = tiny_vae(kl_weight=3.0, kl_anneal="linear")
    for epoch, beta in ((0, 0.0), (5, 1.5), (10, 3.0)):
        model.on_epoch(epoch, 10)
        loss, parts = model.loss(unit_x)
        assert loss.item() == pytest.approx((parts["recon_loss"] + beta * parts["kl_loss"]).item(), rel=1e-6)
    constant = tiny_vae(kl_weight=3.0, kl_anneal="none")
    constant.on_epoch(0, 10)
    assert constant.beta == 3.0


def test_gradients_pass_through_the_sampling_as_finite_differences_say(unit_x):
    model, x = tiny_vae().double(), unit_x.double()

    def loss():
        torch.manual_seed(4)  # the same noise every time
        return model.loss(x)[0]

    for weight in (model.logvar.weight, model.mean.bias, model.encoder[0].weight):
        (gradient,) = torch.autograd.grad(loss(), weight)
        place = gradient.abs().flatten().argmax()
        step = torch.zeros_like(weight).flatten()
        step[place] = 1e-5
        with torch.no_grad():
            weight += step.view_as(weight)
            above = loss()
            weight -= 2 * step.view_as(weight)
            below = loss()
            weight += step.view_as(weight)
        assert ((above - below) / 2e-5).item() == pytest.approx(gradient.flatten()[place].item(), rel=1e-5)


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


def test_the_convolutional_code_is_one_place_of_as_many_channels(unit_x):
    for size in (64, 7):
        reconstruction, code = ConvAutoencoder(code_size=size)(unit_x)
        assert code.shape == (9, size) and reconstruction.shape == (9, 784)


def test_cross_entropy_is_refused_where_pixels_can_be_negative():
    with pytest.raises(ValueError, match="sigmoid"):
        SymmetricAutoencoder([784, 4], output="tanh", loss="bce")


def test_samples_of_a_trained_vae_are_images_of_all_ten_digits(mnist):
    images = replace(mnist, train_images=mnist.train_images[:10000], test_images=mnist.test_images[:500])
    trainer = make_trainer("vae", images, epochs=5, kl_anneal="none", batch_size=64)
    list(trainer.epochs())
    classifier = KNeighborsClassifier(3).fit(mnist.train_images[15000:20000] / 255, mnist.train_labels[15000:20000])
    assert classifier.score(mnist.test_images[:500] / 255, mnist.test_labels[:500]) > 0.9
    with torch.no_grad():
        classes = classifier.predict(trainer.model.sample(500).numpy())
    assert set(classes.tolist()) == set(range(10))


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


def importance_vae(samples, **settings):
    torch.manual_seed(3)
    model = VAE((784, 6, 3), "tanh", kl_anneal="none", importance_samples=samples, **settings)
    with torch.no_grad():
        model.mean.weight.mul_(4)  # a posterior that is not the prior
    return model


def bound_of(model, x, noise):
    """log 1/K sum_k p(x, z_k) / q(z_k | x), (batch,), by the distributions of torch; noise (batch, K, code)."""
    mean, logvar = (part[:, None] for part in model.posterior(x))
    z = mean + noise * torch.exp(0.5 * logvar)
    log_px = Bernoulli(logits=model.decoder[:-1](z)).log_prob(x[:, None]).sum(-1)
    log_prior_to_q = Normal(0, 1).log_prob(z).sum(-1) - Normal(mean, torch.exp(0.5 * logvar)).log_prob(z).sum(-1)
    log_w = log_px + model.beta * log_prior_to_q
    return log_w.logsumexp(1) - math.log(noise.shape[1])


@pytest.fixture
def binary_x(unit_x):
    return unit_x.round()


def test_the_importance_weighted_loss_is_minus_the_bound(binary_x):
    model = importance_vae(7)
    torch.manual_seed(5)
    loss, _ = model.loss(binary_x)
    torch.manual_seed(5)
    noise = torch.randn(len(binary_x), 7, 3)
    assert loss.item() == pytest.approx(-bound_of(model, binary_x, noise).mean().item(), rel=1e-5)


def test_the_bound_is_the_elbo_at_one_sample_and_grows_with_their_number(binary_x):
    @torch.no_grad()
    def draws(loss):
        torch.manual_seed(6)
        return torch.stack([loss() for _ in range(400)])

    def of_model(samples):
        model = importance_vae(samples)
        return draws(lambda: model.loss(binary_x)[0])

    model = importance_vae(1)
    one = draws(lambda: -bound_of(model, binary_x, torch.randn(len(binary_x), 1, 3)).mean())
    losses = [of_model(samples) for samples in (1, 2, 5, 50)]
    assert abs(losses[0].mean() - one.mean()) < 4 * (losses[0].std() + one.std()) / 400**0.5
    assert all(fewer.mean() > more.mean() for fewer, more in pairwise(losses))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_the_gradient_of_the_bound_is_right_for_the_decoder_and_on_average_for_the_encoder(binary_x, beta):
    model = importance_vae(3, kl_weight=beta)
    ours, plain = [], []
    for seed in range(300):
        torch.manual_seed(seed)
        model.zero_grad()
        model.loss(binary_x)[0].backward()
        ours.append((model.decoder[0].weight.grad.clone(), model.mean.weight.grad.clone()))
        torch.manual_seed(seed)
        model.zero_grad()
        (-bound_of(model, binary_x, torch.randn(len(binary_x), 3, 3)).mean()).backward()
        plain.append((model.decoder[0].weight.grad.clone(), model.mean.weight.grad.clone()))
    assert all(torch.allclose(a[0], b[0], atol=1e-4) for a, b in zip(ours, plain))
    differences = torch.stack([a[1] - b[1] for a, b in zip(ours, plain)])
    errors = differences.mean(0) / (differences.std(0) / len(ours) ** 0.5 + 1e-6)
    assert errors.abs().max() < 5.5  # another estimate with the same mean
    if beta == 1:
        spreads = [torch.stack([each[1] for each in of]).std(0).mean() for of in (ours, plain)]
        assert spreads[0] < spreads[1]


def test_squared_error_is_summed_over_the_pixels_of_a_vae(unit_x):
    model = VAE((784, 8, 2), loss="mse", kl_anneal="none").eval()
    torch.manual_seed(1)
    loss, parts = model.loss(unit_x)
    torch.manual_seed(1)
    mean, logvar = model.posterior(unit_x)
    code = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
    expected = (model.decode(code) - unit_x).square().sum(1).mean() + kl_to_standard_normal(mean, logvar).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx((parts["recon_loss"] + parts["kl_loss"]).item(), rel=1e-5)


def test_dynamic_pixels_are_drawn_anew_with_the_grey_levels_as_probabilities(unit_x):
    model = VAE((784, 8, 2), binarize="dynamic", kl_anneal="none")
    seen = []
    model.posterior = lambda x: (seen.append(x), (x[:, :2] * 0, x[:, :2] * 0))[1]
    with torch.no_grad():
        for _ in range(200):
            model.loss(unit_x)
    draws = torch.stack(seen)
    assert set(draws.unique().tolist()) == {0, 1} and (draws[0] != draws[1]).any()
    assert (draws.mean(0) - unit_x).abs().max() < 5 * 0.5 / 200**0.5


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


def test_a_decoder_can_start_at_the_mean_image():
    model, image = VAE((784, 12, 3), init="mean-image"), torch.rand(784) * 0.8 + 0.1
    model.on_start(lambda: image)
    assert torch.allclose(model.decode(torch.zeros(1, 3))[0], image, atol=1e-5)
    default = VAE((784, 12, 3))
    before = [weight.clone() for weight in default.parameters()]
    default.on_start(lambda: image)
    assert all(map(torch.equal, before, default.parameters()))


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
