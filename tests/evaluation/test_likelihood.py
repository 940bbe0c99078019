"""The likelihood is exact where it has a closed form, and what is summed is the model's own cross-entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ae_models import VAE
from autoencoders.evaluation import likelihood as likelihood_module
from autoencoders.evaluation.likelihood import bernoulli, binarized, entropy_floor, importance_weighted, likelihood

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
    log_p, match, effective = importance_weighted(x, mean, logvar, log_likelihood, samples=2)
    torch.testing.assert_close(log_p, exact, rtol=0, atol=1e-4)  # single precision's sums
    assert effective.numpy() == pytest.approx(2, abs=1e-3)
    # the ELBO of the true posterior is the likelihood too, but for the draws of its first term
    kl = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1)
    match = importance_weighted(x, mean, logvar, log_likelihood, samples=4000)[1]
    assert (match - kl).mean().item() == pytest.approx(exact.mean().item(), abs=0.02)


def test_with_another_posterior_the_estimate_is_within_its_monte_carlo_error(linear_gaussian):
    x, exact, mean, logvar, log_likelihood = linear_gaussian
    torch.manual_seed(1)
    log_p, match, effective = importance_weighted(x, mean + 0.1, logvar + 0.5, log_likelihood, samples=4000)
    error = (1 / effective - 1 / 4000).sqrt()
    assert error.max() < 0.1 and ((log_p - exact) / error).abs().max() < 5
    assert ((log_p - exact) / error).square().mean().item() == pytest.approx(1, abs=0.6)
    kl = kl_divergence(Normal(mean + 0.1, (logvar / 2 + 0.25).exp()), Normal(0.0, 1.0)).sum(1)
    assert (match - kl).mean() < exact.mean() - 0.05  # the ELBO stays below


def test_more_samples_close_the_bound_from_below(linear_gaussian):
    x, exact, mean, logvar, log_likelihood = linear_gaussian
    torch.manual_seed(2)
    gaps = []
    for samples in (1, 10, 1000):
        tries = [importance_weighted(x, mean, logvar + 1.5, log_likelihood, samples)[0] for _ in range(5)]
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


def test_how_many_codes_are_decoded_at_a_time_does_not_matter(model, digits, monkeypatch):
    images = torch.from_numpy(digits.test_images[:64].copy())
    found = []
    for rows in (7, 64, 4096):
        monkeypatch.setattr(likelihood_module, "_ROWS", {"cpu": rows})
        numbers = likelihood(model, images, 50, "none", seed=0)
        found.append([numbers[name] for name in ("elbo", "nll", "effective_samples", "nll_monte_carlo_error")])
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[1] == pytest.approx(found[2], rel=1e-4)


def test_what_is_reported_holds_together(model, digits):
    images = torch.from_numpy(digits.test_images[:70].copy())
    done = []
    found = likelihood(model, images, 40, "none", seed=0, show=done.append)
    assert sum(done) == 70 and found["active_units"] == 4 and found["code_size"] == 6
    assert found["entropy_floor"] < found["nll"] < -found["elbo"] and 1 <= found["effective_samples"] <= 40
    assert "cross-entropy" in found["protocol"] and "40 importance samples" in found["protocol"]
    assert found == likelihood(model, images, 40, "none", seed=0) != likelihood(model, images, 40, "none", seed=1)
    static = likelihood(model, images, 40, "static", seed=0)
    assert "binary" in static["protocol"] and "entropy_floor" not in static


@pytest.mark.filterwarnings("error")
def test_one_image_has_no_spread(model, digits):
    found = likelihood(model, torch.from_numpy(digits.test_images[:1].copy()), 40, "none", seed=0)
    assert found["nll_standard_error"] is None and found["active_units"] == 0 and found["nll"] <= -found["elbo"]


def test_binary_pixels_follow_their_grey_levels_and_static_ones_no_seed():
    x = torch.linspace(0, 1, 784).expand(400, 784)
    static, again, dynamic, other = (binarized(x, *how) for how in
                                     (("static", 0), ("static", 9), ("dynamic", 0), ("dynamic", 9)))  # fmt: skip
    assert torch.equal(static, again) and not torch.equal(dynamic, other) and not torch.equal(static, dynamic)
    for draw in (static, dynamic):
        assert set(draw.unique().tolist()) == {0, 1} and (draw.mean(0) - x[0]).abs().max() < 0.15
    assert binarized(x, "none", 0) is x


def test_no_decoder_is_below_the_entropy_floor():
    x = torch.rand(10, 784, generator=torch.Generator().manual_seed(0))
    best = F.binary_cross_entropy(x, x, reduction="none").sum(1).mean().item()
    assert entropy_floor(x) == pytest.approx(best, rel=1e-5)
    assert entropy_floor(x.round()) == 0
    assert entropy_floor(torch.full((3, 784), 0.5)) == pytest.approx(784 * math.log(2), rel=1e-6)
