import copy

import numpy as np
import pytest
import torch
from conftest import make_trainer, same_bits

from autoencoders.data.batches import batch_order
from autoencoders.evaluation.metrics import to_pixels
from autoencoders.training.trainer import StepLog, Trainer

SMALL = {"hidden_sizes": (32,), "code_size": 8, "epochs": 3, "batch_size": 50}


def train(images, amp="off", **settings):
    """A trainer at the end of a small run."""
    recipe = make_trainer("symmetric", images, **{**SMALL, **settings}).recipe
    trainer = Trainer(recipe, images, "cpu", amp)
    list(trainer.epochs())
    return trainer


def losses(trainer):
    return [(row["train_loss"], row["test_loss"]) for row in trainer.history]


def same_weights(one, other):
    return same_bits(one.model.state_dict(), other.model.state_dict())


@pytest.fixture(scope="module")
def run(few):
    return train(few)


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_one_others(run, few):
    again = train(few)
    assert same_weights(run, again) and losses(run) == losses(again)
    assert not same_weights(run, train(few, seed=1))


def test_training_is_what_a_plain_loop_does(run, few):
    recipe = run.recipe
    torch.manual_seed(recipe.seed)
    model = recipe.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    x = torch.from_numpy(few.train_images) / 255 * 2 - 1
    plain = []
    for epoch in range(3):
        for index in batch_order(256, 50, recipe.seed, epoch):
            loss = (model(x[index])[0] - x[index]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plain.append(loss.item())
    assert np.allclose(run.batch_losses, plain, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "weight_decay": 0.1}])
def test_an_update_has_the_bits_of_torchs_fused_optimizer(settings, few):
    trainer = make_trainer("simple", few, batch_size=50, epochs=1, **settings)
    theirs = copy.deepcopy(trainer.model)
    kind = torch.optim.AdamW if settings else torch.optim.Adam
    optimizer = kind(theirs.parameters(), lr=trainer.recipe.lr, weight_decay=trainer.recipe.weight_decay, fused=True)
    x = torch.from_numpy(few.train_images)
    for batch in (x[:50], x[50:100], x[100:150]):
        loss = theirs.loss(to_pixels(batch, theirs.input_range))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trainer.step(batch)
    assert same_bits(trainer.model.state_dict(), theirs.state_dict())
    ours = trainer.optimizer.state_dict()["state"]
    assert all(same_bits(ours[key], moments) for key, moments in optimizer.state_dict()["state"].items())


def test_an_epochs_loss_counts_every_image_once(run):
    sizes = np.array([50] * 5 + [6])
    for row, of_epoch in zip(run.history, np.split(np.array(run.batch_losses), 3), strict=True):
        assert row["train_loss"] == pytest.approx((of_epoch * sizes).sum() / 256, rel=1e-6)


def test_a_log_averages_by_batch_size_and_keeps_tables_out_of_the_history():
    log = StepLog(2)
    log.append({"loss": torch.tensor(1.0), "members": torch.tensor([1.0, 2.0]), "rates": torch.ones(2, 3)}, 0.1)
    log.append({"loss": torch.tensor(4.0), "members": torch.tensor([4.0, 5.0]), "rates": torch.ones(2, 3)}, 0.2)
    assert log.means([20, 10]) == {"loss": pytest.approx(2.0), "members": pytest.approx([2.0, 3.0])}
    assert (log.steps, log.seconds) == (2, 0.2)


def test_a_row_of_history_has_epoch_losses_and_time(run):
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    for row in run.history:
        assert row["seconds"] >= 0 and row["images_per_second"] > 0 and row["test_loss"] > 0


def test_every_step_is_reported_with_its_number_and_its_loss(few):
    trainer = make_trainer("symmetric", few, **{**SMALL, "epochs": 1})
    seen = []
    list(trainer.epochs(lambda epoch, step, steps, loss: seen.append((epoch, step, steps, loss.item()))))
    assert seen == [(1, step, 6, trainer.batch_losses[step - 1]) for step in range(1, 7)]


def test_mixed_precision_keeps_fp32_weights_and_ends_close_to_fp32(run, few):
    mixed = train(few, amp="on")
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())
    assert not same_weights(run, mixed)
    assert mixed.history[-1]["test_loss"] == pytest.approx(run.history[-1]["test_loss"], rel=0.03)


def test_training_leaves_the_images_as_they_were(few):
    before = few.fingerprint
    train(few, epochs=1)
    assert few.__class__(**{k: v for k, v in vars(few).items() if k != "fingerprint"}).fingerprint == before


def test_one_cycle_of_a_single_step_learns(few):
    trainer = make_trainer("speedrun", few, batch_size=1000)
    before = trainer.model.state_dict()["decoder.0.linear.weight"].clone()
    list(trainer.epochs())
    change = (trainer.model.state_dict()["decoder.0.linear.weight"] - before).abs().max().item()
    assert len(trainer.batch_losses) == 1 and change == pytest.approx(trainer.recipe.lr, rel=0.01)  # Adam's first step


def test_a_reinitialised_autoencoder_has_no_momentum_and_the_others_keep_theirs(few):
    settings = {"num_saes": 2, "features": 64, "k": 8, "reinit_threshold": 0.5, "batch_size": 64}
    trainer = make_trainer("sparse", few, **settings)
    trainer.model.reinit_every = 3
    for _ in range(3):
        trainer.model.fires[1] = trainer.model.target_rate * trainer.model.images  # the rate that the rule wants
        trainer.step(trainer.train_images[:64])
    for adam in trainer.optimizer.state.values():
        assert not adam["exp_avg"][0].any() and not adam["exp_avg_sq"][0].any()
        assert adam["exp_avg"][1].any() and adam["exp_avg_sq"][1].any()


def test_gradients_are_clipped_to_the_maximum_norm(few):
    def norms(clip):
        trainer = make_trainer("simple", few, grad_clip=clip, epochs=1, batch_size=32)
        seen = []
        weights = list(trainer.model.parameters())
        next(trainer.epochs(lambda *_: seen.append(torch.cat([w.grad.flatten() for w in weights]).norm().item())))
        return seen

    assert max(norms(1e-3)) == pytest.approx(1e-3, rel=1e-3) and min(norms(0.0)) > 1e-3


def test_the_speedrun_reaches_its_quality_on_mnist(mnist):
    """One real run with a bound: the published `symmetric` ends at 0.0142."""
    trainer = make_trainer("speedrun", mnist)
    list(trainer.epochs())
    assert trainer.history[-1]["test_loss"] < 0.0142  # squared error of pixels in [-1, 1], the loss itself
