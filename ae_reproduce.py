"""Train all systems under their published settings and compare every published number with the measured one.

With --literature the numbers are those of the papers behind the systems: recipes train what a paper trained, evaluated
by its protocol, and each row says whether its number is reached.

Interrupted runs are resumed; finished runs with the same settings and images are used as they are (delete the folder
after a change of the code). Prints a table and writes it as reproduction.md, reproduction.json and reproduction.html
into the output folder. Exit status 1 if a claim that should hold does not.
"""

import argparse
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from autoencoders import figures
from autoencoders.data.images import ImageSet
from autoencoders.data.sets import DATASETS, load_images, preparation_notice
from autoencoders.evaluation.pca import fit_pca
from autoencoders.recipes import RECIPES
from autoencoders.reproduction.claims import (
    CLAIMS,
    EXPECTED_MISS,
    FAILED,
    MISSED,
    NOT_APPLICABLE,
    Claim,
    runs_of,
)
from autoencoders.reproduction.literature import LITERATURE
from autoencoders.runtime import cli
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import locked, write_atomic, write_json

if TYPE_CHECKING:
    from autoencoders.reproduction.claims import Flags
    from autoencoders.reproduction.runs import Training

Claims = Mapping[str, Sequence[Claim]]  # by recipe


# fmt: off
def parser() -> cli.Parser:
    parser = cli.Parser(__doc__, dry_run=True)
    parser.add_argument("--literature", action="store_true", help="the numbers of the papers, not of the write-ups")
    parser.add_argument("--only", type=recipe_names, action=cli.ListAction, default=(), metavar="RECIPE",
                        help=f"recipes to run (default: all: {','.join(CLAIMS)}; of the papers "
                        f"{','.join(LITERATURE)})")
    parser.add_argument("--seeds", type=cli.integer(1, 10), default=1, metavar="N",
                        help="runs per recipe, with the recipe's seed and the next ones")
    parser.add_argument("--dataset", choices=DATASETS, default="mnist",
                        help="claims are for mnist; a small set shows the same runs within minutes")
    parser.add_argument("--data-root", type=cli.path, default="data", help="where the images are")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--amp", choices=("auto", "on", "off"), default="auto", help="mixed precision")
    parser.add_argument("--output-dir", type=cli.path, help="where the runs and the reports go (default: "
                        "outputs/reproduction, of the papers outputs/literature)")
    return parser
# fmt: on


def recipe_names(text: str) -> tuple[str, ...]:
    """An argparse type: comma-separated names of published recipes."""
    known = tuple(CLAIMS | LITERATURE)
    chosen = cli.items(cli.one_of(known))(text)
    return tuple(name for name in known if name in chosen)


def chosen_claims(args: argparse.Namespace) -> Claims:
    """The claims that the flags select, by recipe; UsageError for a recipe of the other table."""
    table = LITERATURE if args.literature else CLAIMS
    others = [name for name in args.only if name not in table]
    if others:
        reason = "a recipe of the papers: give --literature" if not args.literature else "no recipe of the papers"
        raise UsageError(f"--only {','.join(others)}: is {reason}; there are {', '.join(table)}")
    return {name: table[name] for name in args.only or table}


def main(arguments: list[str] | None = None, claims: Claims | None = None, claimed_for: str = "mnist") -> None:
    args = parser().parse_args(arguments)
    claims = chosen_claims(args) if claims is None else {name: claims[name] for name in args.only or claims}
    args.output_dir = args.output_dir or Path("outputs/literature" if args.literature else "outputs/reproduction")
    if args.dry_run and (notice := download_notice(args, claims)):
        print(f"{notice}, and the recipes trained")
        return

    # What imports torch is imported once the flags are known to be good.
    from autoencoders.reproduction.page import format_markdown, format_page
    from autoencoders.reproduction.runs import Setup, machine_name, plan
    from autoencoders.runtime.device import keep_freed_memory, pick_device

    device, folder, started = pick_device(args.device), args.output_dir, time.monotonic()
    keep_freed_memory()
    images = load_images(args.dataset, args.data_root)
    runs = plan(claims, args.seeds, Setup(images, fit_pca(images), folder, device, args.amp, args.data_root))
    if args.dry_run:
        cli.log.setLevel("WARNING")  # what `restore` says is in the list
        for run in itertools.chain(*runs.values()):
            print(f"{'Finished' if run.restore()[1] else 'Would train'}: {run.command} --seed {run.recipe.seed}")
        print(f"Would write the report into {folder} ({images.title})")
        return
    with locked(folder):
        for run in itertools.chain(*runs.values()):
            run.train()
        write_losses(runs, images, folder)
        report = make_report(runs, claims, images, claimed_for) | {"machine": machine_name()}
        report["seconds"] = round(time.monotonic() - started, 1)
        write_json(folder / "reproduction.json", report)
        write_atomic(folder / "reproduction.md", format_markdown(report).encode() + b"\n")
        write_atomic(folder / "reproduction.html", format_page(report, folder).encode())
    print(format_markdown(report))
    print(f"\nWrote reproduction.html, .md and .json into {folder} ({images.title}, {report['seconds']:.0f} s)")
    failed = [row for row in report["rows"] if row["verdict"] in (FAILED, MISSED)]
    if failed:
        verdicts, names = ({row[key]: None for row in failed} for key in ("verdict", "claim"))
        count = f"{len(failed)} of {len(report['rows'])} claims"
        raise RunError(f"{count} {' or '.join(verdicts)}, see {folder}: {'; '.join(names)}")


def download_notice(args: argparse.Namespace, claims: Claims) -> str:
    """The first download that the run would begin with, for a dry run; empty if there would be none."""
    named = [RECIPES[name].dataset for name in claims if args.dataset == "mnist"]
    notices = (preparation_notice(name, args.data_root) for name in (args.dataset, *named))
    return next(filter(None, notices), "")


def write_losses(runs: "dict[Flags, list[Training]]", images: ImageSet, folder: Path) -> None:
    """Draw the losses of every recipe's first run."""
    losses = {
        run.name: np.array([(row["train_loss"], row["test_loss"]) for row in run.history]) for run, *_ in runs.values()
    }
    title, labels = f"{images.title}: loss of every epoch", ("training", "test")
    write_atomic(folder / "loss_curves.png", figures.epoch_curves(losses, title, labels, "loss", log=True))


def make_report(
    runs: "dict[Flags, list[Training]]", claims: Claims, images: ImageSet, claimed_for: str
) -> dict[str, Any]:
    """The report on finished runs, in JSON types: every claim with its measured value, and the runs' commands."""
    rows = []
    for name, claim in ((name, claim) for name, its in claims.items() for claim in its):
        its = runs[name, *claim.flags]
        applicable = images.name == claimed_for
        row = describe(name, claim, its) | check(claim, its, runs.get(claim.baseline, []), applicable)
        if not applicable:
            row |= {"verdict": NOT_APPLICABLE, "why": f"published for {claimed_for}"}
        rows.append(row)
    first = [run for run, *_ in runs.values()]
    systems = [
        {"name": run.name, "summary": run.recipe.summary, "source": run.recipe.source, "command": run.command,
         "folder": run.folder.relative_to(run.setup.folder).as_posix(), "seconds": training_seconds(flags, its)}
        for (flags, its), run in zip(runs.items(), first)
    ]  # fmt: skip
    seeds = max(len(its) // len(runs_of(flags)) for flags, its in runs.items())
    precision = first[0].record["precision"]
    return {"dataset": images.title, "fingerprint": images.fingerprint, "seeds": seeds, "precision": precision,
            "rows": rows, "systems": systems}  # fmt: skip


def describe(name: str, claim: Claim, runs: "list[Training]") -> dict[str, Any]:
    """The part of a report's row that is known without a measurement; `seconds` are of the training for one seed."""
    flag = "--literature " if claim.source else ""
    return {"recipe": name, "claim": claim.name, "published": claim.value, "relation": claim.relation,
            "unit": claim.unit, "kind": claim.kind, "source": claim.source,
            "command": f"python ae_reproduce.py {flag}--only {name}",
            "seconds": training_seconds(claim.flags, runs)}  # fmt: skip


def training_seconds(flags: "Flags", runs: "list[Training]") -> float:
    """Of the runs for one seed."""
    return sum(run.record["seconds"] for run in runs[: len(runs_of(flags))])


def check(claim: Claim, runs: "list[Training]", baseline: "list[Training]", applicable: bool) -> dict[str, Any]:
    """The part of a report's row that is measured: the mean over the seeds, and the verdict."""
    values, per_seed = [run.value_of(claim, applicable) for run in runs], len(runs_of(claim.flags))
    measured = [fmean(values[first : first + per_seed]) for first in range(0, len(values), per_seed)]
    mean, spread = fmean(measured), stdev(measured) if len(measured) > 1 else None
    reference = fmean(run.measured(claim.metric) for run in baseline) if baseline else claim.value
    assert reference is not None
    tolerance = claim.tolerance(spread, len(measured))
    verdict = claim.verdict(mean, reference, tolerance)
    return {
        "against": " ".join(claim.baseline), "reference": reference, "measured": measured, "mean": mean,
        "spread": spread, "recorded_spread": claim.spread, "difference": mean - reference, "rounding": claim.rounding,
        "tolerance": tolerance if claim.relation == "=" else None,
        "verdict": verdict, "why": claim.reason if verdict == EXPECTED_MISS else "",
    }  # fmt: skip


def command() -> None:
    cli.run(main)


if __name__ == "__main__":
    command()
