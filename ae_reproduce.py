"""Train all systems under their published settings and compare every published number with the measured one.

Interrupted runs are resumed; finished runs with the same settings and images are used as they are (delete the folder
after a change of the code). Prints a table and writes it as reproduction.md, reproduction.json and reproduction.html
into the output folder. Exit status 1 if a claim that should hold does not.
"""

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
from autoencoders.reproduction.claims import CLAIMS, EXPECTED_MISS, FAILED, NOT_APPLICABLE, Claim
from autoencoders.runtime import cli
from autoencoders.runtime.errors import RunError
from autoencoders.runtime.files import locked, write_atomic, write_json

if TYPE_CHECKING:
    from autoencoders.reproduction.runs import Flags, Training

Claims = Mapping[str, Sequence[Claim]]  # by recipe


# fmt: off
def parser() -> cli.Parser:
    parser = cli.Parser(__doc__, dry_run=True)
    parser.add_argument("--only", type=recipe_names, action=cli.ListAction, default=tuple(CLAIMS), metavar="RECIPE",
                        help=f"recipes to run (default: {','.join(CLAIMS)})")
    parser.add_argument("--seeds", type=cli.integer(1, 10), default=1, metavar="N",
                        help="runs per recipe, with the recipe's seed and the next ones")
    parser.add_argument("--dataset", choices=DATASETS, default="mnist",
                        help="claims are for mnist; a small set shows the same runs within minutes")
    parser.add_argument("--data-root", type=cli.path, default="data", help="where the images are")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--amp", choices=("auto", "on", "off"), default="auto", help="mixed precision")
    parser.add_argument("--output-dir", type=cli.path, default="outputs/reproduction",
                        help="where the runs and the reports go")
    return parser
# fmt: on


def recipe_names(text: str) -> tuple[str, ...]:
    """An argparse type: comma-separated names of published recipes."""
    chosen = cli.items(cli.one_of(CLAIMS))(text)
    return tuple(name for name in CLAIMS if name in chosen)


def main(arguments: list[str] | None = None, claims: Claims = CLAIMS, claimed_for: str = "mnist") -> None:
    args = parser().parse_args(arguments)
    if args.dry_run and (notice := preparation_notice(args.dataset, args.data_root)):
        print(f"{notice}, and the recipes trained")
        return

    # What imports torch is imported once the flags are known to be good.
    from autoencoders.reproduction.page import format_markdown, format_page
    from autoencoders.reproduction.runs import Setup, machine_name, plan
    from autoencoders.runtime.device import keep_freed_memory, pick_device

    device, folder, started = pick_device(args.device), args.output_dir, time.monotonic()
    keep_freed_memory()
    images = load_images(args.dataset, args.data_root)
    claims = {name: claims[name] for name in args.only}
    runs = plan(claims, args.seeds, Setup(images, fit_pca(images), folder, device, args.amp))
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
    failed = [row["claim"] for row in report["rows"] if row["verdict"] == FAILED]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(report['rows'])} claims not reproduced, see {folder}: {'; '.join(failed)}"
        )


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
        row = describe(name, claim, its) | check(claim, its, runs.get(claim.baseline, []))
        if images.name != claimed_for:
            row |= {"verdict": NOT_APPLICABLE, "why": f"published for {claimed_for}"}
        rows.append(row)
    first = [run for run, *_ in runs.values()]
    systems = [
        {"name": run.name, "summary": run.recipe.summary, "source": run.recipe.source, "command": run.command,
         "folder": run.folder.relative_to(run.setup.folder).as_posix(), "seconds": run.record["seconds"]}
        for run in first
    ]  # fmt: skip
    seeds, precision = max(map(len, runs.values())), first[0].record["precision"]
    return {"dataset": images.title, "fingerprint": images.fingerprint, "seeds": seeds, "precision": precision,
            "rows": rows, "systems": systems}  # fmt: skip


def describe(name: str, claim: Claim, runs: "list[Training]") -> dict[str, Any]:
    """The part of a report's row that is known without a measurement."""
    return {"recipe": name, "claim": claim.name, "published": claim.value, "relation": claim.relation,
            "unit": claim.unit, "kind": claim.kind, "command": f"python ae_reproduce.py --only {name}",
            "seconds": runs[0].record["seconds"]}  # fmt: skip


def check(claim: Claim, runs: "list[Training]", baseline: "list[Training]") -> dict[str, Any]:
    """The part of a report's row that is measured: the mean over the seeds, and the verdict."""
    measured = [run.measured(claim.metric) for run in runs]
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
