"""Speed and memory of training on images in a file that is larger than memory.

Makes a .npy file of MNIST's images, each shifted by a few pixels and with noise (10 million are 8 GB), in a folder that
is deleted at the end. On the first `--held` of them ae_pca.py and one epoch of ae_train.py run with --stream on and off
in turn; then they run on the whole file, which is not in the system's cache when they start. Each run is a process
whose own memory (RssAnon, so without pages of files) is sampled twenty times per second. Needs Linux and the real MNIST
(--data-root). Writes streaming.json beside this file, or to --output.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from autoencoders.data.batches import POOL, cut, pools
from autoencoders.data.images import MappedImages
from autoencoders.data.sets import load_images
from autoencoders.reproduction.runs import machine_name
from autoencoders.runtime import cli
from autoencoders.runtime.files import read_json, write_json
from benchmarks.common import run_python

HERE = Path(__file__).resolve().parent
_CHUNK = 10_000  # images made at a time
_PIXELS, _BATCH = 784, 256


def make_images(path: Path, mnist: np.ndarray, count: int) -> None:
    """Write `count` images (count, 28, 28) uint8: MNIST's in random order, shifted and with noise."""
    random = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 28, 28))
    for start in range(0, count, _CHUNK):
        chunk = file[start : start + _CHUNK]
        chunk[:] = mnist[random.integers(0, len(mnist), len(chunk))].reshape(-1, 28, 28)
        chunk[:] = np.roll(chunk, tuple(random.integers(-2, 3, 2)), axis=(1, 2))
        chunk |= random.integers(0, 16, chunk.shape, dtype=np.uint8)
    file.flush()


def drop_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(name: str, path: Path, count: int, stream: str, folder: Path) -> dict[str, float]:
    """Images per second (of ae_pca.py as a whole, of a recipe in its loop) and peak memory in MB of one run."""
    flags = ("--dataset", path, "--stream", stream, "--output-dir", folder / "out")
    if name == "ae_pca.py":
        run = run_python(name, *flags, "--max-samples", count)
        images = count - min(count // 10, 10_000)
        return {"images_per_second": images / run.seconds, "peak_mb": run.peak_own / 1e6}
    run = run_python("ae_train.py", *flags, "--recipe", name, "--code-size", 154, "--epochs", 1, "--device", "cpu")
    metrics = read_json(folder / "out" / "run.json", "run it again")["metrics"]
    return {"images_per_second": metrics["images_per_second"], "peak_mb": run.peak_own / 1e6}


def compare(name: str, small: Path, held: int, large: Path, count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """The small file in memory and streamed in turn, then the large file streamed; medians over the rounds."""
    runs: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    for _ in range(rounds):
        for stream in runs:
            runs[stream].append(measure(name, small, held, stream, folder))
    rates = {stream: [run["images_per_second"] for run in found] for stream, found in runs.items()}
    peaks = {stream: max(run["peak_mb"] for run in found) for stream, found in runs.items()}
    drop_from_cache(large)
    return {
        "run": name, "held": held, "in_memory": statistics.median(rates["off"]),
        "streamed": statistics.median(rates["on"]),
        "ratio": statistics.median(on / off for on, off in zip(rates["on"], rates["off"])),
        "in_memory_mb": peaks["off"], "streamed_mb": peaks["on"],
        "images": count, "large": measure(name, large, count, "on", folder),
    }  # fmt: skip


def measure_blocks(path: Path, count: int, folder: Path) -> list[dict[str, float]]:
    """Reading speed and mixing for several block sizes.

    The worst file is sorted by label: `label_spread` is the standard deviation of the number of images of one of ten
    labels in a batch of 256, 4.8 in a uniform order. `neighbours_in_a_batch` is the share of neighbours in the file
    that meet in a batch, `correlation` that of the position in the file and in the epoch.
    """
    rows, large = [], MappedImages(path, np.arange(count, dtype=np.int32), _PIXELS)
    np.save(folder / "numbers.npy", np.arange(count, dtype="<u4").view(np.uint8).reshape(count, 4))
    numbers = MappedImages(folder / "numbers.npy", large.rows, 4)  # the pixels of an image are its number
    for size in (2**12, 2**14, 2**16, 2**18, 2**20):
        block, pool = max(1, size // _PIXELS), POOL // _PIXELS
        drop_from_cache(path)
        read, start = 0, time.perf_counter()
        for images in pools(large, 0, 0, block_bytes=size):
            read += images.nbytes
            if (seconds := time.perf_counter() - start) > 10:
                break
        order = [np.ascontiguousarray(x).view("<u4").ravel() for x in pools(numbers, 0, 0, 0, 4 * block, 4 * pool)]
        batches = np.stack([batch for batch in cut(order, _BATCH) if len(batch) == _BATCH])
        position = np.empty(count)
        position[np.concatenate(order)] = np.arange(count)
        labels = batches.astype(np.int64) * 10 // count
        rows.append({
            "block_kb": size / 1024, "mb_per_second": read / 1e6 / seconds,
            "neighbours_in_a_batch": float(np.mean(np.diff(position // _BATCH) == 0)),
            "uniform": (_BATCH - 1) / (count - 1),
            "label_spread": float((labels[:, :, None] == np.arange(10)).sum(axis=1).std()),
            "correlation": float(np.corrcoef(np.arange(count), position)[0, 1]),
        })  # fmt: skip
    return rows


def format_comparison(rows: list[dict[str, Any]]) -> str:
    header = ("run", f"in memory, images/s ({rows[0]['held']:,})", "streamed", "ratio", "in memory, MB",
              "streamed, MB", f"streamed, images/s ({rows[0]['images']:,})", "MB")  # fmt: skip
    cells = [(row["run"], f"{row['in_memory']:,.0f}", f"{row['streamed']:,.0f}", f"{row['ratio']:.0%}",
              f"{row['in_memory_mb']:,.0f}", f"{row['streamed_mb']:,.0f}",
              f"{row['large']['images_per_second']:,.0f}", f"{row['large']['peak_mb']:,.0f}")
             for row in rows]  # fmt: skip
    return cli.format_table(header, cells, markdown=True)


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where MNIST is")
    parser.add_argument("--images", type=cli.integer(2000), default=10_204_081, help="images of the large file")
    parser.add_argument("--held", type=cli.integer(2000), default=300_000, help="images compared with memory")
    parser.add_argument("--rounds", type=cli.integer(1), default=3, help="runs of each kind on these")
    parser.add_argument("--only", type=cli.items(str), action=cli.ListAction, metavar="NAME",
                        default=("ae_pca.py", "simple", "symmetric"), help="scripts and recipes")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the temporary folder)")
    parser.add_argument("--output", type=Path, default=HERE / "streaming.json", help="where the results go")
    return parser


def main() -> None:
    args = parser().parse_args()
    held = min(args.held, args.images)
    mnist = load_images("mnist", args.data_root).train_images
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make_images(folder / "large.npy", mnist[:], args.images)
        np.save(folder / "small.npy", np.load(folder / "large.npy", mmap_mode="r")[:held])
        blocks, rows = measure_blocks(folder / "large.npy", args.images, folder), []
        for run in filter(None, args.only):
            files = folder / "small.npy", held, folder / "large.npy", args.images
            rows.append(compare(run, *files, args.rounds, folder))
            print(format_comparison(rows[-1:]), file=sys.stderr, flush=True)
            # Results so far survive an interruption.
            write_json(args.output, {"machine": machine_name(), "blocks": blocks, "results": rows})
    print(f"{machine_name()}\n")
    print(cli.format_table(list(blocks[0]), [[f"{v:.5g}" for v in row.values()] for row in blocks], markdown=True))
    if rows:
        print(f"\nmedians of {args.rounds} rounds\n\n{format_comparison(rows)}")


if __name__ == "__main__":
    cli.run(main)
