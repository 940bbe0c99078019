"""The first test digits and what each system makes of them, as one picture: the input, PCA and three recipes.

    python -m benchmarks.showcase --data-root data

Trains each recipe once at the same code size, or uses the finished run in the output folder. Writes docs/showcase.png.
"""

import argparse
from pathlib import Path

import torch

from autoencoders import figures
from autoencoders.data.images import ImageSet
from autoencoders.data.sets import DATASETS, load_images
from autoencoders.evaluation.metrics import reconstruct
from autoencoders.evaluation.pca import fit_pca
from autoencoders.recipes import RECIPES
from autoencoders.reproduction.runs import Setup, make_training
from autoencoders.runtime import cli
from autoencoders.runtime.device import keep_freed_memory, pick_device
from autoencoders.runtime.files import locked, write_atomic

_SHOWN = 8  # images


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--recipes", type=cli.items(cli.one_of(RECIPES)), action=cli.ListAction, metavar="NAME",
                        default=("symmetric", "speedrun", "tuned"), help="what to train")  # fmt: skip
    parser.add_argument("--code-size", type=cli.integer(1), default=32, help="numbers kept of an image")
    parser.add_argument("--dataset", choices=DATASETS, default="mnist", help="a small set is a smoke test")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the images are")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/showcase"), help="where the runs go")
    parser.add_argument("--picture", type=Path, default=Path("docs/showcase.png"), help="the file to write")
    return parser


def draw(args: argparse.Namespace, images: ImageSet) -> bytes:
    """Train what is missing, and draw a row for each system, labelled with its test MSE over all test images."""
    pca, shown, size = fit_pca(images), images.test_images[:_SHOWN], args.code_size
    setup = Setup(images, pca, args.output_dir, pick_device(args.device))
    rows = {
        "input": shown / 255,
        f"PCA\nMSE {pca.test_mse(images.test_images, size):.4f}": pca.decode(pca.encode(shown, size)),
    }
    for name in args.recipes:
        run = make_training((name, "--code-size", str(size)), 0, setup)
        run.train()
        rebuilt = reconstruct(run.restore()[0].trainer.model, torch.tensor(shown, device=setup.device))
        rows[f"{name}\nMSE {run.measured('metrics.test_mse_unit'):.4f}"] = rebuilt.cpu().numpy()
    title = f"{images.title}: {images.test_images.shape[1]} pixels through {size} numbers and back"
    return figures.image_rows(rows, title)


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    keep_freed_memory()
    with locked(args.output_dir):
        write_atomic(args.picture, draw(args, load_images(args.dataset, args.data_root)))
    print(f"Wrote {args.picture}; MSE is over all test images, pixels in [0, 1]")


if __name__ == "__main__":
    cli.run(main)
