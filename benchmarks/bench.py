"""The suite against the plain loop everyone knows, side by side, as ratios.

Each round trains the same recipe on the same images with the plain loop (`plain.py`), with ours in fp32 and, with
--amp, in mixed precision, in turn and in one process; medians over the rounds are reported, since a shared machine
drifts. The matrix products alone, of the very shapes that the recipe multiplies, are timed in the same rounds: what
no training loop can go below. Then whole processes: `ae_pca.py`, the speedrun against the plain loop's ten epochs,
the time to the first step and the memory of `ae_train.py`. Needs the real MNIST (--data-root).
"""

import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import scaling  # noqa: E402
from plain import build, plain_epoch, plain_loader  # noqa: E402

from autoencoders.data.sets import load_images  # noqa: E402
from autoencoders.recipes import RECIPES, Recipe  # noqa: E402
from autoencoders.runtime import cli  # noqa: E402
from autoencoders.runtime.device import Precision, keep_freed_memory, machine_name  # noqa: E402
from autoencoders.runtime.files import write_atomic  # noqa: E402
from autoencoders.sparse import SparseEnsemble  # noqa: E402
from autoencoders.training.trainer import Trainer  # noqa: E402

CPU = torch.device("cpu")
IMPORTS = "import torch, torchvision, matplotlib.figure, matplotlib.backends.backend_agg"
PROCESSES = ("ae_pca.py", "speedrun")  # timed as whole processes too
Work = Callable[[], object]


def our_epoch(recipe: Recipe, root: Path, count: int, amp: str) -> Work:
    """One epoch over `count` images by the suite's own loop, ready to be called."""
    images = load_images("mnist", root)
    train, test = images.train_images[:count], images.test_images[:1]
    endless = recipe.override({"epochs": 1000})
    epochs = Trainer(build(recipe), endless, train, test, CPU, Precision(amp, CPU)).epochs()
    return lambda: next(epochs)


def products(recipe: Recipe, dtype: torch.dtype) -> Work | None:
    """The matrix products of one step (forward, weight and input gradients), or None where there are others too."""
    model, batch = build(recipe), recipe.batch_size
    if isinstance(model, SparseEnsemble):  # each one's encoder and decoder
        layers = [weight for rows in model.weight.detach() for weight in (rows, rows.t().contiguous())]
    elif any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return None
    else:
        layers = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Linear)]
    shapes = [(torch.rand(batch, w.shape[1]), w, torch.rand(batch, w.shape[0])) for w in layers]
    triples = [tuple(matrix.to(dtype) for matrix in shape) for shape in shapes]

    def step() -> None:
        for x, weight, gradient in triples:
            torch.mm(x, weight.t())
            torch.mm(gradient.t(), x)
            if x.shape[1] != recipe.pixels:  # nobody asks for the gradient of the pixels
                torch.mm(gradient, weight)

    return step


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def repeat(work: Work, times: int) -> None:
    for _ in range(times):
        work()


def in_turn(contestants: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """The seconds that each takes in every round after the first, which warms up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name, work in contestants.items():
            taken = seconds(work)
            if round_number:
                times[name].append(taken)
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """The median over the rounds of how many times longer `one` takes than `other`."""
    if len(times[one]) != len(times[other]):  # not in turn
        return statistics.median(times[one]) / statistics.median(times[other])
    return statistics.median(a / b for a, b in zip(times[one], times[other]))


def bench_recipe(recipe: Recipe, root: Path, count: int, rounds: int, mixed: bool) -> dict[str, Any]:
    """Medians over the rounds, and the ratios of each round's neighbours."""
    model = build(recipe)
    loader = plain_loader(root, True, model.input_range == "signed", recipe.batch_size, count)
    contestants = {"plain": plain_epoch(model, recipe, loader), "ours": our_epoch(recipe, root, count, "off")}
    modes = {"ours": torch.float32}
    if mixed:
        contestants["ours, amp"] = our_epoch(recipe, root, count, "on")
        modes["ours, amp"] = torch.bfloat16
    for name, dtype in modes.items():
        matrix = products(recipe, dtype)
        if matrix:
            contestants[f"products of {name}"] = partial(repeat, matrix, -(-count // recipe.batch_size))
    times = in_turn(contestants, rounds)
    result: dict[str, Any] = {"recipe": recipe.name, "images": count, "rounds": rounds, "seconds": times}
    for name in modes:
        result[f"plain / {name}"] = ratio(times, "plain", name)
        if f"products of {name}" in times and not isinstance(model, SparseEnsemble):  # which skips most of them
            result[f"share of the matrix peak, {name}"] = ratio(times, f"products of {name}", name)
    for name in ("plain", *modes):
        result[f"images a second, {name}"] = count / statistics.median(times[name])
    return result


def watch_memory(running: "subprocess.Popen[str]", peaks: list[int]) -> None:
    """Note the process's peak of resident memory, in bytes, as long as it lives (Linux).

    The peak that the system tells of an ended child would count ours, from before it became another program.
    """
    status = Path(f"/proc/{running.pid}/status")
    with contextlib.suppress(OSError):
        while running.poll() is None:
            peaks += [1024 * int(kilobytes) for kilobytes in re.findall(r"VmHWM:\s+(\d+)", status.read_text())]
            time.sleep(0.02)


def process(command: list[str], awaited: str = "") -> tuple[float, float]:
    """Run it: the seconds until it prints a line with `awaited`, and its peak memory in bytes."""
    start, first, peaks = time.perf_counter(), 0.0, [0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout
        threading.Thread(target=watch_memory, args=(running, peaks), daemon=True).start()
        for line in running.stdout:
            if awaited in line and not first:
                first = time.perf_counter() - start
    if running.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {running.returncode}")
    return first, max(peaks)


def bench_process(name: str, root: Path, rounds: int) -> dict[str, Any]:
    """One of our scripts as a process against the plain way to the same result, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        places = ["--data-root", str(root), "--output-dir", folder]
        if name == "speedrun":
            plain = [str(HERE / "plain.py"), *places]
            ours = [str(HERE.parent / "ae_train.py"), "--recipe", name, *places]
        else:
            plain = [str(HERE / "plain_pca.py"), str(root)]
            ours = [str(HERE.parent / name), *places]
        runs = {"plain": partial(process, [sys.executable, *plain]), "ours": partial(process, [sys.executable, *ours])}
        if name == "speedrun":  # the plain loop's ten epochs take minutes: one run of them
            times = {"plain": [seconds(runs["plain"])], **in_turn({"ours": runs["ours"]}, rounds)}
        else:
            times = in_turn(dict(runs), rounds)
        result = {"recipe": f"{name}, whole process", "rounds": rounds, "seconds": times}
        if name == "speedrun":
            result["plain: test MSE"] = float((Path(folder) / "plain_test_mse.txt").read_text())
            result["ours: test MSE"] = json.loads((Path(folder) / "run.json").read_text())["metrics"]["test_mse"]
    return result | {"plain / ours": ratio(times, "plain", "ours")}


def bench_memory(recipe: Recipe, root: Path) -> dict[str, Any]:
    """The time to the first step and the peak memory of one epoch of `ae_train.py`, and of one step of the plain loop.

    `memory over imports` is the peak without the weights, the optimiser's two moments and the images, as a multiple
    of what importing torch, torchvision and matplotlib takes.
    """
    which = ["--recipe", recipe.name, "--data-root", str(root), "--epochs", "1"]
    with tempfile.TemporaryDirectory() as folder:
        command = [str(HERE.parent / "ae_train.py"), *which, "--output-dir", folder, "--log-interval", "1"]
        command += ["--code-size", "154"] if RECIPES[recipe.name].code_size is None else []
        first, peak = process([sys.executable, *command], "step 1/")
    one_step = [str(HERE / "plain.py"), *which, "--images", str(recipe.batch_size)]
    plain_first, plain_peak = process([sys.executable, *one_step], "epoch 1")
    _, imports = process([sys.executable, "-c", IMPORTS])
    own = 12 * sum(weight.numel() for weight in build(recipe).parameters()) + 55e6
    return {
        "seconds to the first step": first, "plain: seconds to the first step": plain_first, "peak memory": peak,
        "plain: peak memory": plain_peak, "imports' memory": imports, "memory over imports": (peak - own) / imports,
    }  # fmt: skip


COLUMNS = {
    "plain, images/s": ("images a second, plain", ",.0f"),
    "ours, images/s": ("images a second, ours", ",.0f"),
    "plain / ours": ("plain / ours", ".2f"),
    "share of fp32 peak": ("share of the matrix peak, ours", ".0%"),
    "plain / ours, amp": ("plain / ours, amp", ".2f"),
    "share of bf16 peak": ("share of the matrix peak, ours, amp", ".0%"),
    "test MSE": ("ours: test MSE", ".4f"),
    "plain, first step, s": ("plain: seconds to the first step", ".1f"),
    "ours": ("seconds to the first step", ".1f"),
    "plain, peak memory, MB": ("plain: peak memory", ",.0f"),
    "ours, whole run": ("peak memory", ",.0f"),
    "of imports": ("memory over imports", ".2f"),
}


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table, without the columns that nothing was measured for."""
    columns = {title: column for title, column in COLUMNS.items() if any(column[0] in r for r in results)}
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for result in results:
        scaled = {key: value / 1e6 if key.endswith("peak memory") else value for key, value in result.items()}
        cells = [format(scaled[key], style) if key in result else "" for key, style in columns.values()]
        lines.append(f"| {result['recipe']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.Parser(__doc__, dry_run=False)
    rows = (*PROCESSES, *(f"{name} epochs" for name in RECIPES), "scaling")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--only", default=",".join(rows), help="comma-separated: %(default)s")
    parser.add_argument(
        "--images", type=cli.integer(1), default=12_800, help="images of an epoch (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=cli.integer(1), default=5, help="counted rounds (default: %(default)s)")
    parser.add_argument("--amp", action="store_true", help="time mixed precision too (worth it with bf16 units)")
    args = parser.parse_args()
    keep_freed_memory()
    machine = machine_name()
    kept = HERE / "results.json"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    results = {r["recipe"]: r for r in before["results"]} if before.get("machine") == machine else {}
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(rows):
        parser.error(f"--only {', '.join(sorted(unknown))}: is none of {', '.join(rows)}")
    for name in wanted:
        if name == "scaling":
            scaling.main(args.data_root, machine)
            continue
        if name in PROCESSES:
            result = bench_process(name, args.data_root, args.rounds)
        else:
            row = RECIPES[name.removesuffix(" epochs")]
            recipe = row if row.code_size else row.override({"code_size": 154})
            count = min(args.images, 30 * recipe.batch_size) if recipe.name == "sparse" else args.images
            result = bench_recipe(recipe, args.data_root, count, args.rounds, args.amp)
            result |= bench_memory(recipe, args.data_root)
        results[result["recipe"]] = result
        print(table([result]).splitlines()[-1], file=sys.stderr, flush=True)
        text = json.dumps({"machine": machine, "results": list(results.values())}, indent=1)
        write_atomic(kept, text.encode() + b"\n")  # what was measured survives an interruption
    print(f"{machine}, medians\n")
    print(table(list(results.values())))


if __name__ == "__main__":
    cli.run(main)
