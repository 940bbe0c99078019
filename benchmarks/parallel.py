"""Every recipe on 1, 2 and 4 processes under torchrun: is it the same run, how long is a step, how much is sent?

Each run is `ae_train.py`, one thread per process. Beside them stands a control: one process whose weights start a
single rounding away. Sums in another order are roundings too, and training may amplify them. Printed are the largest
relative differences to the run of one process: of the losses of epochs and of batches, and of the final metrics with
the name of the metric. A step's time is that of the last epoch, the median of --rounds runs, in turn with those of one
process. Bytes are those that a process sends per step: counted (a ring sends each gradient 2 (n - 1) / n times), and
measured on the loop-back device (Linux).
"""

import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from autoencoders.evaluation.metrics import reconstruction_error
from autoencoders.recipes import RECIPES
from autoencoders.reproduction.runs import machine_name
from autoencoders.runtime import cli
from autoencoders.runtime.files import write_json
from autoencoders.training.checkpoint import load_checkpoint, read_record
from autoencoders.training.trained import load_run
from autoencoders.training.trainer import Trainer
from benchmarks.common import SYSTEMS, run_python

HEAD = ("recipe", "processes", "losses of epochs", "of batches", "metrics", "ms a step", "times one", "bytes sent",
        "measured")  # fmt: skip
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
_DEVICES = Path("/proc/net/dev")


def bytes_sent() -> int:
    """Bytes that have gone through the loop-back device; 0 if the system does not say."""
    lines = _DEVICES.read_text().splitlines() if _DEVICES.exists() else []
    counts = [line.split(":")[1].split() for line in lines if line.strip().startswith("lo:")]
    return int(counts[0][8]) if counts else 0


def train(recipe: str, ranks: int, folder: Path, flags: list[Any]) -> dict[str, Any]:
    """Train in processes of one thread; losses, metrics, and the cost of a step in the last epoch."""
    sent: list[int] = []

    def watch(line: str) -> None:
        if line.startswith("Epoch "):
            sent.append(bytes_sent())

    command = [*_TORCHRUN, ranks] if ranks > 1 else []
    command += ["ae_train.py", "--recipe", recipe, "--device", "cpu", "--output-dir", folder, *flags]
    run_python(*command, on_line=watch, OMP_NUM_THREADS="1")
    state = load_checkpoint(folder / "checkpoint.pt")[0]["trainer"]
    history, batches = state["history"], state["batch_losses"].tolist()
    traffic = (sent[-1] - sent[-2]) * len(history) / len(batches) / ranks if len(sent) > 1 else 0
    size = sum(weight.numel() * weight.element_size() for weight in state["model"].values())
    return summary(ranks, history, batches, read_record(folder)["metrics"]) | {
        "gradient_bytes": size, "counted_bytes": 2 * size * (ranks - 1) / ranks, "measured_bytes": traffic,
    }  # fmt: skip


def train_control(folder: Path, root: Path) -> dict[str, Any]:
    """Repeat the run in `folder`, each weight starting at the next larger float."""
    run = load_run(folder, torch.device("cpu"))
    torch.set_num_threads(1)
    trainer = Trainer(run.recipe, run.load_images(root=root))
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.copy_(torch.nextafter(weight, torch.tensor(torch.inf)))
    history = list(trainer.epochs())
    metrics = reconstruction_error(trainer.model, trainer.test_images)
    control = summary(1, history, trainer.batch_losses, metrics) | {"counted_bytes": 0, "measured_bytes": 0}
    return control | {"ranks": "1, a rounding away"}


def summary(ranks: int, history: list[Any], batches: list[float], metrics: dict[str, Any]) -> dict[str, Any]:
    """A run's numbers, and its speed in the last epoch."""
    return {
        "ranks": ranks, "epochs": history, "batches": batches, "metrics": metrics,
        "milliseconds_per_step": 1000 * history[-1]["seconds"] * len(history) / len(batches),
        "images_per_second": history[-1]["images_per_second"],
    }  # fmt: skip


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested lists and dictionaries with its path, times left out."""
    if isinstance(value, int | float) and "second" not in name:
        yield name, value
    items = value.items() if isinstance(value, dict) else enumerate(value, 1) if isinstance(value, list) else ()
    for key, inner in items:
        yield from numbers(inner, f"{name} {key}".strip())


def largest_difference(ours: Any, theirs: Any) -> tuple[float, str]:
    """The largest relative difference of two numbers of the same path, and the path."""
    there = dict(numbers(theirs))
    pairs = [(name, a, there[name]) for name, a in numbers(ours)]
    return max((abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0, name) for name, a, b in pairs)


def compare(ones: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Runs on several processes beside those on one process, each of which went before it."""
    parts = ("epochs", "batches", "metrics")
    speedups = [run["images_per_second"] / before["images_per_second"] for before, run in zip(ones, runs)]
    return {k: v for k, v in runs[0].items() if k not in parts} | {
        "milliseconds_per_step": statistics.median(run["milliseconds_per_step"] for run in runs),
        "speedup": statistics.median(speedups), "speedups": speedups,
        "differences": {part: largest_difference(runs[0][part], ones[0][part]) for part in parts},
    }  # fmt: skip


def format_row(recipe: str, row: dict[str, Any]) -> list[str]:
    epochs, batches, metrics = (row["differences"][k] for k in ("epochs", "batches", "metrics"))
    return [recipe, str(row["ranks"]), f"{epochs[0]:.1e}", f"{batches[0]:.1e}", f"{metrics[0]:.1e} ({metrics[1]})",
            f"{row['milliseconds_per_step']:.2f}", f"{row['speedup']:.2f}", f"{row['counted_bytes']:,.0f}",
            f"{row['measured_bytes']:,.0f}"]  # fmt: skip


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--only", type=cli.items(cli.one_of(RECIPES)), action=cli.ListAction, metavar="NAME",
                        default=SYSTEMS, help="recipes")  # fmt: skip
    parser.add_argument("--ranks", type=cli.items(cli.integer(1)), action=cli.ListAction, metavar="N",
                        default=(2, 4), help="numbers of processes")  # fmt: skip
    parser.add_argument("--epochs", type=cli.integer(1), default=2, help="passes over the images")
    parser.add_argument("--rounds", type=cli.integer(1), default=1, help="runs of each, for the times")
    parser.add_argument("--dataset", default="mnist", help="image set")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the images are")
    parser.add_argument("--control", choices=("on", "off"), default="on", help="also train the control")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="where results go")
    parser.add_argument("flags", nargs="*", help="after --: more flags of ae_train.py")
    return parser


def main() -> None:
    args = parser().parse_args()
    flags = ["--dataset", args.dataset, "--data-root", args.data_root, "--epochs", args.epochs, *args.flags]
    results: dict[str, Any] = {"machine": machine_name(), "dataset": args.dataset, "flags": args.flags, "recipes": {}}
    table = []
    for recipe in args.only:
        with tempfile.TemporaryDirectory() as name:
            runs: dict[int, list[dict[str, Any]]] = {size: [] for size in (1, *args.ranks)}
            for _, size in itertools.product(range(args.rounds), runs):
                runs[size].append(train(recipe, size, Path(name, str(size)), flags))
            control = [[train_control(Path(name, "1"), args.data_root)]] if args.control == "on" else []
        rows = [compare(runs[1], each) for each in (*control, *(runs[size] for size in args.ranks))]
        results["recipes"][recipe] = rows
        table += [format_row(recipe, row) for row in rows]
        print(cli.format_table(HEAD, table[-len(rows) :]), file=sys.stderr, flush=True)
        write_json(args.output, results)
    print(cli.format_table(HEAD, table, markdown=True))


if __name__ == "__main__":
    cli.run(main)
