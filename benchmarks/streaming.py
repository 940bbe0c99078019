"""Images that do not fit into memory: what reading them from their file costs, and the memory that it takes.

Makes a .npy file of MNIST's images, each moved by a few pixels and with noise on it (10 million are 8 GB), in a folder
that is deleted in the end. On the first `--held` of them `ae_pca.py` and an epoch of `ae_train.py` run with --stream on
and off in turn; then they run on the whole file, none of which is in the system's cache when they start. Every run is a
process; its own memory (RssAnon, so without pages of files) is looked at twenty times a second. Needs Linux and the
real MNIST (--data-root). Writes streaming.json beside this file, or where --output says.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from autoencoders.data.sets import load_images  # noqa: E402
from autoencoders.data.stream import BlockOrder  # noqa: E402
from autoencoders.runtime import cli  # noqa: E402
from autoencoders.runtime.device import machine_name  # noqa: E402
from autoencoders.runtime.errors import RunError  # noqa: E402
from autoencoders.runtime.files import read_json, write_json  # noqa: E402

_BLOCK = 10_000  # images made at a time
_PIXELS = 784


def make(path: Path, images: np.ndarray, count: int) -> None:
    """Write `count` images (count, 28, 28) uint8: those given, in another order every time, moved and with noise."""
    random = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 28, 28))
    for start in range(0, count, _BLOCK):
        block = file[start : start + _BLOCK]
        block[:] = images[random.integers(0, len(images), len(block))].reshape(-1, 28, 28)
        block[:] = np.roll(block, tuple(random.integers(-2, 3, 2)), axis=(1, 2))
        block |= random.integers(0, 16, block.shape, dtype=np.uint8)
    file.flush()


def forget(path: Path) -> None:
    """Have the system drop the file from its cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def watched(*command: object) -> tuple[float, float]:
    """Seconds that a script takes, and the megabytes of memory of its own at its largest."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=HERE.parent, stdout=said, stderr=said)
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))])
            time.sleep(0.05)
        said.seek(0)
        if process.returncode:
            raise RunError(f"{command[0]}: ended with status {process.returncode}: {said.read()[-500:]}")
    return time.perf_counter() - start, peak / 1024


def measure(name: str, path: Path, count: int, stream: str, folder: Path) -> dict[str, float]:
    """Images a second (of `ae_pca.py` as a whole, of a recipe in its loop) and peak memory in MB of one run."""
    flags = ("--dataset", path, "--stream", stream, "--output-dir", folder / "out")
    if name == "ae_pca.py":
        seconds, peak = watched(name, *flags, "--max-samples", count)
        return {"images_per_second": 0.9 * count / seconds, "peak_mb": peak}
    _, peak = watched("ae_train.py", *flags, "--recipe", name, "--code-size", 154, "--epochs", 1, "--device", "cpu")
    metrics = read_json(folder / "out" / "run.json", "run it again")["metrics"]
    return {"images_per_second": metrics["images_per_second"], "peak_mb": peak}


def compare(name: str, small: Path, held: int, large: Path, count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Both ways in turn on the images of the small file, then the large one; medians over the rounds."""
    found: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    for _ in range(rounds):
        for stream, runs in found.items():
            runs.append(measure(name, small, held, stream, folder))
    rate = {s: statistics.median(run["images_per_second"] for run in runs) for s, runs in found.items()}
    ratios = [on["images_per_second"] / off["images_per_second"] for on, off in zip(found["on"], found["off"])]
    forget(large)
    return {
        "run": name, "held": held, "in_memory": rate["off"], "streamed": rate["on"], "ratio": statistics.median(ratios),
        "in_memory_mb": max(run["peak_mb"] for run in found["off"]),
        "streamed_mb": max(run["peak_mb"] for run in found["on"]), "images": count,
        "large": measure(name, large, count, "on", folder),
    }  # fmt: skip


def blocks(path: Path, count: int) -> list[dict[str, float]]:
    """What a block's size costs and gives: reading speed, and how well an epoch's batches of 256 are mixed.

    A file whose labels are ten runs one after the other is the worst case: `label_spread` is the standard deviation of
    the number of images of a label in a batch, 4.8 where the order is uniform.
    """
    rows = []
    for size in (2**12, 2**14, 2**16, 2**18, 2**20):
        images, pool, block = max(1, size // _PIXELS), 2**26 // size, bytearray(size)
        order = torch.cat(list(BlockOrder(count, images, pool, 256, 0, 0))).numpy()
        when = np.empty(count)
        when[order] = np.arange(count)
        labels = order[: count // 256 * 256].reshape(-1, 256) * 10 // count
        forget(path)
        read, start = 0, time.perf_counter()
        with path.open("rb", buffering=0) as file:
            numbers = np.random.default_rng(0).permutation(path.stat().st_size // size)
            for first in range(0, len(numbers), pool):
                for number in np.sort(numbers[first : first + pool]):
                    file.seek(int(number) * size)
                    read += file.readinto(block)
                if time.perf_counter() - start > 10:
                    break
        rows.append({
            "block_kb": size / 1024, "mb_per_second": read / 1e6 / (time.perf_counter() - start),
            "neighbours_in_a_batch": float(np.mean(np.diff(when // 256) == 0)), "uniform": 255 / (count - 1),
            "label_spread": float((labels[:, :, None] == np.arange(10)).sum(axis=1).std()),
            "correlation": float(np.corrcoef(np.arange(count), when)[0, 1]),
        })  # fmt: skip
    return rows


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row of `compare` for people."""
    return {
        "run": row["run"], f"in memory, images/s ({row['held']:,})": f"{row['in_memory']:,.0f}",
        "streamed": f"{row['streamed']:,.0f}", "ratio": f"{row['ratio']:.1%}",
        "in memory, MB": f"{row['in_memory_mb']:,.0f}", "streamed, MB": f"{row['streamed_mb']:,.0f}",
        f"streamed, images/s ({row['images']:,})": f"{row['large']['images_per_second']:,.0f}",
        "MB": f"{row['large']['peak_mb']:,.0f}",
    }  # fmt: skip


def markdown(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__, dry_run=False)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--images", type=cli.integer(2000), default=10_204_081, help="of the large file")
    parser.add_argument("--held", type=cli.integer(2000), default=300_000, help="compared with the same in memory")
    parser.add_argument("--rounds", type=cli.integer(1), default=3)
    parser.add_argument("--only", default="ae_pca.py,simple,symmetric", help="comma-separated")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    parser.add_argument("--output", type=Path, default=HERE / "streaming.json")
    return parser


def main() -> None:
    args = parser().parse_args()
    held = min(args.held, args.images)
    mnist = load_images("mnist", args.data_root).train_images
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make(folder / "large.npy", mnist, args.images)
        np.save(folder / "small.npy", np.load(folder / "large.npy", mmap_mode="r")[:held])
        sizes, rows = blocks(folder / "large.npy", args.images), []
        for run in filter(None, args.only.split(",")):
            files = folder / "small.npy", held, folder / "large.npy", args.images
            rows.append(compare(run, *files, args.rounds, folder))
            print(markdown([shown(rows[-1])]), file=sys.stderr, flush=True)
            # what was measured survives an interruption
            write_json(args.output, {"machine": machine_name(), "blocks": sizes, "results": rows})
    print(f"{machine_name()}\n")
    print(markdown([{name: f"{value:.5g}" for name, value in row.items()} for row in sizes]))
    print(f"\nmedians of {args.rounds} rounds\n")
    print(markdown([shown(row) for row in rows]))


if __name__ == "__main__":
    cli.run(main)
