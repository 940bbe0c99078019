"""Train one recipe on one image set; write weights, numbers and pictures into the output folder.

With --code-size auto the code size is the number that ae_pca.py wrote into the output folder; if that file is missing,
the PCA is computed and written first.
"""

import argparse
import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoencoders.data.binary import binarized
from autoencoders.data.images import ImageSet
from autoencoders.data.sets import add_data_flags, data_arguments, load_images, preparation_notice
from autoencoders.recipes import (
    DEFAULT,
    RECIPES,
    Recipe,
    add_setting_flags,
    format_recipes,
    recipe_named_in,
    recipe_of,
)
from autoencoders.runtime import cli, processes
from autoencoders.runtime.errors import UsageError
from autoencoders.runtime.files import locked
from autoencoders.training.trackers import TRACKERS, Trackers

if TYPE_CHECKING:
    from autoencoders.training.run import Run


# fmt: off
def parser(recipe: Recipe = RECIPES[DEFAULT], only_own: bool = False) -> cli.Parser:
    """The command line, with the defaults of `recipe`; `only_own` is for a script that trains that recipe alone."""
    parser = cli.Parser(__doc__, dry_run=not only_own)
    parser.set_defaults(dry_run=False)
    data = parser.add_argument_group("data")
    add_data_flags(data, stream=True, default=recipe.dataset)
    labels = data.add_mutually_exclusive_group()
    labels.add_argument("--leave-out", type=cli.integer(0, 65535), metavar="LABEL",
                        help="train without the images of this label; ae_eval.py then measures how well they are "
                        "detected")
    labels.add_argument("--only", type=cli.integer(0, 65535), metavar="LABEL",
                        help="train on the images of this label alone; ae_eval.py then measures how well all others "
                        "are detected (with fewer than 10,000 images the recipe's epochs are ten times as many)")
    data.add_argument("--workers", type=cli.integer(0, 256), default=0,
                      help="no effect: the images are in memory")

    model = parser.add_argument_group("model", None if only_own else (
        f"Flags and defaults are those of the recipe {recipe.name}; --recipe NAME --help shows those of another."))
    names = [recipe.name] if only_own else list(RECIPES)
    model.add_argument("--recipe", choices=names, default=recipe.name if only_own else DEFAULT, help="what to train")
    if not only_own:
        model.add_argument("--list-recipes", action="store_true", help="print every recipe with its settings and exit")
    add_setting_flags(model, "model", recipe, only_own)

    training = parser.add_argument_group("training")
    add_setting_flags(training, "training", recipe, only_own)
    training.add_argument("--device", default="auto",
                          help="auto, cuda, cuda:N, mps or cpu; auto is the first of these that is available")
    training.add_argument("--amp", choices=("auto", "on", "off"), default="auto",
                          help="mixed precision; auto is on for CUDA, off elsewhere")

    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", type=cli.path, help=f"where results go (default: {recipe.default_folder})")
    output.add_argument("--resume", action="store_true", help="continue from the output folder's checkpoint")
    output.add_argument("--checkpoint-minutes", type=cli.number(0), default=10.0, metavar="X",
                        help="minutes between checkpoints inside an epoch; others are saved after the first and the "
                             "last epoch, and after those between unless it takes more than 5%% of the time")
    output.add_argument("--log-interval", type=cli.integer(1), metavar="N",
                        help="print the loss of every N-th batch, and every epoch (default: at most 20 epochs)")
    output.add_argument("--pictures-every", type=cli.integer(1), metavar="N",
                        help="write a picture of the reconstructions every N epochs (default: at the end only)")
    output.add_argument("--weights-every", type=cli.integer(1), metavar="N",
                        help="write the weights every N epochs (default: at the end only)")
    output.add_argument("--tracker", type=cli.items(cli.one_of(TRACKERS)), action=cli.ListAction, extend=True,
                        default=(), metavar="NAME",
                        help=f"also log to experiment trackers: {', '.join(TRACKERS)} (default: none)")
    output.add_argument("--tracker-project", default="autoencoders", metavar="NAME", help="the tracker's project name")
    output.add_argument("--tracker-interval", type=cli.integer(1), default=10, metavar="N",
                        help="log the loss of every N-th batch to the tracker")
    return parser
# fmt: on


def main(arguments: list[str] | None = None) -> None:
    args = parser(recipe_named_in(arguments)).parse_args(arguments)
    if args.list_recipes:
        print(format_recipes())
    else:
        train(recipe_of(args), args)


def train(recipe: Recipe, args: argparse.Namespace) -> None:
    """From flags to pictures: images, code size, trainer, epochs, report."""
    if not check_flags(recipe, args):
        return
    # What imports torch is imported once the flags are known to be good.
    from autoencoders.evaluation.pca import write_pca
    from autoencoders.runtime.device import pick_device
    from autoencoders.training import health, report
    from autoencoders.training.run import Run, resolve_code_size, training_progress
    from autoencoders.training.trainer import Trainer

    processes.setup()
    device, folder, started = pick_device(args.device), args.output_dir or Path(recipe.default_folder), time.monotonic()
    images = load_training_images(recipe, args)
    recipe = fit_to_images(recipe, args, images)
    recipe, pca, pca_is_new = processes.on_main(lambda: resolve_code_size(recipe, images, folder))
    run = Run(Trainer(recipe, images, device, args.amp), images, folder)
    if args.dry_run:
        print_dry_run(run, args)
        return
    with locked(folder) if processes.is_main() else contextlib.nullcontext():
        if run.resume_or_start(args.resume):
            return
        if not processes.is_main():
            run.follow()
            return
        if pca_is_new:
            print(f"Number of components to explain 95% variance: {write_pca(folder, pca, 0.95, images.title)}")
        if cli.is_verbose():
            print_plan(run)
        progress = training_progress(run.trainer, args.log_interval)
        with Trackers(run, args.tracker, args.tracker_project, args.tracker_interval) as trackers, progress as on_step:
            for row in run.epochs(on_step, args.checkpoint_minutes):
                report.print_epoch(row, recipe.epochs, always=bool(args.log_interval))
                report.write_epoch_files(run, pca, trackers, args.pictures_every, args.weights_every)
                health.check(run.trainer, run.reported)
                trackers.log_epochs()
            report.print_summary(run, report.write_results(run, pca, trackers), started)


def check_flags(recipe: Recipe, args: argparse.Namespace) -> bool:
    """Check what needs no images; False when a dry run ends here, because images would be downloaded."""
    if recipe.epochs < 1:
        raise UsageError("--epochs 0: there is nothing to train; give at least 1")
    if args.workers:
        cli.log.info(cli.NO_WORKERS)
    for name in args.tracker:
        cli.check_installed(f"--tracker {name}", [name])
    notice = preparation_notice(**data_arguments(args)) if args.dry_run else ""
    if notice:
        print(f"{notice}, and recipe {recipe.name} trained")
    return not notice


def load_training_images(recipe: Recipe, args: argparse.Namespace) -> ImageSet:
    """The images that the flags select, in binary pixels for --binarize static."""
    images = binarized(load_images(**data_arguments(args)), recipe.model_args.get("binarize"))
    if args.only is not None:
        return images.keeping_only(args.only)
    return images if args.leave_out is None else images.leaving_out(args.leave_out)


def fit_to_images(recipe: Recipe, args: argparse.Namespace, images: ImageSet) -> Recipe:
    """The recipe for images of this size; a small set gets more epochs, unless --epochs is given."""
    recipe = replace(recipe, image_size=images.side)
    if recipe.model_args.get("shift", 0) >= images.side:
        raise UsageError(f"--shift {recipe.model_args['shift']}: moves images of {images.side} pixels out of sight; "
                         "give less")  # fmt: skip
    return recipe if "epochs" in args else recipe.override({"epochs": images.epochs(recipe.epochs)})


def print_plan(run: "Run") -> None:
    """Print the model, layer by layer, what it is trained on and how, and where the results go."""
    trainer, images, recipe = run.trainer, run.images, run.trainer.recipe
    leaves = [(name or "model", part) for name, part in trainer.model.named_modules() if not list(part.children())]
    used = {name: value for name, value in recipe.settings().items() if value and name not in ("name", "epochs")}
    print(f"Recipe {recipe.name}: {recipe.summary}, {int(recipe.count_parameters()):,} weights")
    print("\n".join(f"  {name}: {layer}" for name, layer in leaves))
    print(f"Settings: {', '.join(f'{name} {value}' for name, value in used.items())}")
    scale = ", pixels in [-1, 1], four times that in [0, 1]" if trainer.model.output_range == "signed" else ""
    print(f"Loss: {trainer.model.loss_unit}{scale}")
    print(f"Images: {images.title}, {len(images.train_images):,} for training, {len(images.test_images):,} for testing")
    print(f"Training: epochs {len(trainer.history) + 1} to {recipe.epochs} of {len(trainer.batch_sizes)} batches, "
          f"device {trainer.device}, {trainer.precision}; results go into {run.folder}", flush=True)  # fmt: skip


def print_dry_run(run: "Run", args: argparse.Namespace) -> None:
    """Print what this run would do and write, with everything resolved."""
    if not (args.resume and run.resume()):
        print_plan(run)
        print(f"Would write {run.trainer.recipe.weights_file}, run.json, history.csv, checkpoint.pt and the pictures; "
              f"trackers: {', '.join(args.tracker) or 'none'}")  # fmt: skip


def command() -> None:
    cli.run(main, distributed=True)


if __name__ == "__main__":
    command()
