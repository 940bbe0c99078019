"""Train the sparse ensemble: five k-sparse autoencoders at once, with the command line of its write-up.

The training is that of `ae_train.py --recipe sparse`. With --analyze-loss the loss of the untrained autoencoders is
first compared with that of the mean image as the answer to every image; with --epochs 0 nothing else is done.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ae_train
from autoencoders.recipes import RECIPES, recipe_of
from autoencoders.runtime import cli, processes
from autoencoders.runtime.cli import log
from autoencoders.runtime.errors import UsageError


# fmt: off
def parser() -> cli.Parser:
    """The command line of ae_train.py for this recipe, and the flag of the write-up."""
    parser = ae_train.parser(RECIPES["sparse"], only_own=True)
    parser.description = __doc__
    published = parser.add_argument_group("as published; --device cuda falls back to the CPU where there is no CUDA")
    published.add_argument("--analyze-loss", "--analyze_loss", action="store_true",
                           help="before training, compare the untrained autoencoders with the mean image; with "
                           "--epochs 0 do nothing else")
    return parser
# fmt: on


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    recipe = recipe_of(args)
    if not recipe.epochs and not args.analyze_loss:
        raise UsageError("--epochs 0: there is nothing to do; give --analyze-loss too, or at least 1")
    # What imports torch is imported once the flags are known to be good.
    import torch

    from autoencoders.evaluation.loss_analysis import ANALYSED, analyse_untrained
    from autoencoders.runtime.device import pick_device

    if re.fullmatch(r"cuda(:\d+)?", args.device) and not torch.cuda.device_count():
        log.warning("CUDA is not available: falling back to the CPU")
        args.device = "cpu"
    if args.analyze_loss:
        processes.setup()
        device, images = pick_device(args.device), ae_train.load_training_images(recipe, args)
        untrained = replace(recipe, image_size=images.side)
        analysis, total = analyse_untrained(untrained, images.train_images, device), len(images.train_images)
        count = min(ANALYSED * recipe.batch_size, total)
        print(f"Loss before training, {images.title}: {count:,} of {total:,} training images")
        print(format_analysis(analysis), flush=True)
    if recipe.epochs:
        ae_train.train(recipe, args)


def format_analysis(analysis: dict[str, Any]) -> str:
    """The result of `loss_analysis`: a table, and how each error compares with the mean image's."""
    mean, mse, scaled = analysis["mean_image"] or 1e-12, analysis["mse"], analysis["scaled_mse"]
    rows = [["mean image, all images", f"{analysis['mean_image_all']:.5f}", f"{0:.1%}", "", "", ""],
            ["mean image", f"{mean:.5f}", f"{0:.1%}", "", "", ""]]  # fmt: skip
    columns = zip(mse, analysis["explained"], analysis["scale"], scaled, analysis["scaled_explained"])
    for number, values in enumerate(columns, start=1):
        formats = zip(values, (".5f", ".1%", ".3f", ".5f", ".1%"))
        rows.append([f"autoencoder {number}", *(format(value, form) for value, form in formats)])
    table = cli.format_table(("", "MSE", "explained", "scale", "scaled MSE", "explained"), rows)
    plain, best = (format_range([error / mean - 1 for error in errors]) for errors in (mse, scaled))
    return (
        f"{table}\nUntrained, their error compared with that of the mean image: {plain}; "
        f"with each reconstruction scaled by its best factor: {best}"
    )


def format_range(shares: Sequence[float]) -> str:
    """The least and the greatest of some shares, as signed percentages; one where they look the same."""
    low, high = f"{min(shares):+.1%}", f"{max(shares):+.1%}"
    return low if low == high else f"{low} to {high}"


def command() -> None:
    cli.run(main, distributed=True)


if __name__ == "__main__":
    command()
