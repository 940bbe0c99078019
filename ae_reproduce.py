"""Every published number, claimed beside measured: train all systems under their published settings and compare.

What was cut off is resumed, what stands there for the same settings and images is left alone (whatever code made it:
delete the folder after changing the code). Ends with a table, also as
reproduction.md, reproduction.json and reproduction.html in the output folder. Exit status 1 when a claim that should
hold does not. --study code-size asks instead from which code size on an autoencoder is worth it.
"""

import argparse
import csv
import hashlib
import itertools
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import ae_train
from autoencoders.data.sets import DATASETS, ImageSet, load_images, would_download
from autoencoders.evaluation.pca import fit_pca
from autoencoders.recipes import PUBLISHED, RECIPES, STUDIED, Recipe
from autoencoders.reproduction.claims import Claim
from autoencoders.runtime import cli
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import lock_folder, prepare_folder, write_atomic, write_json

REPRODUCED, FAILED, KNOWN, ELSEWHERE = "reproduced", "not reproduced", "not reproduced (known)", "not applicable"
_SMOKE = 10  # on a small image set, which nothing is claimed for, one epoch of this many is trained


# fmt: off
def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    shown = "(default: %(default)s)"
    parser.add_argument("--only", type=names, default=PUBLISHED, metavar="RECIPE,..",
                        help=f"systems to run (default: {','.join(PUBLISHED)})")
    parser.add_argument("--seeds", type=cli.integer(1, 10), default=1, metavar="N",
                        help=f"runs of each, with the recipe's seed and the next ones {shown}")
    parser.add_argument("--study", choices=("code-size",),
                        help=f"instead: test MSE of PCA, {' and '.join(STUDIED)} over --code-sizes (default: no study)")
    parser.add_argument("--code-sizes", type=code_sizes, default=(2, 4, 8, 16, 32, 64, 128, 256), metavar="N,N,..",
                        help="of the study (default: 2,4,8,16,32,64,128,256)")
    parser.add_argument("--dataset", choices=DATASETS, default="mnist",
                        help=f"on another one than mnist nothing is claimed; small ones are a smoke test {shown}")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help=f"where the images are {shown}")
    parser.add_argument("--device", default="auto", help=f"as of ae_train.py {shown}")
    parser.add_argument("--amp", choices=("auto", "on", "off"), default="auto", help=f"mixed precision {shown}")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/reproduction"),
                        help=f"where the runs and the reports go {shown}")
    return parser
# fmt: on


def code_sizes(text: str) -> tuple[int, ...]:
    """An argparse type: at least one code size."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected numbers separated by commas")
    return cli.sizes(text)


def names(text: str) -> tuple[str, ...]:
    """An argparse type: comma-separated names of recipes with a write-up."""
    chosen = tuple(name.strip() for name in text.split(","))
    for name in chosen:
        if name not in PUBLISHED:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PUBLISHED)}")
    return tuple(name for name in PUBLISHED if name in chosen)


@dataclass(frozen=True)
class Run:
    """One training of a recipe under further flags, and the folder it is kept in."""

    flags: tuple[str, ...]  # the recipe's name, then flags
    seed: int
    folder: Path
    common: tuple[str, ...]  # flags that every run shares: images, device, precision
    components: int  # what --code-size auto comes to

    @property
    def name(self) -> str:
        return " ".join(self.flags).replace("--", "")

    @property
    def command(self) -> str:
        """What a person types to train the same."""
        return " ".join(["python", "ae_train.py", "--recipe", *self.flags])

    @property
    def arguments(self) -> list[str]:
        """The flags of `ae_train.py`, all of them."""
        return ["--recipe", *self.flags, *self.common, "--seed", str(self.seed), "--output-dir", str(self.folder)]

    @property
    def args(self) -> argparse.Namespace:
        """What `ae_train.py` makes of them."""
        return ae_train.parser().parse_args(self.arguments)  # type: ignore[no-any-return]

    @property
    def recipe(self) -> Recipe:
        return ae_train.resolve(self.args)

    def record(self) -> dict[str, Any]:
        """What run.json says; UsageError or RunError when it is missing or damaged."""
        from autoencoders.training.checkpoint import read_record

        return read_record(self.folder)

    def history(self) -> list[dict[str, str]]:
        """The rows of history.csv."""
        return list(csv.DictReader((self.folder / "history.csv").read_text().splitlines()))


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    from autoencoders.reproduction.page import page, table
    from autoencoders.runtime.device import pick_device

    if args.study and (args.only != PUBLISHED or args.seeds != 1):
        raise UsageError("--study trains recipes of its own, one seed each; leave --only and --seeds out")
    pick_device(args.device)  # a mistake there is said before anything is written
    if args.dry_run and (first := would_download(args.dataset, args.data_root)):
        print(f"{first}, and the systems trained")
        return
    begun, images = time.monotonic(), load_images(args.dataset, args.data_root)
    if args.dry_run:
        runs = studied(args, images) if args.study else plan(args, images)
        for run in itertools.chain.from_iterable(runs.values()):
            print(f"{'Stands already' if stands(run, images) else 'Would train'}: {run.command} --seed {run.seed}")
        print(f"Would write the report into {args.output_dir} ({images.title})")
        return
    folder = prepare_folder(args.output_dir)
    with lock_folder(folder):
        if args.study:
            study(args, images)
            return
        report = reproduce(args, images) | {"seconds": round(time.monotonic() - begun, 1)}
        write_json(folder / "reproduction.json", report)
        write_atomic(folder / "reproduction.md", table(report).encode() + b"\n")
        write_atomic(folder / "reproduction.html", page(report, folder).encode())
    print(table(report))
    print(f"\nWrote reproduction.html, .md and .json into {folder} ({images.title}, {report['seconds']:.0f} s)")
    failed = [row["claim"] for row in report["rows"] if row["verdict"] == FAILED]
    if failed:
        raise RunError(f"{len(failed)} of {len(report['rows'])} claims not reproduced, see {folder}: {'; '.join(failed)}")


def reproduce(args: argparse.Namespace, images: ImageSet) -> dict[str, Any]:
    """Train what is missing, and hold every claim of the chosen recipes against it."""
    from autoencoders.figures import loss_panels
    from autoencoders.runtime.device import machine_name

    runs = plan(args, images)
    for run in itertools.chain.from_iterable(runs.values()):
        ensure(run, images)
    rows = [judge(name, claim, runs, images, args) for name in args.only for claim in RECIPES[name].claims]
    first = [seeds[0] for seeds in runs.values()]
    losses = {run.name: [(float(row["train_loss"]), float(row["test_loss"])) for row in run.history()] for run in first}
    write_atomic(args.output_dir / "loss_curves.png", loss_panels(losses, f"{images.title}: loss of every epoch"))
    return {
        "dataset": images.title, "fingerprint": images.fingerprint, "machine": machine_name(), "seeds": args.seeds,
        "precision": first[0].record()["precision"], "rows": rows,
        "systems": [
            {"name": run.name, "summary": run.recipe.summary, "command": run.command,
             "folder": run.folder.relative_to(args.output_dir).as_posix(), "seconds": run.record()["seconds"]}
            for run in first
        ],
    }  # fmt: skip


def plan(args: argparse.Namespace, images: ImageSet) -> dict[tuple[str, ...], list[Run]]:
    """The runs of every seed that the claims of the chosen recipes need, by their flags."""
    components = fit_pca(images).components_for(0.95)
    needed = [(name, *claim.flags) for name in args.only for claim in RECIPES[name].claims or (Claim("", ""),)]
    needed += [claim.against for name in args.only for claim in RECIPES[name].claims if claim.against]
    return {
        flags: [
            make_run(flags, RECIPES[flags[0]].seed + number, args, images, components) for number in range(args.seeds)
        ]
        for flags in dict.fromkeys(needed)
    }


def make_run(flags: tuple[str, ...], seed: int, args: argparse.Namespace, images: ImageSet, components: int) -> Run:
    """A run with its folder; on an image set that nothing is claimed for, one of few epochs."""
    common = ["--dataset", args.dataset, "--data-root", str(args.data_root), "--device", args.device, "--amp", args.amp]
    if images.epochs(1) > 1:
        common += ["--epochs", str(-(-RECIPES[flags[0]].epochs // _SMOKE))]
    folder = args.output_dir / images.name / "-".join(flag.strip("-") for flag in flags) / f"seed-{seed}"
    return Run(flags, seed, folder, tuple(common), components)


def ensure(run: Run, images: ImageSet) -> None:
    """Train the run unless its results stand there; go on from where it was cut off."""
    if stands(run, images):
        cli.note(f"{run.name}, seed {run.seed}: stands already")
        return
    status, said = train(run, ["--resume"])
    if status == 2 and re.search("other settings|other images", said):  # that checkpoint is kept under another name
        status, said = train(run, [])
    if status or not stands(run, images):
        raise RunError(f"{run.folder}: training ended with status {status} and no whole results: {said}")


def stands(run: Run, images: ImageSet) -> bool:
    """Whether the folder holds the results of this very run, whole and as they were written."""
    from autoencoders.runtime.device import Precision, pick_device
    from autoencoders.training.run import RESULTS, flatten

    try:
        record = run.record()
        history = hashlib.sha256((run.folder / RESULTS[0]).read_bytes()).hexdigest()
    except (RunError, UsageError, OSError):
        return False
    recipe, there = run.recipe, flatten(record["recipe"])
    if recipe.code_size is None:
        recipe = recipe.override({"code_size": run.components})
    same = (
        flatten(recipe.as_dict()),
        images.fingerprint,
        str(Precision(run.args.amp, pick_device(run.args.device))),
        history,
    )
    return same == (there, record["dataset"]["fingerprint"], record["precision"], record.get("history_sha256")) and all(
        (run.folder / name).exists() for name in (*RESULTS, record["weights"])
    )


def train(run: Run, further: list[str]) -> tuple[int, str]:
    """`ae_train.py` as a process, its progress as one line on stderr; its exit status and the last thing it said.

    It has a session of its own, so that Ctrl-C reaches it once, from here, and it saves its place.
    """
    script = Path(__file__).resolve().parent / "ae_train.py"
    command = [sys.executable, str(script), *run.arguments, *further]
    said, begun = "", time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        try:
            for said in process.stdout:
                show(run, said, end="")
        except BaseException:  # Ctrl-C among them: it saves its place
            process.terminate()
            process.wait()
            raise
    show(run, f"done in {time.monotonic() - begun:.0f} s" if not process.returncode else said, end="\n")
    return process.returncode, said.strip()


def show(run: Run, line: str, end: str) -> None:
    """A line about the run on stderr: how far it is, on a terminal; how it ended, everywhere."""
    place = re.match(r"Epoch (\d+)/(\d+):.* ([0-9.]+) s$", line)
    if place:
        left = (int(place[2]) - int(place[1])) * float(place[3])
        line = f"epoch {place[1]} of {place[2]}, about {left:.0f} s left"
    watched = sys.stderr.isatty()
    warned = line.startswith("warning: ") and "\n"
    end = end or warned or ""
    if not cli.Parser.quiet and (end or (place and watched)):
        clear = "\r\033[K" if watched else ""
        print(f"{clear}{run.name}, seed {run.seed}: {line.strip()}", end=end, file=sys.stderr, flush=True)


def judge(
    name: str, claim: Claim, runs: dict[tuple[str, ...], list[Run]], images: ImageSet, args: argparse.Namespace
) -> dict[str, Any]:
    """One row of the report: the claim, what was measured over the seeds, and the verdict."""
    mine = runs[(name, *claim.flags)]
    row = {"recipe": name, "claim": claim.what, "published": claim.value, "relation": claim.relation,
           "unit": claim.unit, "source": claim.source, "command": f"python ae_reproduce.py --only {name}",
           "seconds": mine[0].record()["seconds"]}  # fmt: skip
    if claim.dataset != images.name:
        return row | {"verdict": ELSEWHERE, "why": f"published for {claim.dataset}"}
    measured = [look_up(claim.place, run, images, args) for run in mine]
    mean, spread = fmean(measured), stdev(measured) if len(measured) > 1 else None
    reference = claim.value
    if claim.against:
        reference = fmean(look_up(claim.place, run, images, args) for run in runs[claim.against])
    assert reference is not None
    tolerance = claim.tolerance(spread, len(measured))
    holds, known = claim.holds(mean, reference, tolerance), abs(mean - claim.known) <= tolerance
    return row | {
        "against": " ".join(claim.against), "reference": reference, "measured": measured, "mean": mean,
        "spread": spread, "recorded_spread": claim.spread, "difference": mean - reference, "rounding": claim.rounding,
        "tolerance": tolerance if claim.relation == "=" else None,
        "verdict": REPRODUCED if holds else KNOWN if known else FAILED, "why": claim.why if known and not holds else "",
    }  # fmt: skip


def look_up(place: str, run: Run, images: ImageSet, args: argparse.Namespace) -> float:
    """The number in a place of a run, see `Claim`; of an ensemble the mean."""
    from autoencoders.runtime.device import pick_device
    from autoencoders.training.report import analyse_untrained

    kind, _, name = place.partition(".")
    if kind == "pca":
        return run.components
    if kind == "compression":
        import torch

        model = run.recipe.override({"code_size": int(name)}).build()
        return images.side**2 / model.encode(torch.zeros(1, images.side**2)).shape[-1]
    if kind == "analysis":
        value = analyse_untrained(run.recipe, images, pick_device(args.device))[name]
    elif kind == "metrics":
        value = run.record()["metrics"][name]
    else:
        row = run.history()[int(kind) - 1]
        value = [float(text) for column, text in row.items() if re.fullmatch(rf"{name}(_\d+)?", column)]
    return fmean(value) if isinstance(value, list) else float(value)


def studied(args: argparse.Namespace, images: ImageSet) -> dict[tuple[str, ...], list[Run]]:
    """The runs of the study, one of each recipe and code size, by their flags."""
    flags = [(name, "--code-size", str(size)) for name in STUDIED for size in args.code_sizes]
    return {each: [make_run(each, RECIPES[each[0]].seed, args, images, 0)] for each in flags}


def study(args: argparse.Namespace, images: ImageSet) -> None:
    """Test MSE of PCA and of the studied recipes over code sizes: code_size.json, and the figure."""
    from autoencoders.figures import code_size_curves
    from autoencoders.runtime.device import machine_name

    pca = fit_pca(images)
    count = pca.components_for(0.95)
    errors: dict[str, dict[int, float]] = {}
    for (name, *_), (run,) in studied(args, images).items():
        ensure(run, images)
        errors.setdefault(name, {})[run.recipe.code_size or 0] = run.record()["metrics"]["test_mse_unit"]
    curve = {
        size: pca.test_mse(images.test_images, size) for size in range(min(args.code_sizes), max(args.code_sizes) + 1)
    }
    ahead = {name: [size for size in points if points[size] < curve[size]] for name, points in errors.items()}
    report = {"dataset": images.title, "fingerprint": images.fingerprint, "machine": machine_name(),
              "components_95": count,
              "test_mse_unit": errors | {"pca": {size: curve[size] for size in args.code_sizes}}}  # fmt: skip
    write_json(args.output_dir / "code_size.json", report)
    title = f"{images.title}: what a code of so many numbers is worth"
    write_atomic(args.output_dir / "code_size.png", code_size_curves(curve, errors, count, title))
    print("code size " + "".join(f"{name:>12}" for name in ("PCA", *errors)))
    for size in args.code_sizes:
        print(f"{size:9} " + "".join(f"{value:12.6f}" for value in (curve[size], *(e[size] for e in errors.values()))))
    for name, sizes in ahead.items():
        print(f"{name} is ahead of PCA at the code sizes {', '.join(map(str, sizes)) or 'none'}")
    print(f"Test MSE per pixel in [0, 1]. Wrote code_size.png and code_size.json into {args.output_dir}")


if __name__ == "__main__":
    cli.run(main)
