"""What an epoch costs as the work grows: images, width, autoencoders, batch size and threads, as one figure.

Called by `bench.py`. A point is the median of three timed stretches of the suite's own loop in this process; over the
number of images it is one whole epoch.
"""

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain import build

from autoencoders.data.sets import load_images
from figures import scaling_panels
from autoencoders.recipes import RECIPES
from autoencoders.runtime.device import Precision
from autoencoders.runtime.files import write_atomic
from autoencoders.training.trainer import Trainer

CPU = torch.device("cpu")
_STEPS = 12  # a timed stretch


def cost(name: str, images: np.ndarray, **settings: Any) -> float:
    """Microseconds an image in the loop, over stretches of an epoch's first steps."""
    recipe = RECIPES[name].override({**({} if RECIPES[name].code_size else {"code_size": 154}), **settings})
    stretch = images[: _STEPS * recipe.batch_size]
    trainer = Trainer(build(recipe), recipe.override({"epochs": 100}), stretch, images[:1], CPU, Precision("off", CPU))
    rows = trainer.epochs()
    next(rows)  # warms up
    return statistics.median(1e6 * float(next(rows)["seconds"]) / len(stretch) for _ in range(3))


def epoch_seconds(name: str, images: np.ndarray, count: int) -> float:
    """Seconds of one whole epoch over `count` images, repeated as often as that needs."""
    recipe = RECIPES[name].override({"epochs": 1})
    many = np.resize(images, (count, images.shape[1]))
    trainer = Trainer(build(recipe), recipe, many, images[:1], CPU, Precision("off", CPU))
    start = time.perf_counter()
    next(trainer.epochs())
    return time.perf_counter() - start


def main(root: Path, machine: str) -> None:
    """Measure, and write scaling.json and scaling.png beside this file."""
    images, threads = load_images("mnist", root).train_images, torch.get_num_threads()
    many = np.resize(images, (60_000, images.shape[1]))
    counts = (6_000, 20_000, 60_000, 200_000, 600_000)
    widths, batches, ensembles = (250, 500, 1000, 2500, 5000), (32, 64, 128, 256, 512, 1024), (1, 2, 3, 5, 8)
    panels: dict[str, Any] = {
        "images|seconds an epoch|simple": {n: epoch_seconds("simple", images, n) for n in counts},
        "hidden width|microseconds an image|symmetric": {w: cost("symmetric", many, hidden_sizes=(w,)) for w in widths},
        "batch size|microseconds an image|symmetric": {b: cost("symmetric", many, batch_size=b) for b in batches},
        "autoencoders|microseconds an image|sparse": {s: cost("sparse", many, num_saes=s) for s in ensembles},
    }
    by_threads = {}
    for number in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(number)
        by_threads[number] = cost("symmetric", many)
    torch.set_num_threads(threads)
    panels["threads|microseconds an image|symmetric"] = by_threads
    here = Path(__file__).resolve().parent
    write_atomic(here / "scaling.json", json.dumps({"machine": machine, "panels": panels}, indent=1).encode() + b"\n")
    write_atomic(here / "scaling.png", scaling_panels(panels, f"Cost of training, fp32, {machine}"))
