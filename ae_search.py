"""Compare widths, depths, code sizes and learning rates: K-fold cross-validation over every combination.

The training images are divided into folds; each candidate is trained once per fold, on the other folds, and measured on
that fold. Test images are never used. Writes search.csv and search.png, the candidates ranked by their mean error. Its
standard error is corrected for the training images that the folds share.
Finished folds are stored: the same command after an interruption continues, and a search with more candidates trains
only the new ones. Results depend on --threads, but not on --jobs.
"""

import argparse
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit  # the quantile of Student's t

from autoencoders.data.binary import binarized
from autoencoders.data.images import ImageSet
from autoencoders.data.sets import add_data_flags, data_arguments, load_images
from autoencoders.evaluation import plots
from autoencoders.evaluation.pca import fit_pca
from autoencoders.recipes import DEFAULT, RECIPES, Recipe, recipe_named_in
from autoencoders.runtime import cli
from autoencoders.runtime.errors import UsageError
from autoencoders.runtime.files import locked, write_atomic

if TYPE_CHECKING:
    from autoencoders.training.folds import Result

_EPOCHS = 3


@dataclass
class Candidate:
    """A recipe and the results of its folds."""

    recipe: Recipe
    results: "list[Result]" = field(default_factory=list)

    @cached_property
    def parameters(self) -> int:
        """Number of weights of the model."""
        return int(self.recipe.count_parameters())

    @property
    def hidden(self) -> str:
        """Layer widths between pixels and code, such as `500-500`."""
        return "-".join(map(str, self.recipe.model_args["hidden_sizes"])) or "none"

    @property
    def name(self) -> str:
        return f"{self.hidden}, code {self.recipe.code_size}, lr {self.recipe.lr:g}"

    @property
    def errors(self) -> np.ndarray:
        """The mean squared error of each fold that did not diverge."""
        return np.array([r["val_mse_unit"] for r in self.results if r["val_mse_unit"] is not None])

    @property
    def diverged(self) -> int:
        """Number of folds whose training diverged."""
        return len(self.results) - len(self.errors)

    def row(self, rank: int) -> dict[str, Any]:
        """The candidate's row of search.csv; the error and its corrected standard error are None if a fold diverged."""
        converged = not self.diverged
        return {
            "rank": rank, "hidden_sizes": self.hidden, "code_size": self.recipe.code_size, "lr": self.recipe.lr,
            "val_mse_unit": self.errors.mean() if converged else None,
            "standard_error": standard_error(self.errors) if converged else None,
            "parameters": self.parameters, "seconds": round(np.mean([r["seconds"] for r in self.results]), 2),
            "diverged_folds": self.diverged,
            **{f"fold_{number}": r["val_mse_unit"] for number, r in enumerate(self.results, start=1)},
        }  # fmt: skip


# fmt: off
def parser(recipe: Recipe = RECIPES[DEFAULT]) -> cli.Parser:
    """The command line, with the defaults of `recipe`."""
    parser = cli.Parser(__doc__)
    grid = parser.add_argument_group("candidates: every combination of these")
    grid.add_argument("--hidden-sizes", type=cli.sizes, nargs="+", default=[(500,), (1000,), (2500,)],
                      metavar="N,N,..", help="layer widths between pixels and code, '' for none "
                      "(default: 500 1000 2500)")
    grid.add_argument("--code-sizes", type=cli.items(cli.code_size), action=cli.ListAction, default=["auto"],
                      metavar="N", help="numbers, or auto for the number of components that PCA of all training images "
                      "needs (default: auto)")
    grid.add_argument("--lr", type=cli.items(cli.number(0, exclusive=True)), action=cli.ListAction, metavar="X",
                      help=f"learning rates (default: {recipe.format_value('lr')})")
    search = parser.add_argument_group("search")
    search.add_argument("--recipe", choices=[name for name, row in RECIPES.items() if "hidden_sizes" in row.model_args],
                        default=DEFAULT, help="what to train; the candidates differ from it in the settings above")
    search.add_argument("--folds", type=cli.integer(2, 100), default=5, metavar="N",
                        help="number of parts that the training images are divided into")
    search.add_argument("--epochs", type=cli.integer(1), metavar="N",
                        help=f"passes over the images (default: {_EPOCHS}; ten times that for a set below 10,000)")
    search.add_argument("--batch-size", type=cli.integer(1), default=recipe.batch_size, metavar="N",
                        help="images per step")
    search.add_argument("--seed", type=cli.integer(0), default=0, metavar="N",
                        help="of the folds, and of the weights and order in each")
    search.add_argument("--jobs", type=cli.integer(1, 1000), default=1, metavar="N",
                        help="folds trained at a time; each takes --threads cores and the memory of a training")
    search.add_argument("--threads", type=cli.integer(1, 1000), default=1, metavar="N",
                        help="of each fold; another number may change the last digits")
    search.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    search.add_argument("--output-dir", type=cli.path, default="outputs/search", help="where results go")
    add_data_flags(parser.add_argument_group("data"), default=recipe.dataset)
    return parser
# fmt: on


def main(arguments: list[str] | None = None) -> None:
    args = parser(recipe_named_in(arguments)).parse_args(arguments)
    # What imports torch is imported once the flags are known to be good.
    from autoencoders.runtime.device import pick_device
    from autoencoders.training.folds import Fold, cross_validate

    device, folder = pick_device(args.device), args.output_dir
    images = binarized(load_images(**data_arguments(args)), RECIPES[args.recipe].model_args.get("binarize"))
    if args.folds > len(images.train_images):
        raise UsageError(f"--folds {args.folds}: there are only {len(images.train_images)} training images")
    candidates = make_grid(args, images)
    # Fold by fold, so that a search that is stopped has results of every candidate.
    folds = [Fold(candidate.name, candidate.recipe, number, args.folds, args.seed, device, args.threads)
             for number in range(args.folds) for candidate in candidates]  # fmt: skip
    label = "MSE on the folds held out, pixels in [0, 1]"
    with locked(folder):
        results = cross_validate(folds, images, folder / "folds", args.jobs)
        for number, candidate in enumerate(candidates):
            candidate.results = results[number :: len(candidates)]
        write_results(args, candidates, images.title, label)


def make_grid(args: argparse.Namespace, images: ImageSet) -> list[Candidate]:
    """Every combination of the flags, without repetitions."""
    row = replace(RECIPES[args.recipe], image_size=images.side, seed=args.seed, batch_size=args.batch_size)
    epochs = args.epochs or images.epochs(_EPOCHS)
    auto = fit_pca(images).components_for(0.95) if "auto" in args.code_sizes else None
    code_sizes = [auto if size == "auto" else size for size in args.code_sizes]
    recipes: list[Recipe] = []
    for hidden, code_size, lr in product(args.hidden_sizes, code_sizes, args.lr or [row.lr]):
        recipe = row.override({"hidden_sizes": hidden, "code_size": code_size, "lr": lr, "epochs": epochs})
        if recipe not in recipes:
            recipes.append(recipe)
    return [Candidate(recipe) for recipe in recipes]


def write_results(args: argparse.Namespace, candidates: list[Candidate], images: str, label: str) -> None:
    """Rank the candidates by their mean error, those that diverged last; write and print the result."""
    ranked = sorted(candidates, key=lambda c: (c.diverged, c.errors.mean() if len(c.errors) else 0))
    rows = [candidate.row(rank) for rank, candidate in enumerate(ranked, start=1)]
    write_atomic(args.output_dir / "search.csv", cli.format_csv(rows))
    converged = [candidate for candidate in ranked if not candidate.diverged]
    if converged:
        count = f"{len(converged)} candidate{'s' * (len(converged) > 1)}"
        title = f"{images}, {args.recipe}: {count}, {args.folds} folds"
        write_atomic(args.output_dir / "search.png", picture(converged, title, label))
    print(f"{label}\n{format_ranking(rows)}\n{format_best(converged)}")
    print(f"Wrote search.csv{' and search.png' if converged else ''} into {args.output_dir} ({images})")


def standard_error(errors: np.ndarray) -> float:
    """The standard error of the mean over all folds, corrected because any two folds share training images.

    Nadeau & Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003: the variance of the folds
    times 1 / n + n_test / n_train, with 1 / (n - 1) for the latter, in place of 1 / n.
    """
    folds = len(errors)
    return float(errors.std(ddof=1) * (1 / folds + 1 / (folds - 1)) ** 0.5)


def format_ranking(rows: list[dict[str, Any]]) -> str:
    """The ranking as a text table."""
    table = []
    for row in rows:
        error = (
            "diverged" if row["val_mse_unit"] is None else f"{row['val_mse_unit']:.5f} +- {row['standard_error']:.5f}"
        )
        table.append([str(row["rank"]), row["hidden_sizes"], str(row["code_size"]), f"{row['lr']:g}", error,
                      f"{row['parameters']:,}", f"{row['seconds']:.1f}"])  # fmt: skip
    return cli.format_table(("rank", "hidden", "code", "lr", "MSE, held out", "parameters", "seconds"), table)


def format_best(ranked: list[Candidate]) -> str:
    """The best candidate, and whether the folds, which all candidates share, can distinguish it from the next."""
    if not ranked:
        return "Every candidate diverged; use a smaller --lr"
    best, *others = ranked
    text = f"Best: {best.name}"
    if others:
        difference = others[0].errors - best.errors
        mean, error = difference.mean(), standard_error(difference)
        text += f"; next: {others[0].name}, {mean:.5f} +- {error:.5f} behind on the same folds"
        if mean <= stdtrit(len(difference) - 1, 0.975) * error:
            text += ", which is too little to distinguish them"
    return text


def picture(converged: list[Candidate], title: str, label: str) -> bytes:
    """The figure of errors against parameters; one colour per code size and learning rate."""
    return plots.search(
        np.array([candidate.parameters for candidate in converged]),
        np.array([candidate.errors.mean() for candidate in converged]),
        np.array([standard_error(candidate.errors) for candidate in converged]),
        [candidate.hidden for candidate in converged],
        [f"code {candidate.recipe.code_size}, learning rate {candidate.recipe.lr:g}" for candidate in converged],
        title,
        label,
    )


def command() -> None:
    cli.run(main)


if __name__ == "__main__":
    command()
