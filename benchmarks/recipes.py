"""Train every recipe with its own settings and print the README's table of them, as Markdown.

Finished runs in the output folder are used as they are: for honest times, let nothing else run.
"""

from pathlib import Path

from autoencoders.data.sets import DATASETS, load_images
from autoencoders.evaluation.pca import fit_pca
from autoencoders.recipes import RECIPES
from autoencoders.reproduction.runs import Setup, machine_name, make_training
from autoencoders.runtime import cli
from autoencoders.runtime.device import keep_freed_memory, pick_device
from autoencoders.runtime.files import locked
from benchmarks.common import SYSTEMS

HEAD = ("recipe", "idea", "code", "epochs", "test MSE", "PCA, same code", "seconds")


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--only", type=cli.items(cli.one_of(RECIPES)), action=cli.ListAction, metavar="NAME",
                        default=SYSTEMS, help="what to train (default: all but those of the papers)")  # fmt: skip
    parser.add_argument("--dataset", choices=DATASETS, default="mnist", help="a small set is a smoke test")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the images are")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/recipes"), help="where the runs go")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    keep_freed_memory()
    images = load_images(args.dataset, args.data_root)
    setup = Setup(images, fit_pca(images), args.output_dir, pick_device(args.device))
    rows = []
    with locked(args.output_dir):
        for name in args.only:
            run = make_training((name,), 0, setup)
            run.train()
            model, pca = (run.measured(f"metrics.{metric}") for metric in ("test_mse_unit", "pca_test_mse_unit"))
            rows.append([f"`{name}`", run.recipe.summary, str(run.recipe.code_size), str(run.recipe.epochs),
                         f"{model:.4f}", f"{pca:.4f}", f"{run.record['seconds']:.0f}"])  # fmt: skip
    print(cli.format_table(HEAD, rows, markdown=True))
    print(f"\n{images.title}, one seed, MSE of pixels in [0, 1], {machine_name()}")


if __name__ == "__main__":
    cli.run(main)
