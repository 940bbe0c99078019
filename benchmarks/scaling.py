"""The cost of an epoch as the work grows: images, width, autoencoders, batch size and threads, as one figure.

Called by `bench.py`. A point is the median of three timed stretches of the suite's own loop in this process; over the
number of images it is one complete epoch.
"""

import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoencoders.data.sets import load_images
from autoencoders.runtime.files import write_atomic, write_json
from benchmarks.common import make_trainer, sized
from benchmarks.figures import scaling_panels

_STEPS = 12  # of a timed stretch
COUNTS = (6_000, 20_000, 60_000, 200_000, 600_000)


def cost(name: str, images: np.ndarray, **settings: Any) -> float:
    """Microseconds per image in the loop, over stretches of an epoch's first steps."""
    recipe = sized(name, epochs=100, **settings)
    stretch = images[: _STEPS * recipe.batch_size]
    rows = make_trainer(recipe, stretch).epochs()
    next(rows)  # warms up
    return statistics.median(1e6 * float(next(rows)["seconds"]) / len(stretch) for _ in range(3))


def epoch_seconds(name: str, images: np.ndarray, count: int) -> float:
    """Seconds of one complete epoch over `count` images, repeated as often as necessary."""
    trainer = make_trainer(sized(name, epochs=1), np.resize(images, (count, images.shape[1])))
    start = time.perf_counter()
    next(trainer.epochs())
    return time.perf_counter() - start


def cost_of_threads(images: np.ndarray) -> dict[int, float]:
    """The cost of `symmetric` for each number of threads up to that of cores."""
    threads, costs = torch.get_num_threads(), {}
    for number in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(number)
        costs[number] = cost("symmetric", images)
    torch.set_num_threads(threads)
    return costs


def measure(root: Path, machine: str) -> None:
    """Measure, and write scaling.json and scaling.png beside this file."""
    images = load_images("mnist", root).train_images[:]
    widths, batches, ensembles = (250, 500, 1000, 2500, 5000), (32, 64, 128, 256, 512, 1024), (1, 2, 3, 5, 8)
    panels: dict[str, Any] = {
        "training images|seconds per epoch|simple": {n: epoch_seconds("simple", images, n) for n in COUNTS},
        "hidden width|microseconds per image|symmetric": {
            w: cost("symmetric", images, hidden_sizes=(w,)) for w in widths
        },
        "batch size|microseconds per image|symmetric": {b: cost("symmetric", images, batch_size=b) for b in batches},
        "autoencoders|microseconds per image|sparse": {s: cost("sparse", images, num_saes=s) for s in ensembles},
        "threads|microseconds per image|symmetric": cost_of_threads(images),
    }
    write_json(Path(__file__).with_name("scaling.json"), {"machine": machine, "panels": panels})
    picture = scaling_panels(panels, f"Cost of training, fp32, {machine}")
    write_atomic(Path(__file__).with_name("scaling.png"), picture)
