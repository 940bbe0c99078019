"""Where the time of a training step goes, by recipe, from torch's profiler, as shares of the wall clock.

Products are matrix products and convolutions; elementwise is all other arithmetic, forward and backward; batches are
the fetching and scaling of images, profiled by themselves; Python is what no operator accounts for: our loop, torch's
dispatch and autograd. Wall clocks are measured without the profiler, which slows a step. One thread: times add up.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages; read when torch is imported

import torch
from torch.profiler import ProfilerActivity, profile

from autoencoders.data.sets import load_images
from autoencoders.evaluation.metrics import to_pixels
from autoencoders.recipes import Recipe
from autoencoders.reproduction.runs import machine_name
from autoencoders.runtime import cli
from autoencoders.runtime.device import flush_denormals, keep_freed_memory
from autoencoders.training.trainer import Trainer
from benchmarks.bench import in_turn, products, repeat
from benchmarks.common import SYSTEMS, make_trainer, sized

_PRODUCTS = ("mm", "linear", "conv", "embedding_bag")  # parts of the names of aten's operators
_OPTIMIZER = ("_fused_adam", "foreach")


def kind_of(operator: str) -> str:
    """The column of an operator."""
    kinds = {"optimizer": _OPTIMIZER, "products": _PRODUCTS}
    return next((kind for kind, names in kinds.items() if any(name in operator for name in names)), "elementwise")


def operators(work: Callable[[], object], steps: int) -> dict[str, float]:
    """Microseconds a step that the operators of `work` take by themselves, by kind."""
    found = dict.fromkeys(("products", "elementwise", "optimizer"), 0.0)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            found[kind_of(event.key)] += event.self_cpu_time_total / steps
    return found


def profile_steps(trainer: Trainer, steps: int) -> dict[str, float]:
    """Microseconds of a step by kind, the wall clock as `step`."""
    images = torch.as_tensor(trainer.train_images)
    chosen = torch.randperm(len(images))[: steps * trainer.recipe.batch_size].split(trainer.recipe.batch_size)

    def work() -> None:
        for index in chosen:
            trainer.step(images.index_select(0, index))

    def fetch() -> None:
        for index in chosen:
            to_pixels(images.index_select(0, index), trainer.model.input_range)

    trainer.model.train()
    work()
    fetch()
    wall = 1e6 / steps * statistics.median(in_turn({"step": work}, 3)["step"])
    found, batches = operators(work, steps), sum(operators(fetch, steps).values())
    found["elementwise"] = max(0.0, found["elementwise"] - batches)
    return {**found, "batches": batches, "Python": max(0.0, wall - sum(found.values()) - batches), "step": wall}


def products_alone(recipe: Recipe, steps: int) -> float:
    """Microseconds of the products, or convolutions, of a step alone, of the same shapes."""
    work = products(recipe, torch.float32)
    repeat(work, steps)
    start = time.perf_counter()
    repeat(work, steps)
    return (time.perf_counter() - start) * 1e6 / steps


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where MNIST is")
    parser.add_argument("--dataset", default="mnist", help="a small set is a smoke test")
    parser.add_argument(
        "--only", type=cli.items(cli.one_of(SYSTEMS)), default=SYSTEMS, metavar="RECIPE", help="recipes (default: all)"
    )
    parser.add_argument("--steps", type=cli.integer(1), default=60, help="steps to profile")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    torch.set_num_threads(1)
    flush_denormals()
    keep_freed_memory()
    images = load_images(args.dataset, args.data_root).train_images[:]
    rows = []
    for name in args.only:
        recipe = sized(name)
        count = min(args.steps, len(images) // recipe.batch_size)
        found = profile_steps(make_trainer(recipe, images), count)
        wall = found.pop("step")
        # A sparse pass skips products.
        share = "" if recipe.build().selects else f"{products_alone(recipe, count) / wall:.0%}"
        rows.append((name, f"{wall / 1000:.2f}", *(f"{part / wall:.0%}" for part in found.values()), share))
    head = ("recipe", "ms a step", "products", "elementwise", "optimizer", "batches", "Python", "products alone / step")
    print(f"{machine_name()}, one thread\n\n{cli.format_table(head, rows, markdown=True)}")


if __name__ == "__main__":
    cli.run(main)
