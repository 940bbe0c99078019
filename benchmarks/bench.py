"""The suite against the plain training loop, side by side, as ratios.

Each round trains the same recipe on the same images with the plain loop (plain.py), with ours in fp32 and, with --amp,
in mixed precision, one after the other in one process; medians over the rounds are reported, since a shared machine
drifts. The matrix products or convolutions alone, of the shapes that the recipe multiplies, are timed in the same
rounds: no training loop can be faster. Then complete processes: `ae_pca.py`, the speedrun against the plain loop's ten
epochs, and the time to the first step and the memory of `ae_train.py`. Needs the real MNIST (--data-root).
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoencoders.data.sets import load_images
from autoencoders.recipes import RECIPES, Recipe
from autoencoders.reproduction.runs import machine_name
from autoencoders.runtime import cli
from autoencoders.runtime.device import flush_denormals, keep_freed_memory
from autoencoders.runtime.files import write_json
from benchmarks.common import SYSTEMS, make_trainer, run_python, sized
from benchmarks.plain import build, plain_epoch, plain_loader

RESULTS = Path(__file__).with_name("results.json")
IMPORTS = "import torch, torchvision, matplotlib.figure, matplotlib.backends.backend_agg"
PROCESSES = ("ae_pca.py", "speedrun")  # timed as complete processes too
Work = Callable[[], object]


def products(recipe: Recipe, dtype: torch.dtype) -> Work:
    """The matrix products, or convolutions, of one step: forward, weight and input gradients."""
    model, batch = build(recipe), recipe.batch_size
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return convolutions(model.to(dtype), torch.rand(batch, recipe.pixels, dtype=dtype))
    if model.members > 1:  # each member's encoder and decoder
        layers = [weight for rows in model.state_dict()["weight"] for weight in (rows, rows.t().contiguous())]
    else:
        layers = [module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)]
    shapes = [(torch.rand(batch, w.shape[1]), w, torch.rand(batch, w.shape[0])) for w in layers]
    triples = [tuple(matrix.to(dtype) for matrix in shape) for shape in shapes]

    def step() -> None:
        for x, weight, gradient in triples:
            torch.mm(x, weight.t())
            torch.mm(gradient.t(), x)
            if x.shape[1] != recipe.pixels:  # the gradient of the pixels is not needed
                torch.mm(gradient, weight)

    return step


def convolutions(model: nn.Module, images: torch.Tensor) -> Work:
    """The convolutions of a model alone, forward and backward, on the inputs (batch, ...) that the images give them."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    calls: list[Any] = []
    hooks = [layer.register_forward_hook(lambda *call: calls.append(call)) for layer in layers]
    model(images)
    for hook in hooks:
        hook.remove()
    # The gradient of the pixels is not needed.
    inputs = [inputs[0].detach().requires_grad_(layer is not layers[0]) for layer, inputs, _ in calls]
    gradients = [torch.rand_like(output) for *_, output in calls]

    def step() -> None:
        for layer, x, gradient in zip(layers, inputs, gradients, strict=True):
            layer(x).backward(gradient)

    return step


def repeat(work: Work, times: int) -> None:
    for _ in range(times):
        work()


def in_turn(contestants: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """The seconds that each contestant takes in every round after the first, which warms up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            if round_number:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """How many times longer `one` takes than `other`, the median over the rounds."""
    if len(times[one]) != len(times[other]):  # not in turn
        return statistics.median(times[one]) / statistics.median(times[other])
    return statistics.median(a / b for a, b in zip(times[one], times[other]))


def bench_recipe(recipe: Recipe, root: Path, count: int, rounds: int, mixed: bool) -> dict[str, Any]:
    """An epoch over `count` images: medians over the rounds, and ratios within each round."""
    model, images = build(recipe), load_images("mnist", root).train_images[:count]
    loader = plain_loader(root, True, model.input_range == "signed", recipe.batch_size, count)
    contestants: dict[str, Work] = {"plain": plain_epoch(model, recipe, loader)}
    modes = {"ours": ("off", torch.float32)} | ({"ours, amp": ("on", torch.bfloat16)} if mixed else {})
    for name, (amp, dtype) in modes.items():
        epochs = make_trainer(recipe.override({"epochs": 1000}), images, amp).epochs()
        contestants[name] = partial(next, epochs)
        steps = -(-count // recipe.batch_size)
        contestants[f"products of {name}"] = partial(repeat, products(recipe, dtype), steps)
    times = in_turn(contestants, rounds)
    result: dict[str, Any] = {"recipe": recipe.name, "images": count, "rounds": rounds, "seconds": times}
    for name in modes:
        result[f"plain / {name}"] = ratio(times, "plain", name)
        if not model.selects:  # a sparse code skips most products
            result[f"share of the matrix peak, {name}"] = ratio(times, f"products of {name}", name)
    for name in ("plain", *modes):
        result[f"images a second, {name}"] = count / statistics.median(times[name])
    return result


def bench_process(name: str, root: Path, rounds: int) -> dict[str, Any]:
    """One of our scripts as a process against the plain way to the same result, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--data-root", root, "--output-dir", folder)
        result: dict[str, Any] = {"recipe": f"{name}, whole process", "rounds": rounds}
        if name == "speedrun":  # the plain loop's ten epochs take minutes: one run of them
            times = {"plain": [run_python("-m", "benchmarks.plain", *flags).seconds]}
            times |= in_turn({"ours": partial(run_python, "ae_train.py", "--recipe", name, *flags)}, rounds)
            result["plain: test MSE"] = float((Path(folder) / "plain_test_mse.txt").read_text())
            result["ours: test MSE"] = json.loads((Path(folder) / "run.json").read_text())["metrics"]["test_mse_unit"]
        else:
            plain, ours = partial(run_python, "-m", "benchmarks.plain_pca", root), partial(run_python, name, *flags)
            times = in_turn({"plain": plain, "ours": ours}, rounds)
    return result | {"seconds": times, "plain / ours": ratio(times, "plain", "ours")}


def bench_memory(recipe: Recipe, root: Path) -> dict[str, Any]:
    """The time to the first step and the peak memory of one epoch of `ae_train.py`, and of one step of the plain loop.

    `memory over imports` is the peak without the weights, the optimizer's two moments and the images, as a multiple of
    what importing torch, torchvision and matplotlib takes.
    """
    flags = ["--recipe", recipe.name, "--data-root", root, "--epochs", 1]
    code = ["--code-size", 154] if RECIPES[recipe.name].code_size is None else []
    with tempfile.TemporaryDirectory() as folder:
        ours = run_python(
            "ae_train.py", *flags, "--dataset", "mnist", *code, "--output-dir", folder, "--log-interval", 1
        )
    plain = run_python("-m", "benchmarks.plain", *flags, "--images", recipe.batch_size)
    imports, torch_alone = run_python("-c", IMPORTS).peak, run_python("-c", "import torch").seconds
    own = 12 * recipe.count_parameters() + 55e6
    return {
        "seconds to the first step": ours.seconds_until("step 1/"),
        "plain: seconds to the first step": plain.seconds_until("epoch 1"), "seconds of import torch": torch_alone,
        "peak memory": ours.peak, "plain: peak memory": plain.peak, "imports' memory": imports,
        "memory over imports": (ours.peak - own) / imports,
    }  # fmt: skip


COLUMNS = {
    "plain, images/s": ("images a second, plain", ",.0f"),
    "ours, images/s": ("images a second, ours", ",.0f"),
    "speed-up": ("plain / ours", ".2f"),
    "share of fp32 peak": ("share of the matrix peak, ours", ".0%"),
    "speed-up, amp": ("plain / ours, amp", ".2f"),
    "share of bf16 peak": ("share of the matrix peak, ours, amp", ".0%"),
    "plain, test MSE": ("plain: test MSE", ".4f"),
    "ours, test MSE": ("ours: test MSE", ".4f"),
    "plain, s to first step": ("plain: seconds to the first step", ".1f"),
    "ours, s to first step": ("seconds to the first step", ".1f"),
    "`import torch` alone, s": ("seconds of import torch", ".1f"),
    "plain, peak MB of a step": ("plain: peak memory", ",.0f"),
    "ours, peak MB of a run": ("peak memory", ",.0f"),
    "ours, peak / imports": ("memory over imports", ".2f"),
}


def format_results(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table, without the columns that nothing was measured for."""
    columns = {title: column for title, column in COLUMNS.items() if any(column[0] in r for r in results)}
    rows = []
    for result in results:
        scaled = {key: value / 1e6 if key.endswith("peak memory") else value for key, value in result.items()}
        cells = [format(scaled[key], style) if key in result else "" for key, style in columns.values()]
        rows.append([result["recipe"], *cells])
    return cli.format_table(("", *columns), rows, markdown=True)


NAMES = (*PROCESSES, *(f"{name} epochs" for name in SYSTEMS))


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where MNIST is")
    parser.add_argument("--only", default=",".join(NAMES), help="comma-separated")
    parser.add_argument("--images", type=cli.integer(1), default=12_800, help="images of an epoch")
    parser.add_argument("--rounds", type=cli.integer(1), default=5, help="counted rounds")
    parser.add_argument("--amp", action="store_true", help="time mixed precision too")
    return parser


def main() -> None:
    args = parser().parse_args()
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(NAMES):
        parser().error(f"--only {', '.join(sorted(unknown))}: is none of {', '.join(NAMES)}")
    flush_denormals()
    keep_freed_memory()
    load_images("mnist", args.data_root)  # an error, or a download, comes before any clock
    machine = machine_name()
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results = {r["recipe"]: r for r in before["results"]} if before.get("machine") == machine else {}
    for name in wanted:
        if name in PROCESSES:
            result = bench_process(name, args.data_root, args.rounds)
        else:
            recipe = sized(name.removesuffix(" epochs"))
            ensemble = recipe.model_args.get("num_saes", 1) > 1  # takes long
            count = min(args.images, 30 * recipe.batch_size) if ensemble else args.images
            result = bench_recipe(recipe, args.data_root, count, args.rounds, args.amp)
            result |= bench_memory(recipe, args.data_root)
        results[result["recipe"]] = result
        print(format_results([result]).splitlines()[-1], file=sys.stderr, flush=True)
        write_json(RESULTS, {"machine": machine, "results": list(results.values())})
    whole = [name for name in results if name.endswith("whole process")]  # a table of their own: other columns
    tables = [[results[name] for name in names] for names in ([n for n in results if n not in whole], whole)]
    print("\n\n".join([f"{machine}, medians", *(format_results(table) for table in tables if table)]))


if __name__ == "__main__":
    cli.run(main)
