"""What a step costs on many machines: its parts measured on this one, and a model put together from them.

One thread computes the gradients of some images (a fixed cost and one for each image, by least squares) and updates the
weights; two processes add up arrays of some sizes through gloo. Then, for a process on each of n machines,

    step = fixed + images / n * each + update + exchange,
    exchange = 2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency

as in a ring, none of it hidden behind the computing. Bandwidth and latency are those of the network that the flags
name; for two processes on this machine those that were measured, to be held against `parallel.py`. Beside the exchange
stands what it would be of gradients in bf16, and of PowerSGD's factors of rank 4 (Vogels et al. 2019), whose own
computing is left out. Writes nodes.json beside this file, or where --output says.
"""

import argparse
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from autoencoders.recipes import RECIPES, Recipe  # noqa: E402
from autoencoders.runtime import cli  # noqa: E402
from autoencoders.runtime.device import Precision, keep_freed_memory, machine_name  # noqa: E402
from autoencoders.runtime.files import write_json  # noqa: E402
from autoencoders.training.trainer import Trainer  # noqa: E402

CPU = torch.device("cpu")
_ROUNDS = 9
_COUNTS = (4, 16, 64, 128, 256)  # images of a process in a step
_SIZES = (2**12, 2**16, 2**20, 2**22, 2**24, 2**26)  # bytes
_PIXELS = 784
_RANK = 4


def median_seconds(act: Callable[[], object]) -> float:
    """Of several calls, after one that counts for nothing."""
    act()
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def parts_of_a_step(recipe: Recipe) -> dict[str, float]:
    """Seconds of the gradients, fixed and for each image, and of the update; bytes of the gradients."""
    images = np.random.default_rng(0).integers(0, 256, (max(_COUNTS), _PIXELS), dtype=np.uint8)
    torch.manual_seed(recipe.seed)
    trainer = Trainer(recipe.build(), recipe, images, images[:1], CPU, Precision("off", CPU))
    trainer.model.train()

    def gradients(count: int) -> None:
        trainer.optimizer.zero_grad()
        trainer.precision.backward(trainer.loss(trainer.train_images[:count])[0])

    seconds = [median_seconds(partial(gradients, count)) for count in _COUNTS]
    each, fixed = np.polyfit(_COUNTS, seconds, 1, w=1 / np.array(seconds))
    weights = list(trainer.model.parameters())
    # A matrix m x n becomes factors m x r and n x r; what is no matrix, or not smaller so, is sent as it is.
    factors = [min(w.numel(), _RANK * (w.shape[0] + w[0].numel())) if w.dim() > 1 else w.numel() for w in weights]
    update = median_seconds(lambda: trainer.precision.update(trainer.optimizer))
    measured = {f"gradients_of_{count}": value for count, value in zip(_COUNTS, seconds)}
    sizes = {"bytes": 4 * sum(w.numel() for w in weights), "powersgd_bytes": 4 * sum(factors)}
    return {"fixed": max(0.0, float(fixed)), "each": float(each), "update": update, **sizes, **measured}


def _exchange(rank: int, place: str, answer: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    seconds = [median_seconds(partial(dist.all_reduce, torch.zeros(size // 4))) for size in _SIZES]
    if rank == 0:
        answer.send(seconds)
    dist.destroy_process_group()


def exchange() -> dict[str, Any]:
    """Latency in seconds and bandwidth in bytes a second of two processes of this machine adding up an array."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs = context.Pipe()
        processes = [context.Process(target=_exchange, args=(n, f"{folder}/meet", theirs)) for n in range(2)]
        for process in processes:
            process.start()
        seconds = mine.recv()
        for process in processes:
            process.join()
    slope, start = np.polyfit(_SIZES, seconds, 1, w=1 / np.array(seconds))
    return {"seconds": dict(zip(map(str, _SIZES), seconds)), "latency": max(0.0, start / 2), "bandwidth": 1 / slope}


def exchange_seconds(size: float, machines: int, bandwidth: float, latency: float) -> float:
    """Of a ring that adds up so many bytes over processes of as many machines."""
    return 2 * (machines - 1) * (size / machines / bandwidth + latency)


def row(name: str, cost: dict[str, float], batch: int, machines: int, link: tuple[float, float], images: float,
        ) -> dict[str, Any]:  # fmt: skip
    """One line of the model: milliseconds of a step, and hours of an epoch."""
    one = cost["fixed"] + cost["each"] * batch + cost["update"]
    gradients = cost["fixed"] + cost["each"] * batch / machines
    sent = [
        exchange_seconds(size, machines, *link) for size in (cost["bytes"], cost["bytes"] / 2, cost["powersgd_bytes"])
    ]
    whole = gradients + cost["update"] + sent[0]
    return {
        "recipe": name, "MB/s": link[0] / 1e6, "machines": machines, "batch": batch, "gradients, ms": 1000 * gradients,
        "update": 1000 * cost["update"], "exchange": 1000 * sent[0], "in bf16": 1000 * sent[1],
        "PowerSGD": 1000 * sent[2], "step": 1000 * whole, "times one": one / whole,
        "epoch, hours": images / batch * whole / 3600,
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = list(rows[0])
    cells = [[value if isinstance(value, str) else f"{value:,.4g}" for value in line.values()] for line in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells))


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__, dry_run=False)
    parser.add_argument("--only", default="simple,conv,symmetric,tuned,sparse", help="comma-separated recipes")
    parser.add_argument("--widths", type=cli.sizes, default=(250, 1000, 2500, 5000), help="of symmetric")
    parser.add_argument("--network", default="1.25e9,12.5e9", help="bytes a second, comma-separated")
    parser.add_argument("--latency", type=cli.number(0), default=30e-6, help="of the network, seconds")
    parser.add_argument("--images", type=cli.number(0, above=True), default=1e9, help="of an epoch")
    parser.add_argument("--output", type=Path, default=HERE / "nodes.json")
    return parser


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    named = {name: RECIPES[name] for name in args.only.split(",")}
    named = {name: r if r.code_size else r.override({"code_size": 154}) for name, r in named.items()}
    for width in args.widths:
        named[f"symmetric --hidden-sizes {width}"] = RECIPES["symmetric"].override(
            {"code_size": 154, "hidden_sizes": (width,)}
        )
    costs = {name: parts_of_a_step(recipe) for name, recipe in named.items()}
    here = exchange()
    print(table([
        {"recipe": name, "gradients, MB": cost["bytes"] / 1e6, "with weights and moments, MB": 4 * cost["bytes"] / 1e6,
         **{f"{part}, ms": 1000 * cost[part] for part in ("fixed", "each", "update")}}
        for name, cost in costs.items()
    ]))  # fmt: skip
    local = here["bandwidth"], here["latency"]
    print(f"\nTwo processes of this machine: {local[0] / 1e6:,.0f} MB/s, {1e6 * local[1]:.0f} microseconds\n")
    rows = []
    for name in args.only.split(","):
        size = named[name].batch_size
        rows += [row(name, costs[name], size, 2, local, args.images)]
        for speed, n in itertools.product(map(float, args.network.split(",")), (8, 64)):
            link = speed, args.latency
            rows += [row(name, costs[name], batch, n, link, args.images) for batch in (size, n * size)]
    print(table(rows))
    write_json(args.output, {
        "machine": machine_name(), "latency": args.latency, "images": args.images, "costs": costs, "here": here,
        "model": rows,
    })  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
