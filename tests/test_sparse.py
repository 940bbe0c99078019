"""The stacked ensemble against brute force, on small sizes."""

from copy import deepcopy

import pytest
import torch
from conftest import make_trainer, same_bits

from autoencoders.evaluation.metrics import mmcs
from autoencoders.sparse import SparseEnsemble

X = torch.rand(16, 36, generator=torch.Generator().manual_seed(1))


def small(**settings):
    """An ensemble of three, whose rows have many lengths."""
    torch.manual_seed(0)
    model = SparseEnsemble(**{"num_saes": 3, "features": 40, "k": 7, "inputs": 36} | settings)
    with torch.no_grad():
        model.weight.mul_(torch.rand(model.members, 40, 1) + 0.5)
        model.bias.normal_(0, 0.1)
    model.refresh_matches()
    return model


def train(model, steps, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        loss, parts = model.loss(X)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(parts)


def everything(model):
    return {**model.state_dict(), **dict(model.named_buffers())}


@pytest.mark.parametrize(("members", "center"), [(1, False), (3, False), (3, True)])
def test_value_and_gradient_equal_brute_force(members, center):
    model = small(num_saes=members, consistency_warmup=0, consistency_weight=0.7, center=center)
    model.on_start(lambda: (X.mean(0), X.std(0)))
    model.revive_weight = 0.3
    model.silent.copy_((torch.rand(members, 40) < 0.3) * 10.0)
    losses, gradients = [], []
    turns = max(members - 1, 1)  # a round of partners: fresh matches make its mean the MMCS
    for turn in range(turns):
        model.step.fill_(turn)
        losses.append(model.loss(X)[0])
        gradients.append(torch.autograd.grad(losses[-1], (model.weight, model.bias)))
    pre = (X - X.mean(0) if center else X) @ model.weight.mT + model.bias[:, None]
    lift = ((model.silent >= 2)[:, None] * pre).mean((1, 2)).sum()
    expected = (model(X)[0] - X).square().mean((1, 2)).sum() - 0.3 * lift
    if members > 1:
        expected = expected + 0.7 * (1 - mmcs(model.weight))
    torch.testing.assert_close(sum(losses) / turns, expected)
    for found, reference in zip(zip(*gradients), torch.autograd.grad(expected, (model.weight, model.bias))):
        torch.testing.assert_close(sum(found) / turns, reference, rtol=1e-4, atol=1e-7)


def test_a_centred_model_answers_an_empty_code_with_the_mean_image_and_keeps_it_in_its_state():
    model = small(center=True)
    model.on_start(lambda: (X.mean(0), X.std(0)))
    assert torch.equal(model.decode(torch.zeros(3, 1, 40)), X.mean(0).expand(3, 1, 36))
    assert torch.equal(model.state_dict()["mean"], X.mean(0))
    assert "mean" not in small().state_dict()


def test_a_standardized_model_is_one_of_standardized_vectors_and_answers_in_their_units():
    model, vectors = small(standardize=True), X * torch.arange(36) + 5  # the first number is constant
    mean, deviation = vectors.mean(0), vectors.std(0)
    model.on_start(lambda: (mean, deviation))
    plain, units = small(), (vectors - mean) / deviation.where(deviation > 0, torch.tensor(1.0))
    for training in (True, False):
        found, expected = (each.train(training).loss(x)[0] for each, x in ((model, vectors), (plain, units)))
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.encode(vectors), plain.encode(units))
    torch.testing.assert_close(model.normalized(model(vectors)[0]), plain(units)[0])
    assert set(model.state_dict()) - set(plain.state_dict()) == {"mean", "scale"}


def test_the_first_weights_are_orthogonal_and_as_long_as_the_scale_says():
    torch.manual_seed(0)
    rows = SparseEnsemble(num_saes=2, features=20, k=3, inputs=36, init_scale=0.01).weight
    assert torch.allclose(rows @ rows.mT, 1e-4 * torch.eye(20).expand(2, 20, 20), atol=1e-9)


def test_firing_rates_are_those_of_the_codes():
    model = small()
    torch.testing.assert_close(model.loss(X)[1]["firing_rate"], (model.encode(X) != 0).float().mean(1))


def test_exactly_k_features_fire_also_in_a_tie():
    model = small()
    torch.nn.init.constant_(model.weight, 0.1)
    torch.nn.init.zeros_(model.bias)
    assert ((model.encode(X) != 0).sum(-1) == 7).all()


def test_one_adam_over_the_stack_equals_one_each():
    stack = small(consistency_weight=0)
    singles = [small(num_saes=1) for _ in range(3)]
    for single, weight, bias in zip(singles, stack.weight, stack.bias):
        single.weight.data, single.bias.data = weight.data[None].clone(), bias.data[None].clone()
    for model in (stack, *singles):
        train(model, 20)
    torch.testing.assert_close(stack.weight, torch.cat([s.weight for s in singles]))


def test_steps_search_every_match_anew():
    model = small()
    model.matches_per_step = 10
    expected = model.matches.clone()
    model.matches.zero_()
    for _ in range(4 * 6):
        model.after_step({"firing_rate": torch.zeros(3, 40)})
    assert torch.equal(model.matches, expected)


def test_a_feature_is_revived_after_a_few_silent_steps():
    model = small(consistency_weight=0)
    with torch.no_grad():
        model.bias[:, 5] = -100
    train(model, model.revive_window)
    assert model.silent[:, 5].tolist() == [model.revive_window] * 3
    before = model.bias[:, 5].detach().clone()
    train(model, 1)
    assert (model.bias[:, 5] > before).all()


def test_an_autoencoder_far_from_its_firing_rates_is_reinitialised():
    model = small(num_saes=1, reinit_threshold=1e-9)
    model.reinit_every = 3
    train(model, 2)
    assert model.images == 2 and torch.allclose(model.fires.sum(), torch.tensor(2.0 * model.k))
    train(model, 1)
    assert not model.bias.any() and model.images == 0 and not model.fires.any()
    torch.testing.assert_close(model.weight[0].T @ model.weight[0], torch.eye(36))  # orthogonal, as at the start


@pytest.mark.parametrize("bad", [{"k": 0}, {"k": 41}, {"num_saes": 0}, {"features": 0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError):
        small(**bad)


class Interrupted(Exception):
    pass


def test_a_trainer_stopped_inside_an_epoch_and_resumed_ends_in_the_same_bits(few):
    settings = {"epochs": 3, "batch_size": 32, "num_saes": 3, "features": 64, "k": 8, "consistency_warmup": 20}
    whole, stopped, resumed = (make_trainer("sparse", few, **settings) for _ in range(3))
    list(whole.epochs())

    def stop(epoch, step, steps, loss):
        if (epoch, step) == (2, 5):
            raise Interrupted

    with pytest.raises(Interrupted):
        list(stopped.epochs(stop))
    state = deepcopy(stopped.state_dict())
    torch.manual_seed(99)
    with torch.no_grad():
        resumed.model.weight.normal_()
    resumed.model.step.fill_(7)
    resumed.load_state_dict(state)
    list(resumed.epochs())
    assert everything(whole.model).keys() >= {"weight", "bias", "step", "matches", "silent", "fires"}
    assert same_bits(everything(whole.model), everything(resumed.model))
    hidden = ("seconds", "images_per_second")
    ours, theirs = ([{k: v for k, v in row.items() if k not in hidden} for row in t.history] for t in (whole, resumed))
    assert ours == theirs
