"""Train the sparse ensemble: five k-sparse autoencoders at once, under the command line it was published with.

The training is that of `ae_train.py --recipe sparse`. With --analyze-loss the loss of the untrained autoencoders is
first put beside that of answering every image with the mean image; with --epochs 0 that is all.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ae_train
from autoencoders.data.sets import load_images
from autoencoders.recipes import RECIPES, Recipe
from autoencoders.runtime import cli
from autoencoders.runtime.errors import UsageError

RECIPE = "sparse"


# fmt: off
def parser() -> cli.Parser:
    parser = ae_train.parser(RECIPES[RECIPE], alone=True, least_epochs=0)
    parser.description = __doc__
    ours = parser.add_argument_group("as published; --device cuda falls back to the CPU where there is no CUDA")
    ours.add_argument("--analyze-loss", "--analyze_loss", action="store_true",
                      help="before training, compare the untrained autoencoders with the mean image; with --epochs 0 "
                      "that is all")
    return parser
# fmt: on


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    training = vars(args).get("epochs") != 0
    if not training and not args.analyze_loss:
        raise UsageError("--epochs 0: there is nothing to do; give --analyze-loss too, or at least 1")
    recipe = ae_train.resolve(args)
    args.device = available(args.device)
    if args.analyze_loss and not args.dry_run:
        analyze(recipe, args)
    if training:
        ae_train.run(args)


def available(device: str) -> str:
    """The device, or the CPU where it is CUDA and this machine has none, saying so."""
    if device.split(":")[0] != "cuda":
        return device
    import torch

    if torch.cuda.device_count():
        return device
    print("CUDA is not available: falling back to the CPU", file=sys.stderr)
    return "cpu"


def analyze(recipe: Recipe, args: argparse.Namespace) -> None:
    """Print what the loss of the models that training would start from is worth, on its first batches."""
    from autoencoders.runtime.device import check_memory, pick_device
    from autoencoders.training.report import ANALYSED, analyse_untrained

    device = pick_device(args.device)
    images = load_images(**cli.data_flags(args))
    recipe = replace(recipe, image_size=images.side)
    check_memory(recipe)
    numbers = analyse_untrained(recipe, images, device)
    count = min(ANALYSED * recipe.batch_size, len(images.train_images))
    print(f"Loss before training, {images.title}: {count:,} of {len(images.train_images):,} training images")
    print(report(numbers), flush=True)


def report(numbers: dict[str, Any]) -> str:
    """The analysis as a table, and what it says."""
    mean, mse, scaled = numbers["mean_image"], numbers["mse"], numbers["scaled_mse"]
    lines = [
        "                         MSE  explained   scale  scaled MSE  explained",
        f"mean image, all    {numbers['mean_image_all']:9.5f}  {0:9.1%}",
        f"mean image         {mean:9.5f}  {0:9.1%}",
    ]
    rows = zip(mse, numbers["explained"], numbers["scale"], scaled, numbers["scaled_explained"])
    for number, (error, share, scale, least, then) in enumerate(rows, start=1):
        lines.append(f"autoencoder {number:<4}   {error:9.5f}  {share:9.1%}  {scale:6.3f}   {least:9.5f}  {then:9.1%}")
    drops = span([100 * (1 - least / error) for error, least in zip(mse, scaled)], ".1f")
    lines.append(f"Untrained, they are {compared(mse, mean)}.")
    lines.append(
        f"Scaling each by its best factor, {span(numbers['scale'], '.2f')}, lowers the error by {drops} %: "
        f"they are then {compared(scaled, mean)}"
        + ("; it is not the scale that they lack." if min(scaled) > mean else ".")
    )
    return "\n".join(lines)


def compared(errors: Sequence[float], reference: float) -> str:
    """Errors against that of the mean image, in words."""
    shares = [100 * (error / reference - 1) for error in errors]
    if max(shares) <= 0:
        return f"{span([-share for share in shares], '.1f')} % better than the mean image"
    if min(shares) >= 0:
        return f"{span(shares, '.1f')} % worse than the mean image"
    return f"from {-min(shares):.1f} % better to {max(shares):.1f} % worse than the mean image"


def span(values: Sequence[float], form: str) -> str:
    """The least and the greatest of some numbers; one number where they look the same."""
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    cli.run(main)
