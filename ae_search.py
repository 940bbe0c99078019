"""Which width, depth, code size and learning rate? K-fold cross-validation over every combination of those offered.

The training images are cut into folds; each candidate is trained once for every fold, on the others, and measured on
that one. The test images stay unseen. Writes search.csv and search.png, the candidates ranked by their mean error.
Every fold that ends is kept: the same command after an interruption goes on where it was, and one with more
candidates trains only the new ones. Results depend on --threads, but not on --jobs. Under torchrun its processes share
the folds.
"""

import argparse
import csv
import io
import os
import time
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ae_train import named
from autoencoders.data.sets import ImageSet, load_images, would_download
from autoencoders.evaluation.pca import fit_pca
from autoencoders.recipes import DEFAULT, RECIPES, Recipe
from autoencoders.runtime import cli, processes
from autoencoders.runtime.errors import UsageError
from autoencoders.runtime.files import hold_folder, prepare_folder, write_atomic

if TYPE_CHECKING:
    from autoencoders.training.folds import Fold, Result

# As in ae_train.py, what imports torch is imported when the flags are found good.

_EPOCHS = 3
_OF_A_PROCESS = 5e8  # bytes that a process takes before it holds a model or an image


@dataclass
class Candidate:
    """A recipe with its number of weights, and the results of its folds."""

    recipe: Recipe
    parameters: int
    results: "list[Result]" = field(default_factory=list)

    @property
    def errors(self) -> np.ndarray:
        """The mean squared error of each fold that did not diverge."""
        return np.array([r["val_mse"] for r in self.results if r["val_mse"] is not None])

    @property
    def diverged(self) -> int:
        """Folds whose training diverged."""
        return len(self.results) - len(self.errors)

    def row(self, rank: int) -> dict[str, Any]:
        """Its row of the table; error and standard error are missing where a fold diverged."""
        whole = not self.diverged
        return {
            "rank": rank, "hidden_sizes": hidden(self.recipe), "code_size": self.recipe.code_size, "lr": self.recipe.lr,
            "val_mse": self.errors.mean() if whole else None,
            "standard_error": standard_error(self.errors) if whole else None,
            "parameters": self.parameters, "seconds": round(np.mean([r["seconds"] for r in self.results]), 2),
            "diverged_folds": self.diverged,
            **{f"fold_{number}": r["val_mse"] for number, r in enumerate(self.results, start=1)},
        }  # fmt: skip


# fmt: off
def parser(recipe: Recipe = RECIPES[DEFAULT]) -> cli.Parser:
    """The command line, with the defaults of `recipe`."""
    parser = cli.Parser(__doc__)
    shown = "(default: %(default)s)"
    offered = parser.add_argument_group("candidates: every combination of these")
    offered.add_argument("--hidden-sizes", type=cli.sizes, nargs="+", default=[(500,), (1000,), (2500,)],
                         metavar="N,N,..", help="comma-separated widths between pixels and code, '' for none "
                         "(default: 500 1000 2500)")
    offered.add_argument("--code-sizes", type=cli.code_size, nargs="+", default=["auto"], metavar="N",
                         help="numbers, or auto for what the PCA of all training images says (default: auto)")
    offered.add_argument("--lr", type=cli.number(0, above=True), nargs="+", metavar="X",
                         help=f"learning rates (default: {recipe.shown('lr')})")
    search = parser.add_argument_group("search")
    search.add_argument("--recipe", choices=[name for name, row in RECIPES.items() if "hidden_sizes" in row.model_args],
                        default=DEFAULT, help=f"what to train, with its settings but for those offered {shown}")
    search.add_argument("--folds", type=cli.integer(2, 100), default=5, metavar="N",
                        help=f"parts that the training images are cut into {shown}")
    search.add_argument("--epochs", type=cli.integer(1), metavar="N",
                        help=f"passes over the images (default: {_EPOCHS}; ten times that where there are fewer than "
                        "10,000)")
    search.add_argument("--seed", type=cli.integer(0, 2**32 - 1), default=0, metavar="N",
                        help=f"of the folds, weights and order {shown}")
    search.add_argument("--jobs", type=cli.integer(1, 1000), default=1, metavar="N",
                        help=f"folds trained at once, as far as cores and memory allow {shown}")
    search.add_argument("--threads", type=cli.integer(1, 1000), default=1, metavar="N",
                        help=f"of each fold; another number may change the last digits {shown}")
    search.add_argument("--device", default="auto", help=f"auto, cuda, cuda:N, mps or cpu {shown}")
    search.add_argument("--output-dir", type=Path, default=Path("outputs/search"), help=f"where results go {shown}")
    cli.add_data_flags(parser.add_argument_group("data"))
    return parser
# fmt: on


def main(arguments: list[str] | None = None) -> None:
    args = parser(named(arguments)).parse_args(arguments)
    if args.dry_run and (first := would_download(args.dataset, args.data_root)):
        print(f"{first}, and searched over")
        return

    from autoencoders.runtime.device import pick_device
    from autoencoders.training.folds import Fold

    processes.join()
    device = pick_device(args.device)
    images = load_images(**cli.data_flags(args))
    if args.folds > len(images.train_images):
        raise UsageError(f"--folds {args.folds}: there are only {len(images.train_images)} training images")
    offered = candidates(args, images)
    jobs = allowed_jobs(args.jobs, args.threads, max(c.parameters for c in offered), images)
    # Fold by fold, so that a search cut short has looked at every candidate.
    folds = [Fold(candidate.recipe, number, args.folds, args.seed, device, args.threads)
             for number in range(args.folds) for candidate in offered]  # fmt: skip
    folder = args.output_dir
    if args.dry_run:
        print(f"Would train {len(offered)} candidates on {args.folds} folds each, {jobs} at a time, those that "
              f"{folder / 'folds'} does not keep:")  # fmt: skip
        print("\n".join(f"{describe(one.recipe)}: {one.parameters:,} parameters" for one in offered))
        print(f"Would write search.csv and search.png into {folder} ({images.title})")
        return
    with hold_folder(folder):
        results = search(folds, images, prepare_folder(folder / "folds"), jobs)
        if not processes.is_first():
            return
        for number, candidate in enumerate(offered):
            candidate.results = results[number :: len(offered)]
        # A candidate that diverged comes last.
        ranked = sorted(offered, key=lambda c: (c.diverged, c.errors.mean() if len(c.errors) else 0))
        rows = [candidate.row(rank) for rank, candidate in enumerate(ranked, start=1)]
        write_atomic(folder / "search.csv", table(rows))
        whole = [candidate for candidate in ranked if not candidate.diverged]
        label = error_label(offered[0].recipe)
        if whole:
            title = f"{images.title}, {args.recipe}: {len(whole)} candidate{'s' * (len(whole) > 1)}, {args.folds} folds"
            write_atomic(folder / "search.png", picture(whole, title, label))
    print("\n".join([label, *lines(rows)]))
    print(verdict(whole))
    print(f"Wrote search.csv{' and search.png' if whole else ''} into {folder} ({images.title})")


def candidates(args: argparse.Namespace, images: ImageSet) -> list[Candidate]:
    """Every combination of what was offered, once, with the parameters of its model."""
    from autoencoders.runtime.device import check_memory, parameters

    row = replace(RECIPES[args.recipe], image_size=images.side, seed=args.seed)
    epochs = args.epochs or images.epochs(_EPOCHS)
    auto = fit_pca(images).components_for(0.95) if "auto" in args.code_sizes else None
    codes = [auto if size == "auto" else size for size in args.code_sizes]
    found: list[Candidate] = []
    for hidden, code, lr in product(args.hidden_sizes, codes, args.lr or [row.lr]):
        recipe = row.override({"hidden_sizes": hidden, "code_size": code, "lr": lr, "epochs": epochs})
        if recipe not in [other.recipe for other in found]:
            check_memory(recipe)
            found.append(Candidate(recipe, int(parameters(recipe))))
    return found


def allowed_jobs(wanted: int, threads: int, parameters: float, images: ImageSet) -> int:
    """As many of the wanted jobs as cores and memory have room for, and at least one; says so when they are fewer."""
    from autoencoders.data.stored import memory

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Weights, gradients and two moments, with a step's temporaries; images as they were, cut and copied.
    needed = _OF_A_PROCESS + 20 * parameters + 3 * images.train_images.nbytes
    beside = processes.launched("LOCAL_WORLD_SIZE") or 1  # processes of torchrun on this machine
    jobs = max(1, int(min(wanted, cores // threads // beside, memory() // needed // beside)))
    if jobs < wanted:
        cli.warn(f"--jobs {wanted}: cores and memory allow {jobs} of {threads} threads")
    return jobs


def search(folds: "list[Fold]", images: ImageSet, folder: Path, jobs: int) -> "list[Result]":
    """The result of every fold: those kept in `folder`, and the others, trained now and kept as they end.

    Each process of torchrun trains its share of them, and keeps these in its own `folder`, perhaps on another machine.
    """
    from autoencoders.runtime.device import parameters
    from autoencoders.training.folds import keep, kept, train_all

    facts = [fold.facts(images) for fold in folds]
    results = shared([kept(fact, folder) for fact in facts])
    missing = {place: fold for place, fold in enumerate(folds) if results[place] is None}
    if len(missing) < len(folds):
        cli.note(f"{len(folds) - len(missing)} of {len(folds)} folds are kept in {folder}")
    missing = dict(list(missing.items())[processes.rank() :: processes.size()])
    work = {place: parameters(fold.recipe) for place, fold in missing.items()}  # what the seconds grow with
    done, start = 0.0, time.monotonic()
    try:
        for place, result in train_all(missing, images.train_images, jobs):
            keep(result, facts[place], folder)
            results[place] = result
            done += work[place]
            left = (time.monotonic() - start) * (sum(work.values()) / done - 1)
            cli.note(f"{len(folds) - results.count(None)}/{len(folds)} {describe(folds[place].recipe)}, fold "
                        f"{folds[place].number + 1}: {said(result)}, {result['seconds']:.1f} s; "
                        f"about {cli.duration(left)} left")  # fmt: skip
    except (KeyboardInterrupt, cli.Stopped) as stop:
        there = sum(kept(fact, folder) is not None for fact in facts)  # one may have been kept and not yet counted
        kept_now = f"{there} of {len(folds)} folds are kept; the same command goes on"
        raise cli.Stopped(f"stopped; {kept_now}", getattr(stop, "status", 130)) from stop
    return [result for result in shared(results) if result is not None]


def shared(results: "list[Result | None]") -> "list[Result | None]":
    """Of every fold the result that any process has."""
    return [next((r for r in found if r is not None), None) for found in zip(*processes.gathered(results))]


def describe(recipe: Recipe) -> str:
    """What tells a candidate from the others."""
    return f"{hidden(recipe)}, code {recipe.code_size}, lr {recipe.lr:g}"


def hidden(recipe: Recipe) -> str:
    """Widths between pixels and code, such as `500-500`."""
    return "-".join(map(str, recipe.model_args["hidden_sizes"])) or "none"


def error_label(recipe: Recipe) -> str:
    """What is ranked; its range is that of the recipe's output."""
    import torch

    from autoencoders.evaluation.metrics import range_label

    with torch.device("meta"):
        return f"MSE on the folds held out, {range_label(recipe.build())}"


def said(result: "Result") -> str:
    """The error of a fold, for people."""
    return "diverged" if result["val_mse"] is None else f"MSE {result['val_mse']:.5f}"


def standard_error(errors: np.ndarray) -> float:
    """Of the mean of some numbers."""
    return float(errors.std(ddof=1) / len(errors) ** 0.5)


def table(rows: list[dict[str, Any]]) -> bytes:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table for people."""
    width = max(len("hidden"), *(len(row["hidden_sizes"]) for row in rows))
    shown = [f"rank  {'hidden':{width}}   code        lr    MSE, held out    parameters   seconds"]
    for row in rows:
        error = f"{row['val_mse']:.5f} +- {row['standard_error']:.5f}" if row["val_mse"] is not None else "diverged"
        shown.append(f"{row['rank']:4}  {row['hidden_sizes']:{width}}  {row['code_size']:5}  {row['lr']:8g}  "
                     f"{error:>18}  {row['parameters']:11,}  {row['seconds']:8.1f}")  # fmt: skip
    return shown


def verdict(whole: list[Candidate]) -> str:
    """Which candidate is the best, and whether the folds can tell it from the next; fold by fold, as all share them."""
    if not whole:
        return "Every candidate diverged; use a smaller --lr"
    best, *others = whole
    text = f"Best: {describe(best.recipe)}"
    if others:
        from scipy.stats import t

        behind = others[0].errors - best.errors
        mean, error = behind.mean(), standard_error(behind)
        text += f"; next: {describe(others[0].recipe)}, {mean:.5f} +- {error:.5f} behind on the same folds"
        text += "" if mean > t.ppf(0.975, len(behind) - 1) * error else ", which is too little to tell them apart"
    return text


def picture(whole: list[Candidate], title: str, label: str) -> bytes:
    """Errors against parameters; a colour for each code size and learning rate."""
    from autoencoders.figures import search

    recipes = [candidate.recipe for candidate in whole]
    return search(
        np.array([candidate.parameters for candidate in whole]),
        np.array([candidate.errors.mean() for candidate in whole]),
        np.array([standard_error(candidate.errors) for candidate in whole]),
        [hidden(recipe) for recipe in recipes],
        [f"code {recipe.code_size}, learning rate {recipe.lr:g}" for recipe in recipes],
        title,
        label,
    )


if __name__ == "__main__":
    cli.run(main)
