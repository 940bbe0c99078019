"""The one training loop: batches of images on the device in, a row of numbers per epoch out.

The loop knows no model by name. It asks the model for its loss, steps the optimiser and keeps every loss on the
device until the epoch ends, so that a GPU is never waited for.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ae_metrics import evaluate, to_pixels
from ae_models import Autoencoder
from ae_recipes import Recipe
from ae_runtime import Precision, seed_for

Row = dict[str, Any]
OnStep = Callable[[int, int, int, Tensor], None]  # epoch, step, steps in the epoch, the batch's loss on the device


def batch_order(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The image numbers of each batch of an epoch: a permutation that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(seed_for(seed, epoch))
    order: tuple[Tensor, ...] = torch.randperm(count, generator=generator).split(batch_size)
    return order


class _Rows(torch.utils.data.Dataset[Tensor]):
    """Images as a data set that is asked for whole batches: an index tensor in, the batch out."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __getitem__(self, index: Any) -> Tensor:
        return self.images[index]


def batches(images: Tensor, order: tuple[Tensor, ...], workers: int, device: torch.device) -> Iterator[Tensor]:
    """The uint8 batches named by `order`, on the device; `workers` processes fetch the same ones in the same order."""
    if workers:
        loader = torch.utils.data.DataLoader(_Rows(images), sampler=order, batch_size=None, num_workers=workers)
        yield from (batch.to(device, non_blocking=True) for batch in loader)
    else:
        order = torch.cat(order).to(images.device).split(len(order[0])) if order else ()
        yield from (images[index] for index in order)


def make_optimizer(model: Autoencoder, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019), the whole update in one kernel."""
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The learning rate over `steps` steps: one cycle up and down (Smith 2018), half a cosine, or None for constant."""
    if recipe.lr_schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=steps)
    if recipe.lr_schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    return None


class Trainer:
    """A model, its optimiser and the place they have reached: all that a run is."""

    def __init__(
        self, model: Autoencoder, recipe: Recipe, train_images: np.ndarray, test_images: np.ndarray,
        device: torch.device, precision: Precision, workers: int = 0,
    ) -> None:  # fmt: skip
        """`train_images` and `test_images` are (N, 784) uint8; with workers they stay in the host's memory."""
        self.model, self.recipe, self.precision, self.workers = model.to(device), recipe, precision, workers
        self.device = device
        self.train_images = torch.from_numpy(train_images.copy()).to("cpu" if workers else device)
        self.test_images = torch.from_numpy(test_images.copy()).to(device)
        steps = recipe.epochs * -(-len(train_images) // recipe.batch_size)
        self.optimizer = make_optimizer(model, recipe)
        self.schedule = make_schedule(self.optimizer, recipe, steps)
        self.history: list[Row] = []
        self.batch_losses: list[float] = []

    def epochs(self, on_step: OnStep = lambda *_: None) -> Iterator[Row]:
        """Train to the end of the recipe; yield a row of history after each epoch."""
        for epoch in range(len(self.history), self.recipe.epochs):
            torch.manual_seed(seed_for(self.recipe.seed, epoch, 1))  # noise of an epoch depends on (seed, epoch) too
            self.model.on_epoch(epoch, self.recipe.epochs)
            start = time.perf_counter()
            averages = self.train_epoch(epoch, on_step)
            seconds = time.perf_counter() - start
            tested = evaluate(self.model, self.test_images, self.recipe.seed)
            row = {"epoch": epoch + 1, **averages, **tested, "seconds": round(seconds, 3)}
            row["images_per_second"] = round(len(self.train_images) / seconds, 1)
            self.history.append(row)
            yield row

    def train_epoch(self, epoch: int, on_step: OnStep) -> Row:
        """One pass over the images; the averages of the loss and its parts, an image counting once."""
        order = batch_order(len(self.train_images), self.recipe.batch_size, self.recipe.seed, epoch)
        self.model.train()
        logged: dict[str, list[Tensor]] = {}
        for step, images in enumerate(batches(self.train_images, order, self.workers, self.device), start=1):
            numbers = self._step(images)
            for name, value in numbers.items():
                logged.setdefault(name, []).append(value)
            on_step(epoch + 1, step, len(order), numbers["train_loss"])
        losses = {name: torch.stack(values).double().cpu() for name, values in logged.items()}
        shares = torch.tensor([len(index) for index in order], dtype=torch.double) / len(self.train_images)
        self.batch_losses += losses["train_loss"].tolist()
        return {name: torch.tensordot(shares, values, dims=1).tolist() for name, values in losses.items()}

    def _step(self, images: Tensor) -> dict[str, Tensor]:
        """One update of the weights from a batch of uint8 images; the loss and its parts, still on the device."""
        with self.precision.autocast():
            loss, parts = self.model.loss(to_pixels(images, self.model.input_range))
        self.optimizer.zero_grad()
        self.precision.update(loss, self.optimizer)
        if self.schedule:
            self.schedule.step()
        self.model.after_step()
        return {"train_loss": loss.detach(), **parts}
