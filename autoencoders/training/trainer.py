"""The one training loop: batches of images on the device in, a row of numbers per epoch out.

The loop knows no model by name. It asks the model for its loss, steps the optimiser and keeps every loss on the
device until the epoch ends, so that a GPU is never waited for.
"""

import contextlib
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ae_models import Autoencoder
from autoencoders.data.stored import Stored
from autoencoders.data.stream import BlockOrder, Images, Streamed, to_device
from autoencoders.evaluation.metrics import evaluate, to_pixels
from autoencoders.recipes import Recipe
from autoencoders.runtime import processes
from autoencoders.runtime.device import Precision, seed_for
from autoencoders.runtime.errors import Fault

Row = dict[str, Any]
OnStep = Callable[[int, int, int, Tensor], None]  # epoch, step, steps in the epoch, the batch's loss on the device


def batch_order(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The image numbers of each batch of an epoch: a permutation that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(seed_for(seed, epoch))
    order: tuple[Tensor, ...] = torch.randperm(count, generator=generator).split(batch_size)
    return order


def order_of(images: Images, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...] | BlockOrder:
    """The image numbers of each batch of an epoch; of images in a file in an order that reads it in blocks."""
    if isinstance(images, Streamed):
        return images.order(batch_size, seed, epoch)
    return batch_order(len(images), batch_size, seed, epoch)


class _Rows(torch.utils.data.Dataset[Tensor]):
    """Images as a data set that is asked for whole batches: an index tensor in, the batch out."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __getitem__(self, index: Any) -> Tensor:
        return self.images[index]


def batches(images: Images, order: Iterable[Tensor], workers: int, device: torch.device) -> Iterator[Tensor]:
    """The uint8 batches named by `order`, on the device; `workers` processes fetch the same ones in the same order."""
    if isinstance(images, Streamed):
        yield from images.batches(order)
    elif workers:
        # A generator of its own: the loader must not draw from the one that the models' noise comes from.
        loader = torch.utils.data.DataLoader(
            _Rows(images), sampler=list(order), batch_size=None, num_workers=workers, generator=torch.Generator()
        )
        yield from (batch.to(device, non_blocking=True) for batch in loader)
    else:
        order = tuple(order)
        # One transfer for all.
        on_device = torch.cat(order).to(images.device).split([len(index) for index in order]) if order else ()
        yield from (images[index] for index in on_device)


class _Adam(torch.optim.Adam):
    """PyTorch's, without what hides it from torch.compile: that imports the compiler, 150 MB and two seconds."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)


def make_optimizer(model: Autoencoder, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019), the whole update in one kernel."""
    return _Adam(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay,
        decoupled_weight_decay=recipe.optimizer == "adamw", fused=True,
    )  # fmt: skip


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The learning rate over `steps` steps: one cycle up and down (Smith 2018), half a cosine, or None for constant."""
    if recipe.lr_schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=steps)
    if recipe.lr_schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    return None


class _Loss(nn.Module):
    """The model's loss as a module, from uint8 images, in the run's precision: what a CUDA graph captures."""

    def __init__(self, model: Autoencoder, precision: Precision) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with self.precision.autocast():
            loss, parts = self.model.loss(to_pixels(images, self.model.input_range))
        return loss, parts

    def captured(self, images: Tensor) -> "_Loss":
        """This loss, forward and backward, as two CUDA graphs for batches like `images`.

        These models are tiny for a GPU: launching a step's kernels one by one costs more than running them.
        """
        with torch.random.fork_rng([images.device]):  # the warm-up must not draw from the run's noise
            try:
                return cast(_Loss, torch.cuda.make_graphed_callables(self, (images,)))
            except RuntimeError as error:
                raise Fault(f"a step cannot be captured as a CUDA graph ({error}); use --cuda-graphs off") from error


class Diverged(Fault):
    """Training has produced a number that is not finite."""


class Trainer:
    """A model, its optimiser and the place they have reached: all that a run is, and all that a checkpoint keeps."""

    def __init__(
        self, model: Autoencoder, recipe: Recipe, train_images: np.ndarray | Stored, test_images: np.ndarray | Stored,
        device: torch.device, precision: Precision, workers: int = 0, graphs: bool = False,
    ) -> None:  # fmt: skip
        """`train_images` and `test_images` are (N, 784) uint8; with workers they stay in the host's memory.

        With `graphs`, for CUDA, all steps of an epoch but a smaller last one replay the first as a CUDA graph.
        """
        self.graphs = graphs
        self.model, self.recipe, self.precision, self.workers = model.to(device), recipe, precision, workers
        self.device = device
        self.train_images = to_device(train_images, torch.device("cpu") if workers else device)
        self.test_images = to_device(test_images, device)
        whole, rest = divmod(len(train_images), recipe.batch_size)
        self.batch_sizes = [recipe.batch_size] * whole + [rest] * (rest > 0)
        self.optimizer = make_optimizer(model, recipe)
        self.schedule = make_schedule(self.optimizer, recipe, recipe.epochs * len(self.batch_sizes))
        self.history: list[Row] = []
        self.batch_losses: list[float] = []
        self.logged: dict[str, Tensor] = {}  # losses and parts of the current epoch, a row a step, on the device
        self.steps_done = 0  # in the current epoch
        self.seconds = 0.0  # spent on the current epoch before it was interrupted

    @cached_property
    def loss(self) -> nn.Module:
        """The model's loss; where several processes share a batch, with the gradients of all of it."""
        loss = _Loss(self.model, self.precision)
        averaged = processes.size() > 1 and self.recipe.micro_batches == 1
        return processes.spread(loss, self.train_images[:1].to(self.device)) if averaged else loss

    def epochs(self, on_step: OnStep = lambda *_: None) -> Iterator[Row]:
        """Train to the end of the recipe; yield a row of history after each epoch."""
        while len(self.history) < self.recipe.epochs:
            epoch = len(self.history)
            averages = self.train_epoch(epoch, on_step)
            tested = evaluate(self.model, self.test_images, self.recipe.seed)
            row = {"epoch": epoch + 1, **averages, **tested, "seconds": round(self.seconds, 3)}
            row["images_per_second"] = round(len(self.train_images) / self.seconds, 1)
            self.history.append(row)
            self.logged, self.steps_done, self.seconds = {}, 0, 0.0
            yield row

    def train_epoch(self, epoch: int, on_step: OnStep) -> Row:
        """What is left of an epoch; the averages over all of it of the loss and its parts, an image counting once."""
        order = order_of(self.train_images, self.recipe.batch_size, self.recipe.seed, epoch)
        if not self.steps_done:
            torch.manual_seed(seed_for(self.recipe.seed, epoch, 1))  # noise depends on (seed, epoch) too
        self.model.on_epoch(epoch, self.recipe.epochs)
        self.model.train()
        eager = captured = self.loss
        done, start, before = self.steps_done, time.perf_counter(), self.seconds
        shares = [processes.share(count, self.recipe.micro_batches) for count in self.batch_sizes[done:]]
        mine = (index[share.first : share.last] for index, share in zip(order[done:], shares))
        for images, share in zip(batches(self.train_images, mine, self.workers, self.device), shares):
            whole = share.batch == self.recipe.batch_size
            if self.graphs and whole and captured is eager:  # anew every epoch: `on_epoch` may change the model
                captured = _Loss(self.model, self.precision).captured(images)
            numbers = self._step(images, share, captured if whole else eager)
            self._log(numbers, len(self.batch_sizes))
            self.seconds = before + time.perf_counter() - start
            on_step(epoch + 1, self.steps_done, len(self.batch_sizes), numbers["train_loss"])
        self.check_finite()  # waits for the device: what it still has to do belongs to the epoch
        self.seconds = before + time.perf_counter() - start
        losses = {name: values.cpu().double() for name, values in self.logged.items()}
        self.batch_losses += losses["train_loss"].tolist()
        weights = torch.tensor(self.batch_sizes, dtype=torch.double) / len(self.train_images)
        return {name: torch.tensordot(weights, values, dims=1).tolist() for name, values in losses.items()}

    def _step(self, images: Tensor, share: processes.Share, loss_of: nn.Module) -> dict[str, Tensor]:
        """One update of the weights from a share of a batch, uint8; the batch's loss and parts, still on the device."""
        gradients = self._gradients_of_parts if self.recipe.micro_batches > 1 else self._gradients
        numbers = gradients(images, share, loss_of)
        self.precision.update(self.optimizer, self.recipe.grad_clip)
        if self.schedule:
            self.schedule.step()
        self.model.after_step()
        return numbers

    def _gradients(self, images: Tensor, share: processes.Share, loss_of: nn.Module) -> dict[str, Tensor]:
        """Leave the gradients of the whole batch with the weights; its loss and parts."""
        shared = processes.size() > 1
        self.model.share = share if shared else None
        loss, parts = loss_of(images)
        numbers = {"train_loss": loss.detach(), **parts}
        if shared:
            sums = processes.summing(*self._weighted(numbers, share))  # while the gradients are computed
            loss = loss * (share.weight * processes.size())  # gradients are averaged as if all shares were equal
        self.optimizer.zero_grad()
        self.precision.backward(loss)
        return self._booked(numbers, sums()) if shared else numbers

    def _gradients_of_parts(self, images: Tensor, share: processes.Share, loss_of: nn.Module) -> dict[str, Tensor]:
        """The same, part after part; the sums are those of a table with a row for each part.

        A process fills its own rows and leaves zeros in the others, so that adding up the tables rounds nothing, and
        the rows are added up in one order: the bits are those of any other number of processes.
        """
        weights, parts = list(self.model.parameters()), self.recipe.micro_batches
        mine, table = processes.parts_here(parts), torch.empty(0)
        for number in mine:
            part = self.model.share = processes.part(share.batch, range(number, number + 1), parts)
            start = part.first - share.first if part.images else 0
            with self._noise_kept(number < mine[-1]):
                loss, more = loss_of(images[start : start + max(1, part.images)])
            self.optimizer.zero_grad()
            self.precision.backward(loss * part.weight)
            numbers = {"train_loss": loss.detach(), **more}
            values = self._weighted(numbers, part)
            gradients = [cast(Tensor, weight.grad) for weight in weights]
            row = torch.cat([value.flatten() for value in (*gradients, *values)])
            table = table if len(table) else row.new_zeros(parts, len(row))
            table[number] = row
        sums = processes.summing(table)()[0].sum(0).split([t.numel() for t in (*weights, *values)])
        for weight, gradient in zip(weights, sums):
            weight.grad = gradient.view_as(weight)
        return self._booked(numbers, sums[len(weights) :])

    def _noise_kept(self, kept: bool) -> contextlib.AbstractContextManager[None]:
        """Inside of it noise is drawn that will be drawn again: each part takes its own of that of the whole batch."""
        devices = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices, enabled=kept)

    def _weighted(self, numbers: dict[str, Tensor], share: processes.Share) -> list[Tensor]:
        """What the numbers, and the model's counts, of a share of a batch add to those of the batch."""
        counts = [self.model.get_buffer(name) for name in self.model.batch_counts]
        return [value * share.weight for value in numbers.values()] + [count * (share.images > 0) for count in counts]

    def _booked(self, numbers: dict[str, Tensor], sums: Sequence[Tensor]) -> dict[str, Tensor]:
        """The batch's numbers by their names, of the sums of what `_weighted` gave; the model is told its counts."""
        for name, value in zip(self.model.batch_counts, sums[len(numbers) :]):
            count = self.model.get_buffer(name)
            count.copy_(value.view_as(count))
        return {name: value.view_as(old) for (name, old), value in zip(numbers.items(), sums)}

    def _log(self, numbers: dict[str, Tensor], steps: int) -> None:
        """Keep a step's numbers. A place for all steps is taken at the first: something small that is kept at every
        step would come to lie between the large blocks which a step takes and frees, and the heap would grow."""
        for name, value in numbers.items():
            if name not in self.logged:
                self.logged[name] = value.new_zeros((steps, *value.shape))
            self.logged[name][self.steps_done] = value
        self.steps_done += 1

    def check_finite(self) -> None:
        """Raise Fault when a loss of this epoch, or a weight, is not finite: what follows would be noise."""
        losses = self.logged["train_loss"][: self.steps_done]
        bad = (~losses.isfinite()).nonzero()
        if len(bad) or not all(weight.isfinite().all() for weight in self.model.parameters()):
            step = int(bad[0]) + 1 if len(bad) else self.steps_done
            what = f"the loss is {losses[step - 1].item()}" if len(bad) else "a gradient is not finite"
            raise Diverged(
                f"training diverged in epoch {len(self.history) + 1} at step {step}: {what} (learning rate "
                f"{self.optimizer.param_groups[0]['lr']:g}); use a smaller --lr, or --grad-clip"
            )

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on from here as if nothing had happened; tensors and plain containers only."""
        return {
            "model": {name: tensor.detach() for name, tensor in self.model.state_dict().items()},
            "buffers": dict(self.model.named_buffers()),  # those that the weights file leaves out are here as well
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else {},
            "scaler": self.precision.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "logged": self.logged,
            "steps_done": self.steps_done,
            "history": self.history,
            "batch_losses": torch.tensor(self.batch_losses, dtype=torch.double),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place that `state` was taken at; ValueError, KeyError or RuntimeError when it does not fit."""
        self.model.load_state_dict(state["model"])
        for name, buffer in self.model.named_buffers():
            buffer.copy_(state["buffers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        for weight, moments in self.optimizer.state.items():
            if any(m.shape not in (weight.shape, ()) for m in moments.values()):
                raise ValueError("the optimiser's state is not of these weights' shapes")
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.logged = {name: values.to(self.device) for name, values in state["logged"].items()}
        self.steps_done = state["steps_done"]
        if [row["epoch"] for row in state["history"]] != list(range(1, len(state["history"]) + 1)):
            raise ValueError("its history is not one unbroken table")
        self.history, self.seconds = state["history"], state["seconds"]
        self.batch_losses = state["batch_losses"].tolist()
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
