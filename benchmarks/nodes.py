"""The cost of a step on many machines: its parts measured on this one, and a model composed of them.

One thread computes the gradients of some images (a fixed cost and a cost per image, by least squares) and updates the
weights; two processes sum arrays of several sizes through gloo. Then, for one process on each of n machines,

    step = fixed + images / n * each + update + exchange,
    exchange = 2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency

as in a ring, without any overlap. Bandwidth and latency are assumed (NETWORKS); for two processes on this machine they
are measured, to be compared with `parallel.py`. Beside the exchange stand those of gradients in bf16, and of PowerSGD's
factors of rank 4 (Vogels et al. 2019), whose own computing is left out.
"""

import itertools
import json
import statistics
import tempfile
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from autoencoders.recipes import RECIPES, Recipe
from autoencoders.reproduction.runs import machine_name
from autoencoders.runtime import cli
from autoencoders.runtime.device import flush_denormals, keep_freed_memory
from autoencoders.runtime.files import write_json
from benchmarks.common import make_trainer, sized

NETWORKS, LATENCY = (1.25e9, 12.5e9), 30e-6  # bytes per second (10 and 100 Gbit/s), seconds
IMAGES = 10**9  # of an epoch
WIDTHS = (250, 1000, 2500, 5000)  # of symmetric
_ROUNDS, _RANK = 9, 4
_COUNTS = (4, 16, 64, 128, 256)  # images of a process in a step
_SIZES = (2**12, 2**16, 2**20, 2**22, 2**24, 2**26)  # bytes


def median_seconds(action: Callable[[], object]) -> float:
    """Median over several calls, after one to warm up."""
    return statistics.median(timeit.repeat(action, number=1, repeat=_ROUNDS + 1)[1:])


def fit_line(x: tuple[int, ...], seconds: list[float]) -> tuple[float, float]:
    """Slope and start (at least 0) of a line through times, by relative least squares."""
    slope, start = np.polyfit(x, seconds, 1, w=1 / np.array(seconds))
    return float(slope), max(0.0, float(start))


def parts_of_a_step(recipe: Recipe) -> dict[str, float]:
    """Seconds of the gradients, fixed and per image, and of the update; bytes of the gradients."""
    images = np.random.default_rng(0).integers(0, 256, (max(_COUNTS), recipe.pixels), dtype=np.uint8)
    trainer = make_trainer(recipe, images)
    batch = torch.from_numpy(images)
    trainer.model.train()

    def gradients(count: int) -> None:
        trainer.optimizer.zero_grad()
        trainer.precision.backward(trainer.loss(batch[:count])[0])

    each, fixed = fit_line(_COUNTS, [median_seconds(partial(gradients, count)) for count in _COUNTS])
    update = median_seconds(lambda: trainer.precision.update(trainer.optimizer))
    weights = list(trainer.model.parameters())
    # A matrix m x n becomes factors m x r and n x r; other weights, and small ones, are sent as they are.
    factors = [min(w.numel(), _RANK * (w.shape[0] + w[0].numel())) if w.dim() > 1 else w.numel() for w in weights]
    return {"fixed": fixed, "each": each, "update": update,
            "bytes": 4 * sum(w.numel() for w in weights), "powersgd_bytes": 4 * sum(factors)}  # fmt: skip


def _exchange(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    seconds = [median_seconds(partial(dist.all_reduce, torch.zeros(size // 4))) for size in _SIZES]
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def measure_exchange() -> tuple[float, float]:
    """Bandwidth (bytes per second) and latency (seconds) of two processes of this machine that sum an array."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_exchange, (folder,), nprocs=2)
        slope, start = fit_line(_SIZES, json.loads(Path(folder, "seconds.json").read_text()))
    return 1 / slope, start / 2


def predict(name: str, cost: dict[str, float], batch: int, machines: int, bandwidth: float, latency: float
            ) -> dict[str, Any]:  # fmt: skip
    """A row of the model: milliseconds of a step, and hours of an epoch."""
    one = cost["fixed"] + cost["each"] * batch + cost["update"]
    gradients = cost["fixed"] + cost["each"] * batch / machines
    sent, bf16, powersgd = (
        2 * (machines - 1) * (size / machines / bandwidth + latency)
        for size in (cost["bytes"], cost["bytes"] / 2, cost["powersgd_bytes"])
    )
    step = gradients + cost["update"] + sent
    return {
        "recipe": name, "MB/s": bandwidth / 1e6, "machines": machines, "batch": batch,
        "gradients, ms": 1000 * gradients, "update": 1000 * cost["update"],
        "exchange": 1000 * sent, "in bf16": 1000 * bf16, "PowerSGD": 1000 * powersgd,
        "step": 1000 * step, "times one": one / step, "epoch, hours": IMAGES / batch * step / 3600,
    }  # fmt: skip


def format_rows(rows: list[dict[str, Any]]) -> str:
    """Rows with the same names as a Markdown table."""
    cells = [[value if isinstance(value, str) else f"{value:,.4g}" for value in row.values()] for row in rows]
    return cli.format_table(list(rows[0]), cells, markdown=True)


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--only", type=cli.items(cli.one_of(RECIPES)), action=cli.ListAction, metavar="NAME",
                        default=("simple", "conv", "symmetric", "tuned", "sparse"), help="recipes")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="where results go")
    return parser


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(1)
    flush_denormals()
    keep_freed_memory()
    recipes = {name: sized(name) for name in args.only}
    recipes |= {f"symmetric --hidden-sizes {n}": sized("symmetric", hidden_sizes=(n,)) for n in WIDTHS}
    costs = {name: parts_of_a_step(recipe) for name, recipe in recipes.items()}
    print(format_rows([
        {"recipe": name, "gradients, MB": cost["bytes"] / 1e6, "with weights and moments, MB": 4 * cost["bytes"] / 1e6,
         **{f"{part}, ms": 1000 * cost[part] for part in ("fixed", "each", "update")}}
        for name, cost in costs.items()
    ]))  # fmt: skip
    local = measure_exchange()
    print(f"\nTwo processes of this machine: {local[0] / 1e6:,.0f} MB/s, {1e6 * local[1]:.0f} microseconds\n")
    rows = []
    for name in args.only:
        size = recipes[name].batch_size
        rows.append(predict(name, costs[name], size, 2, *local))
        for speed, n, published in itertools.product(NETWORKS, (8, 64), (True, False)):
            batch = size if published else n * size
            rows.append(predict(name, costs[name], batch, n, speed, LATENCY))
    print(format_rows(rows))
    write_json(args.output, {
        "machine": machine_name(), "latency": LATENCY, "images": IMAGES, "costs": costs,
        "here": dict(zip(("bandwidth", "latency"), local)), "model": rows,
    })  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
