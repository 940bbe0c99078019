"""Where the time of a training step goes, by recipe, from torch's profiler, as shares of the wall clock.

Products are matrix products and convolutions; elementwise is all other arithmetic, forward and backward; batches are
the fetching and scaling of images; Python is what no operator accounts for: our loop, torch's dispatch and autograd.
Wall clocks are measured without the profiler, which slows a step. One thread, so that times add up.
"""

import statistics
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from autoencoders.data.sets import load_images
from autoencoders.recipes import Recipe
from autoencoders.reproduction.runs import machine_name
from autoencoders.runtime import cli
from autoencoders.runtime.device import keep_freed_memory
from autoencoders.training.trainer import Trainer
from benchmarks.bench import products, repeat
from benchmarks.common import SYSTEMS, make_trainer, sized

_PRODUCTS = ("mm", "linear", "conv", "embedding_bag")  # parts of the names of aten's operators
_OPTIMIZER = ("_fused_adam", "foreach")
_BATCHES = ("index", "_to_copy", "copy_")


def kind_of(operator: str) -> str:
    """The column of an operator."""
    kinds = {"optimizer": _OPTIMIZER, "products": _PRODUCTS, "batches": _BATCHES}
    return next((kind for kind, names in kinds.items() if any(name in operator for name in names)), "elementwise")


def profile_steps(trainer: Trainer, images: torch.Tensor, steps: int) -> dict[str, float]:
    """Microseconds of a step by kind, the wall clock as `step`."""
    batch_size = trainer.recipe.batch_size

    def work() -> None:
        for start in range(0, steps * batch_size, batch_size):
            trainer.step(images[torch.arange(start, start + batch_size)])

    trainer.model.train()
    work()
    clocks = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        clocks.append((time.perf_counter() - start) * 1e6 / steps)
    with profile(activities=[ProfilerActivity.CPU]) as profiled, record_function("steps"):
        work()
    found = dict.fromkeys(("products", "elementwise", "optimizer", "batches"), 0.0)
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            found[kind_of(event.key)] += event.self_cpu_time_total / steps
    wall = statistics.median(clocks)
    return {**found, "Python": max(0.0, wall - sum(found.values())), "step": wall}


def matrix_peak(recipe: Recipe, steps: int) -> float | None:
    """Microseconds of the products of a step alone, of the same shapes; None for a model with convolutions."""
    work = products(recipe, torch.float32)
    if work is None:
        return None
    repeat(work, steps)
    start = time.perf_counter()
    repeat(work, steps)
    return (time.perf_counter() - start) * 1e6 / steps


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where MNIST is")
    parser.add_argument("--dataset", default="mnist", help="a small set is a smoke test")
    parser.add_argument("--only", type=cli.items(cli.one_of(SYSTEMS)), default=SYSTEMS, help="recipes")
    parser.add_argument("--steps", type=cli.integer(1), default=60, help="steps to profile")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    images = load_images(args.dataset, args.data_root).train_images[:]
    rows = []
    for name in args.only:
        recipe = sized(name)
        count = min(args.steps, len(images) // recipe.batch_size)
        found = profile_steps(make_trainer(recipe, images), torch.tensor(images), count)
        peak, wall = matrix_peak(recipe, count), found.pop("step")
        share = f"{peak / wall:.0%}" if peak and recipe.build().members == 1 else ""
        rows.append((name, f"{wall / 1000:.2f}", *(f"{part / wall:.0%}" for part in found.values()), share))
    head = ("recipe", "ms a step", "products", "elementwise", "optimizer", "batches", "Python", "products alone / step")
    print(f"{machine_name()}, one thread\n\n{cli.format_table(head, rows, markdown=True)}")


if __name__ == "__main__":
    cli.run(main)
