"""The README's picture: the first test digits of MNIST, and what PCA and three recipes make of them.

All have the same code size. Finished runs in the output folder are used as they are. Writes showcase.png:

    python -m benchmarks.showcase --data-root /path/to/root
"""

from pathlib import Path

import torch

from autoencoders import figures
from autoencoders.data.sets import DATASETS, load_images
from autoencoders.evaluation.metrics import reconstruct
from autoencoders.evaluation.pca import fit_pca
from autoencoders.reproduction.runs import Setup, make_training
from autoencoders.runtime import cli
from autoencoders.runtime.device import keep_freed_memory, pick_device
from autoencoders.runtime.files import locked, write_atomic
from autoencoders.training.trained import load_run

RECIPES = ("symmetric", "speedrun", "tuned")
SHOWN = 8


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--code-size", type=cli.integer(1), default=32, metavar="N", help="of PCA and every recipe")
    parser.add_argument("--dataset", choices=DATASETS, default="mnist", help="a small set is a smoke test")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the images are")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/showcase"), help="where the results go")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    keep_freed_memory()
    images, size = load_images(args.dataset, args.data_root), args.code_size
    pca, shown = fit_pca(images), images.test_images[:SHOWN]
    setup = Setup(images, pca, args.output_dir, pick_device(args.device))
    rows = {"input": shown / 255,
            f"PCA\nMSE {pca.test_mse(images.test_images, size):.4f}": pca.decode(pca.encode(shown, size))}  # fmt: skip
    with locked(args.output_dir):
        for name in RECIPES:
            run = make_training((name, "--code-size", str(size)), 0, setup)
            run.train()
            model = load_run(run.folder, setup.device).model
            label = f"{name}\nMSE {run.measured('metrics.test_mse_unit'):.4f}"
            rows[label] = reconstruct(model, torch.tensor(shown, device=setup.device)).cpu().numpy()
        title = f"{images.title}: every image from {size} numbers; MSE of all test images, pixels in [0, 1]"
        write_atomic(args.output_dir / "showcase.png", figures.image_rows(rows, title))
    print(f"Wrote showcase.png into {args.output_dir}")


if __name__ == "__main__":
    cli.run(main)
