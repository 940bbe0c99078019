"""The stacked ensemble against brute force, on small sizes."""

from copy import deepcopy

import pytest
import torch

from autoencoders.evaluation.metrics import mmcs
from autoencoders.recipes import RECIPES
from autoencoders.runtime.device import Precision
from autoencoders.sparse import SparseEnsemble
from autoencoders.training.trainer import Trainer

X = torch.rand(16, 36, generator=torch.Generator().manual_seed(1))


def small(**settings):
    torch.manual_seed(0)
    model = SparseEnsemble(**{"num_saes": 3, "features": 40, "k": 7, "image_size": 6} | settings)
    with torch.no_grad():
        model.weight.mul_(torch.rand(model.num_saes, 40, 1) + 0.5)
        model.bias.normal_(0, 0.1)
    model.refresh_matches()
    return model


def gradients(model, loss):
    return torch.autograd.grad(loss, (model.weight, model.bias))


def test_value_and_gradient_equal_brute_force():
    model = small(consistency_warmup=0, consistency_weight=0.7, revive_weight=0.3)
    model.silent.copy_((torch.rand(3, 40) < 0.3) * 10.0)
    losses, grads = [], []
    for turn in range(2):  # a round of partners: fresh matches make its mean the MMCS
        model.step.fill_(turn)
        losses.append(model.loss(X)[0])
        grads.append(gradients(model, losses[-1]))
    pre = X @ model.weight.mT + model.bias[:, None]
    lift = ((model.silent >= 2)[:, None] * pre).mean((1, 2)).sum()
    error = (model(X)[0] - X).square().mean((1, 2)).sum()
    expected = error + 0.7 * (1 - mmcs(model.weight)) - 0.3 * lift
    torch.testing.assert_close(sum(losses) / 2, expected)
    for parts, reference in zip(zip(*grads), gradients(model, expected)):
        torch.testing.assert_close(sum(parts) / 2, reference, rtol=1e-4, atol=1e-7)


def test_exactly_k_under_ties():
    model = small()
    torch.nn.init.constant_(model.weight, 0.1)
    torch.nn.init.zeros_(model.bias)
    assert ((model.encode(X) != 0).sum(-1) == 7).all()


def train(model, optimiser, steps):
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(X)[0].backward()
        optimiser.step()
        model.after_step()


def test_one_adam_over_the_stack_equals_one_each():
    stack = small(consistency_weight=0)
    singles = [small(num_saes=1) for _ in range(3)]
    for single, weight, bias in zip(singles, stack.weight, stack.bias):
        single.weight.data, single.bias.data = weight.data[None].clone(), bias.data[None].clone()
    for model in (stack, *singles):
        train(model, torch.optim.Adam(model.parameters(), 1e-3), 20)
    torch.testing.assert_close(stack.weight, torch.cat([s.weight for s in singles]))


def test_resume_is_bit_identical():
    model = small()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    train(model, optimiser, 15)
    resumed = SparseEnsemble(num_saes=3, features=40, k=7, image_size=6)
    resumed.load_state_dict(model.state_dict())
    for name, buffer in model.named_buffers():
        resumed.get_buffer(name).copy_(buffer)
    again = torch.optim.Adam(resumed.parameters(), 1e-3, fused=True)
    again.load_state_dict(deepcopy(optimiser.state_dict()))  # it would share the moments
    train(model, optimiser, 15)
    train(resumed, again, 15)
    assert torch.equal(model.weight, resumed.weight) and torch.equal(model.matches, resumed.matches)


def test_sweep_refreshes_every_match():
    model = small(matches_per_step=10)
    expected = model.matches.clone()
    model.matches.zero_()
    for _ in range(4 * 6):
        model.after_step()
    assert torch.equal(model.matches, expected)


def test_single_autoencoder_and_reinitialisation():
    model = small(num_saes=1, reinit_threshold=1e-9, reinit_every=1)
    parts = model.loss(X)[1]
    before = model.weight.detach().clone()
    model.after_step()
    assert "consistency" not in parts and not torch.equal(before, model.weight)


@pytest.mark.parametrize("bad", [{"k": 0}, {"k": 41}, {"num_saes": 0}, {"features": 0}])
def test_bad_settings(bad):
    with pytest.raises(ValueError):
        small(**bad)


class Interrupted(Exception):
    pass


def trainer(few):
    settings = {"epochs": 3, "batch_size": 32, "num_saes": 3, "features": 64, "k": 8, "consistency_warmup": 20}
    recipe, cpu = RECIPES["sparse"].override(settings), torch.device("cpu")
    torch.manual_seed(recipe.seed)
    return Trainer(recipe.build(), recipe, few.train_images, few.test_images, cpu, Precision("off", cpu))


def test_a_trainer_stopped_inside_an_epoch_and_resumed_ends_in_the_same_bits(few):
    whole, stopped, resumed = (trainer(few) for _ in range(3))
    rows = list(whole.epochs())

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
    ours, theirs = ({**t.model.state_dict(), **dict(t.model.named_buffers())} for t in (whole, resumed))
    assert ours.keys() >= {"weight", "bias", "step", "matches", "silent", "fires"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    names = ("train_loss", "recon_loss", "consistency", "test_loss", "pearson", "dead_features")
    assert [[row[n] for n in names] for row in rows] == [[row[n] for n in names] for row in resumed.history]
