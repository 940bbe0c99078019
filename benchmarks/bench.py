"""The suite's training loop against the plain loop everyone knows, side by side, as ratios.

Each round trains the same recipe on the same images with the plain loop (torchvision's data set, ToTensor and
Normalize image by image through a DataLoader, unfused Adam, .item() every step), with ours in fp32 and with ours in
mixed precision, in turn and in one process; medians over the rounds are reported, since a shared machine drifts.
The matrix products alone, of the very shapes that the recipe multiplies, are timed in the same rounds: what no
training loop can go below. Needs the real MNIST (--data-root).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from plain_sparse import PlainEnsemble  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402

from ae_data import load_images  # noqa: E402
from ae_loop import Trainer  # noqa: E402
from ae_models import VAE, Autoencoder  # noqa: E402
from ae_recipes import RECIPES, Recipe  # noqa: E402
from ae_runtime import Precision, keep_freed_memory  # noqa: E402
from ae_sparse import SparseEnsemble  # noqa: E402

CPU = torch.device("cpu")
Work = Callable[[], object]


def plain_loss(model: Autoencoder, recipe: Recipe, x: Tensor) -> Tensor:
    """The recipe's loss as its write-up computes it: from the decoder's output, not from logits."""
    if isinstance(model, VAE):
        hidden = model.encoder(x)
        mean, logvar = model.mean(hidden), model.logvar(hidden)
        output = model.decode(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar))
        kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp()) / len(x)
        return F.binary_cross_entropy(output, x, reduction="sum") / len(x) + model.beta * kl
    noise = recipe.model_args["noise_factor"]
    output, _ = model(torch.clamp(x + noise * torch.randn_like(x), 0.0, 1.0) if noise else x)
    if recipe.model_args["loss"] == "bce":
        return F.binary_cross_entropy(output, (x + 1) / 2, reduction="sum") / len(x)
    return F.mse_loss(output, x)


def plain_epoch(recipe: Recipe, root: Path, count: int) -> Work:
    """One epoch over `count` images by the plain loop, ready to be called."""
    model = build(recipe)
    steps: list[Callable[[Any], Any]] = [transforms.ToTensor()]
    if model.input_range == "signed":
        steps.append(transforms.Normalize((0.5,), (0.5,)))
    images = datasets.MNIST(str(root), train=True, transform=transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(images, range(count)), batch_size=recipe.batch_size, shuffle=True
    )
    if isinstance(model, SparseEnsemble):
        ensemble = PlainEnsemble()
        return lambda: [ensemble.step(x.view(len(x), -1)) for x, _ in loader]
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)

    def epoch() -> None:
        total = 0.0
        for x, _ in loader:
            loss = plain_loss(model, recipe, x.view(len(x), -1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()

    return epoch


def our_epoch(recipe: Recipe, root: Path, count: int, amp: str) -> Work:
    """One epoch over `count` images by the suite's own loop."""
    images = load_images("mnist", root)
    train, test = images.train_images[:count], images.test_images[:1]
    endless = recipe.override({"epochs": 1000})
    epochs = Trainer(build(recipe), endless, train, test, CPU, Precision(amp, CPU)).epochs()
    return lambda: next(epochs)


def products(recipe: Recipe) -> Work | None:
    """The matrix products of one step (forward, weight and input gradients), or None where there are others too."""
    model, batch = build(recipe), recipe.batch_size
    if isinstance(model, SparseEnsemble):  # each one's encoder and decoder
        layers = [weight for rows in model.weight.detach() for weight in (rows, rows.t().contiguous())]
    elif any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return None
    else:
        layers = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Linear)]
    pairs = [(torch.rand(batch, weight.shape[1]), weight, torch.rand(batch, weight.shape[0])) for weight in layers]

    def step() -> None:
        for x, weight, gradient in pairs:
            torch.mm(x, weight.t())
            torch.mm(gradient.t(), x)
            if x.shape[1] != recipe.pixels:  # nobody asks for the gradient of the pixels
                torch.mm(gradient, weight)

    return step


def build(recipe: Recipe) -> Autoencoder:
    torch.manual_seed(recipe.seed)
    return recipe.build()


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bench_recipe(recipe: Recipe, root: Path, count: int, rounds: int, mixed: bool) -> dict[str, Any]:
    """Medians over the rounds, and the ratios of each round's neighbours."""
    contestants = {"plain": plain_epoch(recipe, root, count), "ours": our_epoch(recipe, root, count, "off")}
    if mixed:
        contestants["ours, amp"] = our_epoch(recipe, root, count, "on")
    matrix = products(recipe)
    if matrix:
        steps = -(-count // recipe.batch_size)
        contestants["products"] = lambda: [matrix() for _ in range(steps)]
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name, work in contestants.items():
            taken = seconds(work)
            if round_number:  # the first round warms up
                times[name].append(taken)
    result: dict[str, Any] = {"recipe": recipe.name, "images": count, "rounds": rounds, "seconds": times}
    for name in contestants.keys() - {"plain"}:
        base = "ours" if name == "products" else "plain"
        result[f"{base} / {name}"] = statistics.median(a / b for a, b in zip(times[base], times[name]))
    for name in contestants.keys() - {"products"}:
        result[f"{name}: images a second"] = count / statistics.median(times[name])
    return result


def bench_pca(root: Path, rounds: int) -> dict[str, Any]:
    """ae_pca.py as a process against one that loads image by image and fits the same PCA, in turn."""
    python = sys.executable
    ours = [python, str(HERE.parent / "ae_pca.py"), "--data-root", str(root), "--output-dir", "OUT"]
    commands = {"plain": [python, str(HERE / "plain_pca.py"), str(root)], "ours": ours}
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        ours[-1] = folder
        for round_number in range(rounds + 1):
            for name, command in commands.items():
                taken = seconds(partial(subprocess.run, command, check=True, capture_output=True))
                if round_number:
                    times[name].append(taken)
    ratio = statistics.median(a / b for a, b in zip(times["plain"], times["ours"]))
    return {"recipe": "ae_pca.py", "rounds": rounds, "seconds": times, "plain / ours": ratio}


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    columns = {
        "plain: images a second": ",.0f", "ours: images a second": ",.0f", "plain / ours": ".2f",
        "plain / ours, amp": ".2f", "ours / products": ".2f",
    }  # fmt: skip
    lines = ["| | plain, images/s | ours, images/s | plain / ours | plain / ours, amp | ours / products |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for result in results:
        cells = [format(result[column], style) if column in result else "" for column, style in columns.items()]
        lines.append(f"| {result['recipe']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def processor() -> str:
    """The processor's type and the number of cores, as the table names the machine."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line] or [platform.processor()]
    return f"{names[0]}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--only", default=",".join(("ae_pca.py", *RECIPES)), help="comma-separated rows")
    parser.add_argument("--images", type=int, default=12_800, help="images of an epoch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: %(default)s)")
    parser.add_argument("--amp", action="store_true", help="time mixed precision too (worth it with bf16 units)")
    args = parser.parse_args()
    keep_freed_memory()
    results = []
    for name in args.only.split(","):
        if name == "ae_pca.py":
            results.append(bench_pca(args.data_root, args.rounds))
        else:
            recipe = RECIPES[name] if RECIPES[name].code_size else RECIPES[name].override({"code_size": 154})
            results.append(bench_recipe(recipe, args.data_root, args.images, args.rounds, args.amp))
        print(table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    machine = {"processor": processor(), "torch": torch.__version__, "system": platform.system()}
    (HERE / "results.json").write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    print(f"{machine['processor']}, torch {machine['torch']}, medians of {args.rounds} rounds\n\n{table(results)}")


if __name__ == "__main__":
    main()
