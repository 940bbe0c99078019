"""The likelihood is exact where it has a closed form, and its terms are the model's own cross-entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from autoencoders.evaluation.likelihood import (
    bernoulli,
    binarized,
    entropy_floor,
    importance_weighted,
    likelihood,
)
from autoencoders.evaluation.metrics import to_pixels
from autoencoders.vae import VAE

SIZE, PIXELS, NOISE = 3, 12, 0.7


@pytest.fixture(scope="module")
def linear_gaussian():
    """x = W z + b + noise with orthogonal columns: images, log p(x), the diagonal posterior, and log p(x | z)."""
    torch.manual_seed(0)
    w = torch.linalg.qr(torch.randn(PIXELS, SIZE))[0] * torch.tensor([0.5, 1.0, 2.0])
    b = torch.randn(PIXELS)
    x = torch.randn(50, SIZE) @ w.T + b + NOISE * torch.randn(50, PIXELS)
    covariance = w.double() @ w.T.double() + NOISE**2 * torch.eye(PIXELS)
    exact = MultivariateNormal(b.double(), covariance).log_prob(x.double())
    variance = 1 / (1 + w.square().sum(0) / NOISE**2)
    mean = variance * ((x - b) @ w) / NOISE**2

    def log_likelihood(code, part):
        return Normal(code @ w.T + b, NOISE).log_prob(part).sum(-1)

    return x, exact, mean, variance.log().expand_as(mean), log_likelihood


def test_with_the_true_posterior_two_samples_give_the_exact_likelihood(linear_gaussian):
    x, exact, mean, logvar, log_likelihood = linear_gaussian
    log_p, _, effective, *_ = importance_weighted(x, mean, logvar, log_likelihood, 2, seed=0).values()
    torch.testing.assert_close(log_p, exact, rtol=0, atol=1e-4)  # single precision's sums
    assert effective.numpy() == pytest.approx(2, abs=1e-3)
    # the ELBO of the true posterior is the likelihood too, but for the draws of its first term
    kl = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1)
    log_px_z = importance_weighted(x, mean, logvar, log_likelihood, 4000, seed=0)["log_px_z"]
    assert (log_px_z - kl).mean().item() == pytest.approx(exact.mean().item(), abs=0.02)


def test_with_another_posterior_the_estimate_is_within_its_monte_carlo_error(linear_gaussian):
    x, exact, mean, logvar, log_likelihood = linear_gaussian
    terms = importance_weighted(x, mean + 0.1, logvar + 0.5, log_likelihood, 4000, seed=1)
    log_p, log_px_z, error = terms["log_px"], terms["log_px_z"], terms["variance"].sqrt()
    assert error.max() < 0.1 and ((log_p - exact) / error).abs().max() < 5
    assert ((log_p - exact) / error).square().mean().item() == pytest.approx(1, abs=0.6)
    kl = kl_divergence(Normal(mean + 0.1, (logvar / 2 + 0.25).exp()), Normal(0.0, 1.0)).sum(1)
    assert (log_px_z - kl).mean() < exact.mean() - 0.05  # the ELBO stays below


def test_more_samples_close_the_bound_from_below(linear_gaussian):
    x, exact, mean, logvar, log_likelihood = linear_gaussian
    gaps = []
    for samples in (1, 10, 1000):
        tries = [
            importance_weighted(x, mean, logvar + 1.5, log_likelihood, samples, seed)["log_px"] for seed in range(5)
        ]
        gaps.append((exact - torch.stack(tries)).mean().item())
    assert gaps[0] > 2 * gaps[1] > 4 * abs(gaps[2])


@pytest.mark.parametrize("hidden", [(), (16,), (16, 8)])
@pytest.mark.parametrize("grey", [True, False])
def test_log_p_of_x_given_a_code_is_minus_the_models_own_cross_entropy(hidden, grey):
    torch.manual_seed(0)
    model = VAE((784, *hidden, 5)) if hidden else VAE((784, 12, 5))
    code, x = torch.randn(4, 6, 5), torch.rand(6, 784) if grey else torch.rand(6, 784).round()
    with torch.no_grad():
        direct = -F.binary_cross_entropy(model.decode(code), x.expand(4, 6, 784), reduction="none").sum(-1)
        torch.testing.assert_close(bernoulli(model)(code, x), direct, rtol=1e-5, atol=1e-3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = VAE((784, 32, 6))
    with torch.no_grad():
        model.mean.weight[:2], model.mean.bias[:2] = 0, 5.0  # two dimensions that never move
        model.mean.weight[2:] *= 5
    return model


@pytest.fixture(scope="module")
def images(digits):
    return torch.from_numpy(digits.test_images[:70].copy())


@pytest.mark.parametrize("samples", [3, 15, 100])
def test_the_variance_is_that_over_draws_also_where_few_samples_carry_all_the_weight(linear_gaussian, samples):
    x, _, mean, logvar, log_likelihood = linear_gaussian
    draws = [importance_weighted(x, mean + 0.5, logvar - 1, log_likelihood, samples, seed) for seed in range(40)]
    found, variance = (torch.stack([draw[name] for draw in draws]) for name in ("log_px", "variance"))
    assert (variance.mean(0).sum() / found.var(0).sum()).sqrt().item() == pytest.approx(1, abs=0.2)


def test_a_tenth_of_the_samples_gives_the_bound_of_a_run_with_as_many(linear_gaussian):
    x, _, mean, logvar, log_likelihood = linear_gaussian
    many, few = ([importance_weighted(x, mean, logvar - 1, log_likelihood, samples, seed) for seed in range(20)]
                 for samples in (100, 10))  # fmt: skip
    tenth, fewer, all_of_them = (torch.stack([draw[name] for draw in draws]).mean().item()
                                 for draws, name in ((many, "tenth"), (few, "log_px"), (many, "log_px")))  # fmt: skip
    assert tenth == pytest.approx(fewer, abs=0.04) and tenth < all_of_them - 0.1


def measured(model, images, samples, binarize="none", seed=0, **options):
    return likelihood(model, images, samples, binarize, seed, **options)


def test_the_number_of_codes_decoded_at_a_time_does_not_matter(model, images):
    found = [measured(model, images[:64], 50, decoded=decoded) for decoded in (7, 64, 4096)]
    for other in found[1:]:
        for name in ("elbo", "nll", "effective_samples", "nll_monte_carlo_error", "nll_fall_from_tenth"):
            assert found[0][name] == pytest.approx(other[name], rel=1e-4)


def test_the_reported_numbers_are_consistent(model, images):
    found = measured(model, images, 40)
    assert found["images"] == 70 and found["active_units"] == 4 and found["code_size"] == 6
    assert found["entropy_floor"] < found["nll"] < -found["elbo"] and 1 <= found["effective_samples"] <= 40
    assert "cross-entropy" in found["protocol"] and "40 importance samples" in found["protocol"]
    assert found == measured(model, images, 40) != measured(model, images, 40, seed=1)
    static = measured(model, images, 40, "static")
    assert "binary" in static["protocol"] and "entropy_floor" not in static


def test_numbers_that_so_few_samples_do_not_have_are_none(model, images):
    for samples, error, fall in ((1, False, False), (2, True, False), (9, True, False), (10, True, True)):
        found = measured(model, images, samples)
        assert (found["nll_monte_carlo_error"] is not None, found["nll_fall_from_tenth"] is not None) == (error, fall)


@pytest.mark.filterwarnings("error")
def test_one_image_has_no_spread(model, images):
    found = measured(model, images[:1], 40)
    assert found["nll_standard_error"] is None and found["active_units"] == 0 and found["nll"] <= -found["elbo"]


def test_binary_pixels_follow_their_grey_levels_and_static_ones_no_seed():
    images = torch.linspace(0, 255, 784).to(torch.uint8).repeat(400, 1)
    x = to_pixels(images, "unit")
    static, again, dynamic, other = (binarized(images, *how) for how in
                                     (("static", 0), ("static", 9), ("dynamic", 0), ("dynamic", 9)))  # fmt: skip
    assert torch.equal(static, again) and not torch.equal(dynamic, other) and not torch.equal(static, dynamic)
    for draw in (static, dynamic):
        assert set(draw.unique().tolist()) == {0, 1} and (draw.mean(0) - x[0]).abs().max() < 0.15
    assert torch.equal(binarized(images, "none", 0), x)
    binary = (images > 99).to(torch.uint8) * 255
    assert torch.equal(binarized(binary, "published", 0), to_pixels(binary, "unit"))


def test_no_decoder_is_below_the_entropy_floor():
    x = torch.rand(10, 784, generator=torch.Generator().manual_seed(0))
    best = F.binary_cross_entropy(x, x, reduction="none").sum(1).mean().item()
    assert entropy_floor(x) == pytest.approx(best, rel=1e-5)
    assert entropy_floor(x.round()) == 0
    assert entropy_floor(torch.full((3, 784), 0.5)) == pytest.approx(784 * math.log(2), rel=1e-6)
