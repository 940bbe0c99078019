"""The suite beside the libraries that people would pick instead, each through its public API.

Every library gets a virtual environment of its own below --output-dir, with the pinned version from the package
registry; torch and NumPy are the suite's. All train the same architecture on the same images of MNIST, in float32, with
the same batches, optimizer and number of epochs and threads (peer_runs.py). The rounds are interleaved; the table has
medians. Writes peers.json. Needs a machine with nothing else running.
"""

import json
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from autoencoders.data.sets import load_images
from autoencoders.reproduction.runs import machine_name
from autoencoders.runtime import cli
from autoencoders.runtime.files import read_json, write_json
from benchmarks.common import run_python

RESULTS = Path(__file__).with_name("peers.json")
OURS = "this suite"
# What the registry calls the library, and the models that it can express through its public API.
PEERS = {
    "keras": ("keras==3.15.1", ("simple", "conv", "vae")),
    "lightning": ("lightning==2.6.6", ("simple", "conv")),
    "pythae": ("pythae==0.1.2", ("simple", "conv", "vae")),
    "sklearn": ("", ("simple",)),  # in the suite's own environment
    "examples": ("", ("vae",)),
    "dictionary_learning": ("dictionary-learning==0.1.0", ("sparse",)),
    "sae_lens": ("sae-lens==6.54.12", ("sparse",)),
}
# Our flags for the same training: no annealing, and five independent autoencoders without revival.
FLAGS = {
    "simple": ("simple",),
    "conv": ("conv",),
    "vae": ("vae", "--kl-anneal", "none"),
    "sparse": ("sparse", "--consistency-weight", "0", "--revive", "off"),
}
IMAGES = 60_000


def environment(name: str, folder: Path) -> Path:
    """The Python of the library's environment, which is made at the first call."""
    package, _ = PEERS[name]
    if not package:
        return Path(sys.executable)
    python = (folder / name / ("Scripts" if sys.platform == "win32" else "bin") / "python").absolute()
    if not (folder / name / "installed").exists():
        print(f"Installing {package} into {folder / name}", file=sys.stderr, flush=True)
        run_python("-m", "venv", "--clear", folder / name)
        purelib = run_python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", python=python).lines[0][1]
        (Path(purelib.strip()) / "suite.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run_python("-m", "pip", "install", "-q", package, python=python)
        (folder / name / "installed").write_text(package)
    return python


def run_peer(
    name: str, model: str, python: Path, root: Path, epochs: int, more: Sequence[str] = (), threads: str = ""
) -> dict[str, float]:
    """One training by another library, with `more` flags of peer_runs.py, on all cores or so many threads."""
    flags = (name, model, "--data-root", root.absolute(), "--epochs", epochs, *more)
    limit: Any = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads) if threads else {}
    done = run_python(Path(__file__).with_name("peer_runs.py"), *flags, python=python, **limit)
    found = json.loads(next(line for _, line in reversed(done.lines) if line.startswith("{")))
    return {"images_per_second": epochs * found["images"] / found["seconds"], "process_seconds": done.seconds,
            "test_mse": found["test_mse"], "peak": done.peak}  # fmt: skip


def run_ours(model: str, root: Path, epochs: int) -> dict[str, float]:
    """The same training by `ae_train.py`, which also fits a PCA and writes checkpoints and pictures."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--recipe", *FLAGS[model], "--epochs", epochs, "--data-root", root, "--output-dir", folder,
                 "--device", "cpu", "--amp", "off", "--quiet")  # fmt: skip
        done = run_python("ae_train.py", *flags)
        record = read_json(Path(folder) / "run.json", "")
    error = record["metrics"]["test_mse_unit"]
    return {"images_per_second": epochs * IMAGES / record["seconds"], "process_seconds": done.seconds,
            "test_mse": sum(error) / len(error) if isinstance(error, list) else error, "peak": done.peak}  # fmt: skip


def measure(model: str, peers: list[str], args: Any) -> dict[str, dict[str, float]]:
    """The medians over the rounds, by library; all take turns within a round."""
    pythons = {name: environment(name, args.output_dir) for name in peers}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in (OURS, *peers)}
    for number in range(args.rounds):
        for name, found in rounds.items():
            found.append(
                run_ours(model, args.data_root, args.epochs)
                if name == OURS
                else run_peer(name, model, pythons[name], args.data_root, args.epochs)
            )
            print(f"{model}, {name}, round {number + 1}: {found[-1]}", file=sys.stderr, flush=True)
    medians = {name: {key: median(row[key] for row in its) for key in its[0]} for name, its in rounds.items()}
    return {name: {**row, "epochs": args.epochs, "rounds": args.rounds} for name, row in medians.items()}


def format_results(results: dict[str, Any]) -> str:
    """One row for each library and model, with what ours is ahead by."""
    head = ("model", "library", "images/s", "ours is faster by", "whole process, s", "test MSE", "peak MB")
    rows = []
    for model, found in results["models"].items():
        for name, row in found.items():
            lead = "" if name == OURS else f"{found[OURS]['images_per_second'] / row['images_per_second']:.2f}"
            title = f"{name} {PEERS[name][0].partition('==')[2]}".strip() if name != OURS else f"**{name}**"
            rows.append((model, title, f"{row['images_per_second']:,.0f}", lead, f"{row['process_seconds']:.1f}",
                         f"{row['test_mse']:.4f}", f"{row['peak'] / 1e6:,.0f}"))  # fmt: skip
    return cli.format_table(head, rows, markdown=True)


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--only",
        type=cli.items(cli.one_of(FLAGS)),
        default=tuple(FLAGS),
        metavar="MODEL",
        help=f"of {', '.join(FLAGS)} (default: all)",
    )
    parser.add_argument("--peers", type=cli.items(cli.one_of(PEERS)), default=tuple(PEERS), metavar="NAME",
                        help=f"of {', '.join(PEERS)} (default: all)")  # fmt: skip
    parser.add_argument("--epochs", type=cli.integer(1), default=2, help="of each training")
    parser.add_argument("--rounds", type=cli.integer(1), default=3, help="trainings of each library")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where MNIST is")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/peers"), help="where the environments go")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    load_images("mnist", args.data_root)  # an error, or a download, comes before the installations
    args.output_dir.mkdir(parents=True, exist_ok=True)
    machine = machine_name()
    stored = read_json(RESULTS, "") if RESULTS.exists() else {}
    models = stored["models"] if stored.get("machine") == machine else {}
    for model in args.only:
        peers = [name for name in args.peers if model in PEERS[name][1]]
        before = {name: row for name, row in models.get(model, {}).items() if row["epochs"] == args.epochs}
        models[model] = before | measure(model, peers, args)
        write_json(RESULTS, {"machine": machine, "models": models})
    print(f"{machine}; medians over the rounds\n")
    print(format_results({"models": models}))


if __name__ == "__main__":
    cli.run(main)
