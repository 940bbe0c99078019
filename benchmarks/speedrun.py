"""The speedrun of autoencoders: the wall clock from a command to a published test figure.

A gate is a figure that somebody has published; an entry is the flags of `ae_train.py` (and `ae_eval.py`) that pass it.
The clock covers whole processes: imports, training, evaluation, files. An entry counts if all its seeds pass. Appends
to speedrun.json, the log of records, and prints the table of the fastest entries. The rules: docs/speedrun.md.
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from autoencoders.data.sets import load_images
from autoencoders.reproduction.claims import EACH
from autoencoders.reproduction.runs import machine_name
from autoencoders.runtime import cli
from autoencoders.runtime.files import read_json, write_json
from benchmarks.common import run_python

RECORDS = Path(__file__).with_name("speedrun.json")


@dataclass(frozen=True)
class Gate:
    """A published figure of the test images, and our entry: what it runs and what it is measured by."""

    title: str
    limit: float
    source: str
    flags: tuple[str, ...]  # of ae_train.py
    metric: tuple[str, ...]  # the path of the figure in run.json, with evaluation flags in evaluation.json
    scale: float = 1.0  # from that number to the published one
    evaluation: tuple[str, ...] | None = None  # flags of ae_eval.py; None where run.json has the figure
    higher: bool = False  # whether a larger figure is better

    def passed(self, figure: float) -> bool:
        return figure > self.limit if self.higher else figure < self.limit


_SPEEDRUN = ("--recipe", "speedrun", "--batch-size", "128", "--lr", "1.2e-2")  # of 24, on held-out images
_BF16 = ("--amp", "on")
_LARGE_BATCHES = ("--activation", "gelu", "--batch-size", "256", "--lr", "4e-3", *_BF16)
_MSE = ("metrics", "test_mse_unit")
GATES = {
    "symmetric": Gate("code of 154: MSE of the published `symmetric`, pixels in [-1, 1]", 0.0142,
                      "https://mfaulk.github.io/2024/07/26/pytorch-ae.html", _SPEEDRUN, _MSE, 4),
    "pca": Gate("code of 154: MSE of PCA, pixels in [-1, 1]", 0.0132,
                "https://mfaulk.github.io/2024/07/26/pytorch-ae.html", _SPEEDRUN, _MSE, 4),
    "hinton": Gate("code of 30: squared error of an image", 3.00,
                   "Hinton & Salakhutdinov 2006, https://doi.org/10.1126/science.1127647",
                   ("--recipe", "hinton", "--epochs", "10", "--batch-size", "256", "--lr", "8e-3", *_BF16), _MSE, 784),
    "static": Gate("static binary MNIST: nats, 1,000 samples", 89.78,
                   "https://github.com/clementchadebec/benchmark_VAE, commit 6419e21",
                   ("--recipe", "vae_static", "--epochs", "32", "--importance-samples", "2", "--hidden-sizes",
                    "400,400", *_LARGE_BATCHES), ("likelihood", "nll"), evaluation=()),
    "dynamic": Gate("dynamic binary MNIST: nats, 1,000 samples", 86.76,
                    "Burda et al. 2016, https://arxiv.org/abs/1509.00519",
                    ("--recipe", "iwae", "--epochs", "65", "--importance-samples", "2", "--hidden-sizes",
                     "512,512", *_LARGE_BATCHES), ("likelihood", "nll"), evaluation=()),
    "linear": Gate("linear classifier on features without labels: accuracy", 0.9862,
                   "FC-WTA, https://github.com/guoguo12/tensorflow-fcwta, commit 1a72123", ("--recipe", "wta"),
                   ("probe", "code", "linear", "accuracy"), evaluation=("--probe", "--features", "dense"), higher=True),
    "unseen": Gate("a digit never seen: mean AUROC of ten", 0.929,
                   "Kim et al. 2020 (RaPP, ICLR), as shown in https://github.com/Aiden-Jeon/RaPP",
                   ("--recipe", "novelty", "--leave-out", EACH), ("outliers", "auroc_nap_hidden"), evaluation=(),
                   higher=True),
}  # fmt: skip


def run(gate: Gate, seed: int, root: Path) -> tuple[float, float]:
    """Seconds of the processes of one entry, and the figure; of an entry for each digit their mean."""
    digits = range(10) if EACH in gate.flags else (0,)
    start, figures = time.perf_counter(), []
    for digit in digits:
        with tempfile.TemporaryDirectory() as folder:
            flags = [str(digit) if flag == EACH else flag for flag in gate.flags]
            run_python("ae_train.py", *flags, "--seed", seed, "--data-root", root, "--output-dir", folder, "--quiet")
            if gate.evaluation is not None:
                run_python("ae_eval.py", "--run", folder, "--data-root", root, *gate.evaluation)
            found: Any = read_json(Path(folder) / ("run.json" if gate.evaluation is None else "evaluation.json"), "")
            for name in gate.metric:
                found = found[name]
            figures.append(gate.scale * found)
    return time.perf_counter() - start, mean(figures)


def measure(name: str, seeds: int, root: Path) -> dict[str, Any]:
    """The record of an entry: seconds and figures of all seeds, and whether all pass."""
    gate, seconds, figures = GATES[name], [], []
    for seed in range(seeds):
        took, figure = run(gate, seed, root)
        seconds.append(round(took, 2))
        figures.append(figure)
        print(f"{name}, seed {seed}: {took:.1f} s, {figure:.5g}", file=sys.stderr, flush=True)
    return {"gate": name, "limit": gate.limit, "flags": " ".join(gate.flags), "seconds": seconds, "figures": figures,
            "passed": all(map(gate.passed, figures)), "date": datetime.now(UTC).date().isoformat(),
            "machine": machine_name(), "threads": os.environ.get("OMP_NUM_THREADS", "all")}  # fmt: skip


def format_records(records: list[dict[str, Any]]) -> str:
    """The fastest record of each gate and machine that five seeds or more passed; else of fewer, or one that failed."""
    rows = []
    machines = dict.fromkeys((record["machine"], record["threads"]) for record in records)
    for (machine, threads), (name, gate) in product(machines, GATES.items()):
        its = [each for each in records if (each["gate"], each["machine"], each["threads"]) == (name, machine, threads)]
        if its:
            best = min(
                (each for each in its if each["passed"]),
                default=its[-1],
                key=lambda each: (-min(5, len(each["seconds"])), mean(each["seconds"])),
            )
            passed = sum(map(gate.passed, best["figures"]))
            figures = f"{mean(best['figures']):.4g}"
            figures += f" ± {stdev(best['figures']):.2g}" if len(best["figures"]) > 1 else ""
            rows.append((gate.title, f"{gate.limit:g}", figures, f"{passed} of {len(best['figures'])}",
                         f"{mean(best['seconds']):.1f}", best["date"],
                         f"`{best['flags']}`", f"{machine}, threads: {threads}"))  # fmt: skip
    head = ("gate", "to beat", "test figure", "seeds passed", "seconds", "date", "entry", "machine")
    return cli.format_table(head, rows, markdown=True)


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--only",
        type=cli.items(cli.one_of(GATES)),
        default=tuple(GATES),
        metavar="GATE",
        help=f"of {', '.join(GATES)} (default: all)",
    )
    parser.add_argument("--seeds", type=cli.integer(1), default=5, help="runs of each entry")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where MNIST is")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    load_images("mnist", args.data_root)  # an error, or a download, comes before any clock
    records = list(read_json(RECORDS, "")["records"]) if RECORDS.exists() else []
    for name in args.only:
        records.append(measure(name, args.seeds, args.data_root.absolute()))
        write_json(RECORDS, {"records": records})
    print(format_records(records))


if __name__ == "__main__":
    cli.run(main)
