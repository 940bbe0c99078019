"""What the benchmarks share: Python programs as processes, with their times and memory, and recipes to time."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoencoders.data.images import ImageSet
from autoencoders.recipes import RECIPES, Recipe
from autoencoders.reproduction.claims import CLAIMS
from autoencoders.runtime.errors import RunError
from autoencoders.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
# The recipes of the README's table: all but those that answer the papers' numbers, which train for much longer.
SYSTEMS = tuple(name for name, row in RECIPES.items() if name in CLAIMS or row.source == "ours")


@dataclass
class Finished:
    """A finished process."""

    seconds: float
    lines: list[tuple[float, str]]  # of stdout, each with the seconds since the start
    peak: int  # largest resident memory in bytes (Linux)
    peak_own: int  # the same without pages of files

    def seconds_until(self, text: str) -> float:
        """Seconds from the start to the first line that contains `text`."""
        return next(seconds for seconds, line in self.lines if text in line)


def run_python(
    *arguments: Any, on_line: Callable[[str], Any] = str, python: Path | str = sys.executable, **environment: str
) -> Finished:
    """Run Python in the repository's folder, calling `on_line` with each line of its stdout; RunError if it fails."""
    start, lines, peaks = time.perf_counter(), [], {"VmHWM": 0, "RssAnon": 0}
    command = [str(python), "-u", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environment}
        ) as process:
            assert process.stdout
            threading.Thread(target=_watch_memory, args=(process, peaks), daemon=True).start()
            for line in process.stdout:
                lines.append((time.perf_counter() - start, line))
                on_line(line)
        seconds = time.perf_counter() - start
        errors.seek(0)
        if process.returncode:
            raise RunError(f"{' '.join(command[2:])}: ended with status {process.returncode}: {errors.read()[-500:]}")
    return Finished(seconds, lines, peaks["VmHWM"], peaks["RssAnon"])


def _watch_memory(process: "subprocess.Popen[str]", peaks: dict[str, int]) -> None:
    """Record the largest values of the process's /proc status, in bytes, while it lives.

    The peak that the system reports of an ended child would include ours, from before it became another program.
    """
    status = Path(f"/proc/{process.pid}/status")
    with contextlib.suppress(OSError):
        while process.poll() is None:
            for name, kilobytes in re.findall(r"(VmHWM|RssAnon):\s+(\d+)", status.read_text()):
                peaks[name] = max(peaks[name], 1024 * int(kilobytes))
            time.sleep(0.02)


def sized(name: str, **settings: Any) -> Recipe:
    """The recipe called `name` with some settings changed; a code that PCA would size has 154 numbers, as on MNIST."""
    row = RECIPES[name]
    return row.override({} if row.code_size else {"code_size": 154}).override(settings)


def make_trainer(recipe: Recipe, images: np.ndarray, amp: str = "off") -> Trainer:
    """A trainer on the CPU with training images (n, 784) uint8, the first of which is its only test image."""
    labels = np.zeros(len(images), np.uint8)
    return Trainer(recipe, ImageSet("bench", "bench", images, labels, images[:1], labels[:1]), "cpu", amp)
