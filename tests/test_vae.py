import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import make_trainer
from sklearn.neighbors import KNeighborsClassifier
from torch.distributions import Bernoulli, Normal

from autoencoders.vae import VAE, kl_to_standard_normal


def test_an_infinite_kl_of_weight_0_leaves_the_loss_finite():
    model = VAE((784, 8, 2))
    with torch.no_grad():
        model.logvar.bias.fill_(100.0)
        model.decoder[0].weight.zero_()
    for epoch, finite in ((0, True), (1, False)):
        model.on_epoch(epoch, 10)
        loss, parts = model.loss(torch.rand(3, 784))
        assert parts["kl_loss"].isinf() and loss.isfinite() == finite


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


def test_samples_of_a_trained_vae_are_images_of_all_ten_digits(mnist):
    images = replace(mnist, train_images=mnist.train_images[:10000], test_images=mnist.test_images[:500])
    trainer = make_trainer("vae", images, epochs=5, kl_anneal="none", batch_size=64)
    list(trainer.epochs())
    classifier = KNeighborsClassifier(3).fit(mnist.train_images[15000:20000] / 255, mnist.train_labels[15000:20000])
    assert classifier.score(mnist.test_images[:500] / 255, mnist.test_labels[:500]) > 0.9
    with torch.no_grad():
        classes = classifier.predict(trainer.model.sample(500).numpy())
    assert set(classes.tolist()) == set(range(10))


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


def test_a_decoder_can_start_at_the_mean_image():
    model, image = VAE((784, 12, 3), init="mean-image"), torch.rand(784) * 0.8 + 0.1
    model.on_start(lambda: (image, image))
    assert torch.allclose(model.decode(torch.zeros(1, 3))[0], image, atol=1e-5)
    default = VAE((784, 12, 3))
    before = [weight.clone() for weight in default.parameters()]
    default.on_start(lambda: (image, image))
    assert all(map(torch.equal, before, default.parameters()))
