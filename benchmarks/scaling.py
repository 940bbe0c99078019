"""How time and memory grow with the images, the width, the code size, the autoencoders and the threads, as one figure.

Each point is a process: ours is `ae_train.py`, beside it the peer of peers.py that comes closest. Both train one epoch
with batches of 128 on the same files; the rounds are interleaved, and a point is the median. A set larger than 60,000
repeats MNIST's images; ours is streamed from a file above 600,000 images, where the peer's floats do not fit into
memory. Writes scaling.json and docs/scaling.png. Needs a machine with nothing else running, and 5 GB of disk.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from autoencoders.data.images import ImageSet
from autoencoders.data.sets import load_images
from autoencoders.reproduction.runs import machine_name
from autoencoders.runtime import cli
from autoencoders.runtime.files import read_json, write_atomic, write_json
from benchmarks.common import run_python
from benchmarks.figures import growth_panels
from benchmarks.peers import environment, run_peer
from benchmarks.streaming import make_images

HERE = Path(__file__).resolve().parent
IN_MEMORY = 600_000  # images: their floats, as the peers need them, are 2 GB
Point = dict[str, float]  # microseconds_per_image, peak_mb


@dataclass(frozen=True)
class Axis:
    """What grows; `{}` in the flags of `ae_train.py` and of `peer_runs.py` stands for its value."""

    title: str
    values: tuple[int, ...]
    ours: tuple[str, ...]
    peer: str
    theirs: tuple[str, ...]


_THREADS = tuple(sorted({1, 2, os.cpu_count() or 1}))
AXES = {
    "images": Axis("training images", (6_000, 60_000, 600_000, 6_000_000), ("simple",), "sklearn", ("simple",)),
    "width": Axis("hidden width", (250, 500, 1000, 2500, 5000), ("symmetric", "--hidden-sizes", "{}"), "sklearn",
                  ("simple", "--widths", "784,{},154")),
    "code": Axis("code size", (16, 64, 256, 1024), ("symmetric", "--code-size", "{}"), "sklearn",
                 ("simple", "--widths", "784,2500,{}")),
    "autoencoders": Axis("autoencoders", (1, 2, 5, 10), ("sparse", "--consistency-weight", "0", "--revive", "off",
                         "--num-saes", "{}"), "sae_lens", ("sparse", "--members", "{}")),
    "threads": Axis("threads", _THREADS, ("symmetric",), "sklearn", ("simple", "--widths", "784,2500,154")),
}  # fmt: skip


def write_idx(root: Path, images: ImageSet, count: int) -> Path:
    """MNIST's four IDX files with `count` training images, which repeat, and the first 1,000 test images."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": (images.train_images, images.train_labels, count),
             "t10k": (images.test_images, images.test_labels, 1000)}  # fmt: skip
    for part, (pixels, labels, number) in parts.items():
        for name, rank, values in (("images", 3, pixels), ("labels", 1, labels)):
            sizes = (number, 28, 28)[:rank]
            head = bytes((0, 0, 8, rank)) + b"".join(size.to_bytes(4, "big") for size in sizes)
            repeated = np.resize(values[:], (number, *values.shape[1:]))
            (folder / f"{part}-{name}-idx{rank}-ubyte").write_bytes(head + repeated.tobytes())
    return root


def with_value(flags: tuple[str, ...], value: int) -> list[str]:
    return [flag.replace("{}", str(value)) for flag in flags]


def run_ours(axis: Axis, value: int, data: list[Any], count: int, threads: str) -> Point:
    """One epoch by `ae_train.py` on `count` images."""
    with tempfile.TemporaryDirectory() as folder:
        code = [] if "--code-size" in axis.ours or axis.ours[0] != "symmetric" else ["--code-size", 154]
        done = run_python("ae_train.py", "--recipe", *with_value(axis.ours, value), *code, *data, "--epochs", 1,
                          "--batch-size", 128, "--device", "cpu", "--output-dir", folder, "--quiet",
                          OMP_NUM_THREADS=threads)  # fmt: skip
        seconds = read_json(Path(folder) / "run.json", "")["seconds"]
    return {"microseconds_per_image": 1e6 * seconds / count, "peak_mb": done.peak / 1e6}


def run_theirs(axis: Axis, value: int, python: Path, root: Path, threads: str) -> Point:
    """The same by the peer."""
    model, *flags = with_value(axis.theirs, value)
    found = run_peer(axis.peer, model, python, root, 1, flags, threads)
    return {"microseconds_per_image": 1e6 / found["images_per_second"], "peak_mb": found["peak"] / 1e6}


def measure(name: str, images: ImageSet, args: Any, folder: Path) -> dict[str, dict[int, Point]]:
    """The points of one axis, of ours and of the peer."""
    axis, python = AXES[name], environment(AXES[name].peer, args.output_dir)
    points: dict[str, dict[int, Point]] = {"ours": {}, "theirs": {}}
    for value in axis.values:
        count = value if name == "images" else args.images
        threads = str(value if name == "threads" else os.cpu_count())
        streamed = count > IN_MEMORY
        if streamed:
            make_images(folder / "images.npy", images.train_images[:], count + 10_000)
            data = ["--dataset", folder / "images.npy", "--stream", "on"]
        else:
            data = ["--data-root", write_idx(folder, images, count), "--dataset", "mnist"]
        rounds: dict[str, list[Point]] = {"ours": [], "theirs": []}
        for _ in range(1 if count >= IN_MEMORY else args.rounds):
            rounds["ours"].append(run_ours(axis, value, data, count, threads))
            if not streamed:
                rounds["theirs"].append(run_theirs(axis, value, python, folder, threads))
        for side, found in rounds.items():
            if found:
                points[side][value] = {key: median(point[key] for point in found) for key in found[0]}
                print(f"{axis.title} {value}, {side}: {points[side][value]}", file=sys.stderr, flush=True)
    return points


def format_points(axes: dict[str, Any]) -> str:
    """A row for each point."""
    rows = []
    for name, points in axes.items():
        for value, ours in points["ours"].items():
            theirs = points["theirs"].get(value)
            cells = [f"{ours['microseconds_per_image']:.0f}", f"{ours['peak_mb']:,.0f}"]
            cells += [f"{theirs['microseconds_per_image']:.0f}", f"{theirs['peak_mb']:,.0f}"] if theirs else ["", ""]
            lead = theirs["microseconds_per_image"] / ours["microseconds_per_image"] if theirs else None
            rows.append((AXES[name].title, f"{int(value):,}", AXES[name].ours[0], *cells[:2], AXES[name].peer,
                         *cells[2:], f"{lead:.2f}" if lead else ""))  # fmt: skip
    head = ("what grows", "value", "recipe", "ours, µs an image", "ours, peak MB", "peer", "peer, µs an image",
            "peer, peak MB", "ours is faster by")  # fmt: skip
    return cli.format_table(head, rows, markdown=True)


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--only",
        type=cli.items(cli.one_of(AXES)),
        default=tuple(AXES),
        metavar="AXIS",
        help=f"of {', '.join(AXES)} (default: all)",
    )
    parser.add_argument("--images", type=cli.integer(1), default=12_800, help="images of every other axis")
    parser.add_argument("--rounds", type=cli.integer(1), default=3, help="runs of each point, of 600,000 images one")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where MNIST is")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/peers"), help="the environments of peers.py")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results, machine = HERE / "scaling.json", machine_name()
    before = read_json(results, "") if results.exists() else {}
    facts = {"machine": machine, "images": args.images, "rounds": args.rounds}
    axes = before["axes"] if all(before.get(name) == value for name, value in facts.items()) else {}
    images = load_images("mnist", args.data_root)
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            points = measure(name, images, args, Path(folder))
        axes[name] = {side: {str(value): point for value, point in its.items()} for side, its in points.items()}
        write_json(results, {**facts, "axes": axes})
    axes = {name: axes[name] for name in AXES if name in axes}
    picture = growth_panels({AXES[name].title: its for name, its in axes.items()}, f"Training on a CPU: {machine}")
    write_atomic(HERE.parent / "docs" / "scaling.png", picture)
    print(f"{machine}; medians\n\n{format_points(axes)}")


if __name__ == "__main__":
    cli.run(main)
