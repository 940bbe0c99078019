"""The training loop: batches of images in, one row of numbers per epoch out.

The loop knows no model by name. It asks the model for its loss, steps the optimizer and leaves every value on the
device until the epoch ends, so that no step waits for a GPU.
"""

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adam import adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from ae_models import Autoencoder
from autoencoders.data.batches import epoch_batches, to_device
from autoencoders.data.images import ImageSet, MappedImages
from autoencoders.evaluation.metrics import evaluation_means, evaluation_sums, to_pixels
from autoencoders.recipes import Recipe
from autoencoders.runtime import processes
from autoencoders.runtime.device import Precision, keep_freed_memory, seed_for
from autoencoders.runtime.errors import RunError

Row = dict[str, Any]
OnStep = Callable[[int, int, int, Any], None]  # epoch from 1, step from 1, steps in the epoch, the batch's loss


class Diverged(RunError):
    """A training loss, a test loss or a weight is not finite."""


class Trainer:
    """A recipe's model, its weights drawn by the recipe's seed, with its optimizer, schedule and progress."""

    def __init__(self, recipe: Recipe, images: ImageSet, device: str | torch.device = "cpu", amp: str = "off") -> None:
        """`amp` is a mode of `Precision`."""
        keep_freed_memory()
        self.recipe, self.device = recipe, torch.device(device)
        self.precision = Precision(amp, self.device)
        torch.manual_seed(recipe.seed)
        self.model = recipe.build()
        self.train_images = to_device(images.train_images, self.device)
        self.test_images = torch.as_tensor(to_device(images.test_images, self.device))
        self.model.on_start(lambda: pixel_moments(self.train_images))
        self.model.to(self.device)
        whole, rest = divmod(len(self.train_images), recipe.batch_size)
        self.batch_sizes = [recipe.batch_size] * whole + [rest] * (rest > 0)
        self.optimizer = make_optimizer(self.model, recipe)
        self.schedule = make_schedule(self.optimizer, recipe, recipe.epochs * len(self.batch_sizes))
        self.loss = processes.data_parallel(_Loss(self.model, self.precision), self.model, self.test_images[:1])
        self.history: list[Row] = []
        self.batch_losses: list[float] = []  # of all finished epochs
        self.log = StepLog(len(self.batch_sizes))

    def epochs(self, on_step: OnStep = lambda *_: None) -> Iterator[Row]:
        """Train to the end of the recipe; yield a row of history after each epoch."""
        while len(self.history) < self.recipe.epochs:
            means = self.train_epoch(len(self.history), on_step)
            speed = round(len(self.train_images) / self.log.seconds, 1)
            self.history.append({"epoch": len(self.history) + 1, **means, **self.test(),
                                 "seconds": round(self.log.seconds, 3), "images_per_second": speed})  # fmt: skip
            self.batch_losses += self.log.values("train_loss").tolist()
            self.log = StepLog(len(self.batch_sizes))
            yield self.history[-1]

    def train_epoch(self, epoch: int, on_step: OnStep) -> Row:
        """The remaining steps of epoch `epoch` (from 0); the means of the loss and its parts over all its images."""
        if not self.log.steps:
            torch.manual_seed(seed_for(self.recipe.seed, epoch, 1))  # noise depends on (seed, epoch) alone, too
        self.model.on_epoch(epoch, self.recipe.epochs)
        self.model.train()
        started = time.perf_counter() - self.log.seconds
        for images in epoch_batches(self.train_images, self.recipe.batch_size, self.recipe.seed, epoch, self.device,
                                    first=self.log.steps):  # fmt: skip
            values = self.step(images)
            self.log.append(values, time.perf_counter() - started)
            on_step(epoch + 1, self.log.steps, len(self.batch_sizes), values["train_loss"])
        self.check_finite()  # waits for the device: part of the epoch's time
        self.log.seconds = time.perf_counter() - started
        return self.log.means(self.batch_sizes)

    def step(self, images: Tensor) -> dict[str, Tensor]:
        """One update of the weights from a batch (n, 784) uint8; the batch's loss and parts, still on the device."""
        loss, values = self.loss(images)
        self.optimizer.zero_grad()
        self.precision.backward(loss)
        self.precision.update(self.optimizer, self.recipe.grad_clip)
        if self.schedule:
            self.schedule.step()
        for member in self.model.after_step(values):
            for moments in self.optimizer.state.values():  # new weights have no momentum
                moments["exp_avg"][member].zero_()
                moments["exp_avg_sq"][member].zero_()
        return values

    def test(self) -> Row:
        """Loss, parts and `epoch_metrics` on the test images, which processes share; Diverged if one is not finite."""
        sums = evaluation_sums(self.model, self.test_images, self.recipe.seed, processes.rank(), processes.size())
        row = evaluation_means(processes.all_reduce(sums), len(self.test_images), self.model.epoch_metrics)
        for name, value in row.items():
            if not torch.tensor(value).isfinite().all():
                raise Diverged(f"{name} is {value} after epoch {len(self.history) + 1}: the model fails on the test "
                               "images; use a smaller --lr, or test images more like the training images")  # fmt: skip
        return row

    def check_finite(self) -> None:
        """Raise Diverged when a loss of this epoch, or a weight, is not finite."""
        losses = self.log.values("train_loss")
        bad = (~losses.isfinite()).nonzero()
        if len(bad) or not all(weight.isfinite().all() for weight in self.model.parameters()):
            step = int(bad[0]) + 1 if len(bad) else self.log.steps
            reason = f"the loss is {losses[step - 1].item()}" if len(bad) else "a weight is not finite"
            rate = self.optimizer.param_groups[0]["lr"]
            raise Diverged(f"training diverged in epoch {len(self.history) + 1} at step {step}: {reason} "
                           f"(learning rate {rate:g}); use a smaller --lr, or --grad-clip")  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to end in the same bits; tensors and plain containers only."""
        return {
            "model": {name: tensor.detach() for name, tensor in self.model.state_dict().items()},
            "buffers": dict(self.model.named_buffers()),  # also those that are not in the state dict
            "optimizer": self.optimizer.state_dict(), "scaler": self.precision.scaler.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else {},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "logged": self.log.table, "steps_done": self.log.steps, "seconds": self.log.seconds,
            "history": self.history, "batch_losses": torch.tensor(self.batch_losses, dtype=torch.double),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; an exception when it does not fit this trainer."""
        self.model.load_state_dict(state["model"])
        for name, buffer in self.model.named_buffers():
            buffer.copy_(state["buffers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])
        self.precision.scaler.load_state_dict(state["scaler"])
        logged = {name: values.to(self.device) for name, values in state["logged"].items()}
        self.log = StepLog(len(self.batch_sizes), logged, state["steps_done"], state["seconds"])
        self.history, self.batch_losses = state["history"], state["batch_losses"].tolist()
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)


@dataclass
class StepLog:
    """The loss and its parts at every step of an epoch, on the device.

    The tables are allocated at the first step: small tensors kept between large temporaries fragment the heap.
    """

    size: int  # steps of the epoch
    table: dict[str, Tensor] = field(default_factory=dict)  # by name: (size,), for an ensemble (size, S)
    steps: int = 0
    seconds: float = 0.0

    def append(self, values: dict[str, Tensor], seconds: float) -> None:
        """Record the scalars of one more step, an ensemble's per member, and the seconds since the epoch began."""
        for name, value in values.items():
            if value.ndim < 2:
                if name not in self.table:
                    self.table[name] = value.new_zeros((self.size, *value.shape))
                self.table[name][self.steps] = value
        self.steps, self.seconds = self.steps + 1, seconds

    def values(self, name: str) -> Tensor:
        """The values of the steps done."""
        return self.table[name][: self.steps]

    def means(self, batch_sizes: list[int]) -> Row:
        """The mean of each value over all images: batches weigh by their size."""
        weights = torch.tensor(batch_sizes, dtype=torch.double) / sum(batch_sizes)
        table = {name: values.cpu().double() for name, values in self.table.items()}
        return {name: torch.tensordot(weights, values, dims=1).tolist() for name, values in table.items()}


class _Loss(nn.Module):
    """A batch of uint8 images -> (the model's loss in the run's precision, `train_loss` and its parts, detached)."""

    def __init__(self, model: Autoencoder, precision: Precision) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with self.precision.autocast():
            loss, parts = self.model.loss(to_pixels(images, self.model.input_range))
        return loss, {"train_loss": loss.detach(), **parts}


_adam, _SETTINGS = inspect.unwrap(adam), ("lr", "weight_decay", "eps", "amsgrad", "maximize", "decoupled_weight_decay")


class _Adam(torch.optim.Adam):
    """Adam without the wrappers of torch's methods, so without closures and hooks. At every step they look for a GPU
    and open a profiler's record, a tenth of a step of `simple`; they import the compiler, 150 MB and two seconds."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update by the fused kernel, of all weights that have a gradient."""
        for group in self.param_groups:
            lists: list[list[Tensor]] = [[] for _ in range(6)]
            self._init_group(group, *lists)  # type: ignore[no-untyped-call]
            (beta1, beta2), settings = group["betas"], {name: group[name] for name in _SETTINGS}
            _adam(*lists, fused=True, beta1=beta1, beta2=beta2, **settings,
                  grad_scale=getattr(self, "grad_scale", None), found_inf=getattr(self, "found_inf", None))  # fmt: skip

    step.hooked = True  # type: ignore[attr-defined]  # or torch wraps this one, too

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)


def pixel_moments(images: Tensor | MappedImages) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (784,) of images, in [0, 1]; of vectors in their own units."""
    total, squares = torch.zeros(2, images.shape[1], dtype=torch.double)
    first = torch.as_tensor(images[slice(0, 1)])
    white, first = 1 if first.is_floating_point() else 255, first.cpu().double()
    for start in range(0, len(images), 4096):
        block = torch.as_tensor(images[slice(start, start + 4096)]).cpu().double() - first  # a constant becomes 0
        total, squares = total + block.sum(dim=0), squares + block.square().sum(dim=0)
    mean = total / len(images)
    deviation = (squares / len(images) - mean.square()).clamp(min=0).sqrt()
    return ((mean + first[0]) / white).float(), (deviation / white).float()


def make_optimizer(model: Autoencoder, recipe: Recipe) -> Optimizer:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019), the whole update in one kernel."""
    return _Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True,
                 decoupled_weight_decay=recipe.optimizer == "adamw")  # fmt: skip


def make_schedule(optimizer: Optimizer, recipe: Recipe, steps: int) -> LRScheduler | None:
    """The learning rate over `steps` steps: one cycle up and down (Smith 2018), half a cosine, or None for constant."""
    if recipe.lr_schedule == "one-cycle" and steps > 1:  # a cycle of one step would be its end, a rate of almost 0
        return OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=steps)
    if recipe.lr_schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return None
