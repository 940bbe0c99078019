"""Every recipe on 1, 2 and 4 processes under torchrun: is it the same run, what does a step cost, what is sent?

Each run is `ae_train.py`, one thread a process. Beside them stands one process whose weights start a single rounding
away: sums in another order are roundings too, and training may make much of them. Printed are the largest relative
differences to the run of one process, of the losses of epochs and of batches and of the final metrics, with the name of
the metric; a difference of numbers that are 0 on one side counts whole. A step's time is that of the last epoch, the
median of --rounds runs, which take turns with those of one process; so is the speed beside one process's. Bytes
are those that a process sends in a step: counted (a ring sends each gradient 2 (n - 1) / n times), and measured on the
loop-back device (Linux). Writes parallel.json beside this file, or where --output says.
"""

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from autoencoders.data.sets import load_again  # noqa: E402
from autoencoders.evaluation.metrics import reconstruction_error  # noqa: E402
from autoencoders.recipes import RECIPES  # noqa: E402
from autoencoders.runtime.device import Precision, machine_name  # noqa: E402
from autoencoders.runtime.files import write_json  # noqa: E402
from autoencoders.training.checkpoint import load_checkpoint, load_run, read_record  # noqa: E402
from autoencoders.training.trackers import flat  # noqa: E402
from autoencoders.training.trainer import Trainer  # noqa: E402

_DEVICES = Path("/proc/net/dev")


def sent() -> int:
    """Bytes that have gone through the loop-back device; 0 where it does not say."""
    lines = _DEVICES.read_text().splitlines() if _DEVICES.exists() else []
    counts = [line.split(":")[1].split() for line in lines if line.strip().startswith("lo:")]
    return int(counts[0][8]) if counts else 0


def train(recipe: str, ranks: int, folder: Path, flags: Sequence[str]) -> dict[str, Any]:
    """Train in processes of one thread; losses, metrics, and the cost of a step in the last epoch."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    script = [str(HERE.parent / "ae_train.py"), "--recipe", recipe, "--device", "cpu", "--output-dir", str(folder)]
    command = [sys.executable, *torchrun, *script, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    through = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("Epoch "):
                through.append(sent())
    if process.returncode:
        raise SystemExit(f"error: {recipe} on {ranks} processes ended with status {process.returncode}")
    state = load_checkpoint(folder / "checkpoint.pt")["trainer"]
    with (folder / "history.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    batches, steps = state["batch_losses"].tolist(), len(state["batch_losses"]) // len(rows)
    traffic = (through[-1] - through[-2]) / steps / ranks if len(through) > 1 else 0
    size = sum(weight.numel() * weight.element_size() for weight in state["model"].values())
    return {
        "ranks": ranks, "batches": batches, "metrics": read_record(folder)["metrics"],
        "epochs": [{k: v for k, v in row.items() if "second" not in k and k != "epoch"} for row in rows],
        "milliseconds_per_step": 1000 * rows[-1]["seconds"] / steps, "steps": steps,
        "images_per_second": rows[-1]["images_per_second"], "gradient_bytes": size,
        "counted_bytes": 2 * size * (ranks - 1) / ranks, "measured_bytes": traffic,
    }  # fmt: skip


def rounded(folder: Path) -> dict[str, Any]:
    """The run in `folder` once more, every weight at the start the next number above."""
    _, recipe, record = load_run(folder, torch.device("cpu"))
    images = load_again(record["dataset"])
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    model = recipe.build()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.nextafter(weight, torch.tensor(torch.inf)))
    cpu = torch.device("cpu")
    trainer = Trainer(model, recipe, images.train_images, images.test_images, cpu, Precision("off", cpu))
    rows = [flat(row) for row in trainer.epochs()]
    return {
        "ranks": "1, a rounding away", "batches": trainer.batch_losses,
        "metrics": reconstruction_error(model, trainer.test_images),
        "epochs": [{k: v for k, v in row.items() if "second" not in k and k != "epoch"} for row in rows],
        "milliseconds_per_step": 1000 * rows[-1]["seconds"] / len(trainer.batch_sizes),
        "images_per_second": rows[-1]["images_per_second"], "counted_bytes": 0, "measured_bytes": 0,
    }  # fmt: skip


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested lists and dictionaries, with where it stands."""
    if isinstance(value, int | float):
        yield name, value
    items = value.items() if isinstance(value, dict) else enumerate(value, 1) if isinstance(value, list) else ()
    for key, inner in items:
        yield from numbers(inner, f"{name} {key}".strip())


def largest(ours: Any, theirs: Any) -> tuple[float, str]:
    """The largest relative difference of any two numbers, and where; times are no numbers of the run."""
    there = dict(numbers(theirs))
    pairs = [(name, a, there[name]) for name, a in numbers(ours) if "second" not in name]
    return max((abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0, name) for name, a, b in pairs)


def compared(ones: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of runs on several processes beside those on one, each of which went before it."""
    one, many = ones[0], runs[0]
    kept = {k: v for k, v in many.items() if k not in ("batches", "metrics", "epochs")}
    differences = {k: largest(many[k], one[k]) for k in ("epochs", "batches", "metrics")}
    kept["milliseconds_per_step"] = statistics.median(run["milliseconds_per_step"] for run in runs)
    speedups = [run["images_per_second"] / before["images_per_second"] for before, run in zip(ones, runs)]
    return kept | {"speedup": statistics.median(speedups), "speedups": speedups, "differences": differences}


def line(recipe: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    epochs, batches, metrics = (row["differences"][k] for k in ("epochs", "batches", "metrics"))
    return (f"| {recipe} | {row['ranks']} | {epochs[0]:.1e} | {batches[0]:.1e} | {metrics[0]:.1e} ({metrics[1]}) "
            f"| {row['milliseconds_per_step']:.2f} | {row['speedup']:.2f} | {row['counted_bytes']:,.0f} "
            f"| {row['measured_bytes']:,.0f} |")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(RECIPES), help="comma-separated recipes")
    parser.add_argument("--ranks", default="2,4", help="comma-separated numbers of processes")
    parser.add_argument("--epochs", default="2")
    parser.add_argument("--micro-batches", default="1", help="as of ae_train.py")
    parser.add_argument("--rounds", type=int, default=1, help="of every run, for the times")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--control", choices=("on", "off"), default="on", help="one process, a rounding away, too")
    parser.add_argument("--output", type=Path, default=HERE / "parallel.json")
    return parser


def main() -> None:
    args, more = parser().parse_known_args()  # the rest goes to ae_train.py
    flags = ("--dataset", args.dataset, "--data-root", args.data_root, "--epochs", args.epochs,
             "--micro-batches", args.micro_batches, *more)  # fmt: skip
    head = ("recipe", "processes", "losses of epochs", "of batches", "metrics", "ms a step", "times one", "bytes sent",
            "measured")  # fmt: skip
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}", flush=True)
    results: dict[str, Any] = {"machine": machine_name(), "dataset": args.dataset, "flags": more, "recipes": {}}
    for recipe in args.only.split(","):
        with tempfile.TemporaryDirectory() as name:
            sizes, folder = [1, *map(int, args.ranks.split(","))], Path(name)
            runs: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
            for _, size in itertools.product(range(args.rounds), sizes):
                runs[size].append(train(recipe, size, folder / str(size), flags))
            control = [[rounded(folder / "1")]] if args.control == "on" else []
        rows = [compared(runs[1], each) for each in (*control, *list(runs.values())[1:])]
        results["recipes"][recipe] = rows
        print("\n".join(line(recipe, row) for row in rows), flush=True)
        write_json(args.output, results)


if __name__ == "__main__":
    main()
