import numpy as np
import pytest
import torch

from autoencoders.recipes import RECIPES
from autoencoders.runtime.device import Precision
from autoencoders.training import trainer
from autoencoders.training.trainer import Trainer, batch_order, batches

CPU = torch.device("cpu")
SMALL = RECIPES["symmetric"].override({"hidden_sizes": (32,), "code_size": 8, "epochs": 3, "batch_size": 50})


def train(images, amp="off", workers=0, graphs=False, **settings):
    """A trainer that has reached the end of a small run."""
    recipe = SMALL.override(settings)
    torch.manual_seed(recipe.seed)
    trainer = Trainer(
        recipe.build(), recipe, images.train_images, images.test_images, CPU, Precision(amp, CPU), workers, graphs
    )
    list(trainer.epochs())
    return trainer


def losses(trainer):
    return [(row["train_loss"], row["test_loss"]) for row in trainer.history]


def same_weights(one, other):
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def run(few):
    return train(few)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (10, 3), (12, 4), (5, 100), (1500, 256)])
def test_the_batches_of_an_epoch_are_a_permutation_of_the_images(count, size):
    order = batch_order(count, size, seed=0, epoch=0)
    assert sorted(torch.cat(order).tolist()) == list(range(count))
    assert [len(b) for b in order[:-1]] == [size] * (len(order) - 1) and 1 <= len(order[-1]) <= size


def test_the_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = torch.cat(batch_order(1000, 100, seed=5, epoch=3))
    torch.manual_seed(2)
    assert torch.equal(first, torch.cat(batch_order(1000, 100, seed=5, epoch=3)))
    assert torch.equal(first, torch.cat(batch_order(1000, 7, seed=5, epoch=3)))
    assert not torch.equal(first, torch.cat(batch_order(1000, 100, seed=5, epoch=4)))
    assert not torch.equal(first, torch.cat(batch_order(1000, 100, seed=6, epoch=3)))


def test_batches_are_the_images_their_order_names(few):
    images = torch.from_numpy(few.train_images.copy())
    order = batch_order(256, 100, 0, 0)
    got = list(batches(images, order, 0, CPU))
    assert [len(b) for b in got] == [100, 100, 56]
    assert all(torch.equal(batch, images[index]) for batch, index in zip(got, order, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_worker_processes_fetch_the_same_batches_and_draw_no_random_numbers_of_ours(few):
    images = torch.from_numpy(few.train_images.copy())
    order = batch_order(256, 100, 0, 0)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    pairs = zip(batches(images, order, 2, CPU), batches(images, order, 0, CPU), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(torch.get_rng_state(), state)  # or a model's noise would depend on --workers


def test_the_same_seed_gives_the_same_weights_bit_for_bit(run, few):
    again = train(few)
    assert same_weights(run, again) and losses(run) == losses(again)


def test_another_seed_gives_other_weights(run, few):
    assert not same_weights(run, train(few, seed=1))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_worker_processes_change_no_loss_and_no_weight(run, few):
    other = train(few, workers=2)
    assert losses(other) == losses(run) and same_weights(other, run)


def test_training_is_what_a_plain_loop_does(run, few):
    torch.manual_seed(SMALL.seed)
    model = SMALL.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=SMALL.lr)
    x = torch.from_numpy(few.train_images) / 255 * 2 - 1
    plain = []
    for epoch in range(3):
        for index in batch_order(256, 50, SMALL.seed, epoch):
            loss = (model(x[index])[0] - x[index]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plain.append(loss.item())
    assert np.allclose(run.batch_losses, plain, rtol=1e-4)


def test_an_epochs_loss_counts_every_image_once(run):
    sizes = np.array([50] * 5 + [6])
    for row, of_epoch in zip(run.history, np.split(np.array(run.batch_losses), 3), strict=True):
        assert row["train_loss"] == pytest.approx((of_epoch * sizes).sum() / 256, rel=1e-6)


def test_a_row_of_history_tells_epoch_losses_and_time(run):
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    for row in run.history:
        assert row["seconds"] >= 0 and row["images_per_second"] > 0 and row["test_loss"] > 0


def test_every_step_is_reported_with_its_place_and_its_loss(few):
    torch.manual_seed(0)
    recipe = SMALL.override({"epochs": 1})
    trainer = Trainer(recipe.build(), recipe, few.train_images, few.test_images, CPU, Precision("off", CPU))
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


class InPlace(torch.autograd.Function):
    """The loss, delivered in a place that the next one overwrites, as a CUDA graph delivers it."""

    @staticmethod
    def forward(ctx, loss, place):
        ctx.mark_dirty(place)
        return place.copy_(loss)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def test_steps_that_leave_their_numbers_in_one_place_train_to_the_same_bits(few, run, monkeypatch):
    def captured(loss_of, images):
        batch, place, seen = images.clone(), torch.zeros(()), []

        def replay(images):
            assert len(images) == SMALL.batch_size
            seen.append(images)
            loss, parts = loss_of(batch.copy_(images))
            return InPlace.apply(loss, place.detach()), parts

        captures.append(seen)
        return replay

    captures = []
    monkeypatch.setattr(trainer._Loss, "captured", captured)
    replayed = train(few, graphs=True)
    assert losses(replayed) == losses(run) and same_weights(replayed, run)
    assert [len(seen) for seen in captures] == [len(few.train_images) // SMALL.batch_size] * SMALL.epochs


def gradients(images, recipe, parts):
    """Of one batch of all images; and what the model has counted."""
    recipe = recipe.override({"batch_size": len(images), "micro_batches": parts})
    torch.manual_seed(0)
    model = recipe.build()
    Trainer(model, recipe, images, images, CPU, Precision("off", CPU)).train_epoch(0, lambda *_: None)
    return [weight.grad for weight in model.parameters()], [model.get_buffer(name) for name in model.batch_counts]


@pytest.mark.parametrize(("count", "parts"), [(50, 3), (4, 7)])  # of 4 images in 7 parts some parts have none
@pytest.mark.parametrize("name", ["simple", "denoising", "vae", "conv", "sparse"])
def test_a_batch_in_parts_has_the_gradients_of_the_whole_batch_noise_and_counts_included(few, name, count, parts):
    images = few.train_images[:count]
    (ours, counts), (whole, counted) = (gradients(images, RECIPES[name], p) for p in (parts, 1))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6 * b.abs().max()) for a, b in zip(ours, whole, strict=True))
    assert all(map(torch.equal, counts, counted))
