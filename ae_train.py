"""Train one recipe on one image set, and leave weights, numbers and pictures in the output folder.

With --code-size auto the code size is what ae_pca.py wrote into the output folder; when that is missing, the PCA
is computed and written first.
"""

import argparse
import contextlib
import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from autoencoders.data.sets import ImageSet, load_images, would_download
from autoencoders.evaluation.pca import Pca, count_file, fit_pca, read_pca, write_pca
from autoencoders.recipes import DEFAULT, RECIPES, SETTINGS, TRAINING, Recipe, listing, owners
from autoencoders.runtime import cli, processes
from autoencoders.runtime.errors import Fault, Mistake
from autoencoders.runtime.files import hold_folder, read_count, write_atomic
from autoencoders.training.trackers import TRACKERS, Trackers, flat, require

if TYPE_CHECKING:
    from autoencoders.training.run import Run
    from autoencoders.training.trainer import Trainer

# The parser needs no torch, and neither does a refused flag: what imports it is imported when training is sure.


# fmt: off
def parser(recipe: Recipe = RECIPES[DEFAULT], alone: bool = False, least_epochs: int = 1) -> cli.Parser:
    """The command line, with the defaults of `recipe`; where that is `alone`, a script's only one, with its flags."""
    parser = cli.Parser(__doc__)
    shown = "(default: %(default)s)"
    data = parser.add_argument_group("data")
    cli.add_data_flags(data, stream=True)
    data.add_argument("--leave-out", type=cli.integer(0, 65535), metavar="LABEL",
                      help="train without the images of this label; ae_eval.py then asks how strange they look "
                      "(default: none)")
    data.add_argument("--workers", type=cli.integer(0, 256), default=0,
                      help=f"DataLoader processes that fetch the batches; 0 keeps the images on the device {shown}")

    # A setting of a recipe has no default here: a flag that is not given overrides nothing.
    def setting(group: argparse._ArgumentGroup, flag: str, help: str, **kinds: Any) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        if not alone or recipe.has(name):
            default = f"(default: {recipe.shown(name)})" if recipe.has(name) else f"(only of {owners(name)})"
            group.add_argument(flag, default=argparse.SUPPRESS, help=f"{help} {default}", **kinds)

    about = f"Defaults are those of the recipe {recipe.name}; --recipe NAME --help shows those of another."
    model = parser.add_argument_group("model", None if alone else about)
    one = [recipe.name] if alone else list(RECIPES)
    model.add_argument("--recipe", choices=one, default=one[0] if alone else DEFAULT, help=f"what to train {shown}")
    if not alone:
        model.add_argument("--list-recipes", action="store_true", help="print every recipe with its settings, and end")
    setting(model, "--hidden-sizes", "widths between pixels and code, '' for none", type=cli.sizes, metavar="N,N,..")
    setting(model, "--code-size", "a number, or auto for what the PCA says", type=cli.code_size, metavar="N")
    setting(model, "--activation", "between the layers of a fully connected model", choices=("relu", "gelu"))
    setting(model, "--code-activation", "after the last layer of the encoder", choices=("relu", "none"))
    setting(model, "--linear-path", "a linear map beside the layers of either half", action="store_true")
    setting(model, "--loss", "squared error, or cross-entropy", choices=("mse", "bce"))
    setting(model, "--noise-factor", "standard deviation of the noise added to training images",
            type=cli.number(0), metavar="X")
    setting(model, "--test-noise", "add the noise to the test images too", action="store_true")
    setting(model, "--kl-weight", "beta, the weight of the KL term", type=cli.number(0), metavar="X")
    setting(model, "--kl-anneal", "let beta grow with the epoch", choices=("linear", "none"))

    setting(model, "--num-saes", "autoencoders trained side by side", type=cli.integer(1, 1000), metavar="N")
    setting(model, "--features", "of each sparse autoencoder", type=cli.integer(1), metavar="N")
    setting(model, "--k", "features of a code that are kept", type=cli.integer(1), metavar="N")
    setting(model, "--consistency-weight", "of the term that pulls the dictionaries together",
            type=cli.number(0), metavar="X")
    setting(model, "--consistency-warmup", "steps until it has its full weight", type=cli.integer(0), metavar="N")
    setting(model, "--revive", "bring silent features back", choices=("lift", "off"))
    setting(model, "--reinit-threshold", "start an autoencoder afresh when mean(|rate - 0.0625| / 0.0625)^3 "
            "passes this", type=cli.number(0), metavar="X")

    training = parser.add_argument_group("training")
    setting(training, "--batch-size", "images a step", type=cli.integer(1), metavar="N")
    setting(training, "--micro-batches", "parts that a batch is cut into and computed in: the same bits on any "
            "number of processes up to so many", type=cli.integer(1, 64), metavar="N")
    setting(training, "--epochs", "passes over the images; ten times the recipe's where there are fewer than 10,000",
            type=cli.integer(least_epochs), metavar="N")
    setting(training, "--lr", "learning rate", type=cli.number(0, above=True), metavar="X")
    setting(training, "--lr-schedule", "of the learning rate", choices=("constant", "one-cycle", "cosine"))
    setting(training, "--optimizer", "what updates the weights", choices=("adam", "adamw"))
    setting(training, "--weight-decay", "of the optimiser", type=cli.number(0), metavar="X")
    setting(training, "--grad-clip", "longest gradient let through, 0 for any", type=cli.number(0), metavar="X")
    setting(training, "--seed", "of weights, order and noise", type=cli.integer(0), metavar="N")
    training.add_argument("--device", default="auto",
                          help=f"auto, cuda, cuda:N, mps or cpu; auto is the first there is {shown}")
    training.add_argument("--amp", choices=("auto", "on", "off"), default="auto",
                          help=f"mixed precision; auto is on for CUDA, off elsewhere {shown}")

    training.add_argument("--cuda-graphs", choices=("on", "off"), default="off",
                          help=f"replay each step as a CUDA graph: fewer launches, not yet measured {shown}")

    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", type=Path, help=f"where results go (default: {recipe.default_folder})")
    output.add_argument("--resume", action="store_true", help="go on from the output folder's checkpoint")
    output.add_argument("--checkpoint-minutes", type=cli.number(0), default=10.0, metavar="X",
                        help=f"save the place inside of long epochs too, this often {shown}")
    output.add_argument("--log-interval", type=cli.integer(1), metavar="N",
                        help="print the loss of every N-th batch (default: of none)")
    output.add_argument("--pictures-every", type=cli.integer(1), metavar="N",
                        help="keep a picture of the reconstructions of every N-th epoch (default: of none)")
    output.add_argument("--weights-every", type=cli.integer(1), metavar="N",
                        help="keep the weights of every N-th epoch (default: of none)")
    output.add_argument("--tracker", choices=TRACKERS, action="append", default=[],
                        help="log to this experiment tracker too; may be given several times (default: none)")
    output.add_argument("--tracker-project", default="autoencoders", metavar="NAME",
                        help=f"the project that the tracker files the run under {shown}")
    output.add_argument("--tracker-interval", type=cli.integer(1), default=10, metavar="N",
                        help=f"log the loss of every N-th batch {shown}")
    return parser
# fmt: on


def named(arguments: list[str] | None) -> Recipe:
    """The recipe that a command line names, whose defaults its --help shows; the usual one where it names none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe", default=DEFAULT)
    with contextlib.suppress(argparse.ArgumentError):
        return RECIPES.get(parser.parse_known_args(arguments)[0].recipe, RECIPES[DEFAULT])
    return RECIPES[DEFAULT]


def resolve(args: argparse.Namespace) -> Recipe:
    """The recipe with the flags that were given; `--code-size auto` stays None until the images are known."""
    flags = {name: value for name, value in vars(args).items() if name in SETTINGS}
    if flags.get("code_size") == "auto":
        flags["code_size"] = None
    return RECIPES[args.recipe].override(flags)


def settle(recipe: Recipe, args: argparse.Namespace, images: ImageSet, folder: Path) -> tuple[Recipe, Pca, bool]:
    """Settle what depends on the images: their size, the epochs and the code size; and the PCA to be held against.

    The PCA is read from the output folder, or fitted. The last answer is whether the code size comes from one that
    has yet to be written there.
    """
    recipe = replace(recipe, image_size=images.side)
    if "epochs" not in args:
        recipe = recipe.override({"epochs": images.epochs(recipe.epochs)})
    path = count_file(folder, 0.95)
    automatic = recipe.code_size is None
    try:
        pca = read_pca(folder, images)
    except (Mistake, Fault):
        if automatic:
            raise
        pca = None  # of other images, or damaged; with a code size given it is only there to compare with
    if automatic and path.exists():
        remedy = f"run ae_pca.py --output-dir {folder} again, or give a --code-size"
        count = read_count(path, recipe.pixels, remedy)
        if pca and pca.components_for(0.95) != count:
            raise Mistake(f"{path}: says {count}, and pca.npz beside it {pca.components_for(0.95)}; {remedy}")
        recipe = recipe.override({"code_size": count})
    # One fitted on few images has few components.
    if pca is None or min(recipe.code_size or 0, recipe.pixels) > len(pca.components):
        pca = fit_pca(images)
    missing = automatic and not path.exists()
    if missing:
        recipe = recipe.override({"code_size": pca.components_for(0.95)})
    return recipe, pca, missing


def main(arguments: list[str] | None = None) -> None:
    args = parser(named(arguments)).parse_args(arguments)
    if args.list_recipes:
        print(listing())
    else:
        run(args)


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    recipe = resolve(args)
    require(args.tracker)
    folder = args.output_dir or Path(recipe.default_folder)
    if args.dry_run and (first := would_download(args.dataset, args.data_root)):
        print(f"{first}, and recipe {recipe.name} trained")
        return

    from autoencoders.training.run import Run

    processes.join()
    trainer, images, pca, pca_missing = prepare(recipe, args, folder)
    if args.dry_run:
        if args.resume and Run(trainer, images, folder).resume():
            return
        print(plan(trainer, images, folder, args))
        return
    with hold_folder(folder):
        kept = Run(trainer, images, folder)
        if kept.begin(args.resume):
            return
        if not processes.is_first():
            from autoencoders.training.trainer import Diverged

            with contextlib.suppress(Diverged):  # every process finds that out, and the first says what is kept
                for _ in trainer.epochs():
                    pass
            return
        if pca_missing:
            count = write_pca(folder, pca, 0.95, images.title)
            print(f"Number of components to explain 95% variance: {count}")
        train(kept, args, pca)


def prepare(recipe: Recipe, args: argparse.Namespace, folder: Path) -> "tuple[Trainer, ImageSet, Pca, bool]":
    """All that training takes: the recipe's model where it starts, its images, the PCA, and whether that is new."""
    import torch

    from autoencoders.runtime.device import Precision, check_memory, keep_freed_memory, pick_device
    from autoencoders.training.trainer import Trainer

    device = pick_device(args.device)
    precision, graphs = Precision(args.amp, device), args.cuda_graphs == "on"
    if graphs and device.type != "cuda":
        raise Mistake(f"--cuda-graphs on: needs a CUDA device, and this run is on {device}; leave it off")
    if graphs and processes.size() > 1:
        raise Mistake("--cuda-graphs on: is for one process, and torchrun has started more; leave it off")
    check_parts(recipe, graphs)
    images = load_images(**cli.data_flags(args))
    if args.leave_out is not None:
        images = images.without(args.leave_out)
    if args.workers and images.origin["stream"]:
        raise Mistake("--workers: images in a file are read ahead by a thread of the run itself; leave it out")
    fitting = replace(recipe, image_size=images.side)
    check_memory(fitting if fitting.code_size else fitting.override({"code_size": 1}))  # before a PCA that takes long
    recipe, pca, pca_missing = processes.first(partial(settle, recipe, args, images, folder))
    check_memory(recipe)
    keep_freed_memory()
    torch.manual_seed(recipe.seed)
    model = recipe.build()
    trainer = Trainer(model, recipe, images.train_images, images.test_images, device, precision, args.workers, graphs)
    return trainer, images, pca, pca_missing


def check_parts(recipe: Recipe, graphs: bool) -> None:
    """Raise Mistake when the recipe's batches cannot be cut into the parts that were asked for."""
    parts, size = recipe.micro_batches, processes.size()
    if parts > 1 and graphs:
        raise Mistake("--cuda-graphs on: captures whole batches; leave it off, or --micro-batches")
    if 1 < parts < size:
        raise Mistake(f"--micro-batches {parts}: is too few for {size} processes; give as many, or leave it out")


def train(kept: "Run", args: argparse.Namespace, pca: Pca) -> None:
    """Train to the end, saying and keeping what the flags ask for, and leave the results."""
    from autoencoders.runtime.device import device_name
    from autoencoders.training.health import Health

    trainer, images, folder = kept.trainer, kept.images, kept.folder
    recipe, health = trainer.recipe, Health()
    where = {"dataset": images.title, "device": str(trainer.device), "precision": str(trainer.precision)}
    if not args.quiet:
        print(trainer.model)
        print(f"Recipe {recipe.name} on {images.title}, device {device_name(trainer.device)}, {trainer.precision}",
              flush=True)  # fmt: skip
    with Trackers(
        args.tracker, folder, args.tracker_project, args.tracker_interval, {**recipe.as_dict(), **where}, kept.kept
    ) as trackers:
        trackers.epochs(trainer)
        with cli.progress(len(images.train_images), recipe.epochs, args.log_interval) as show:
            keeping = partial(keep, trainer, images, folder, args, trackers)
            for row in kept.epochs(show, keeping, args.checkpoint_minutes):
                if not args.quiet:
                    print(describe(row, recipe.epochs), flush=True)
                for line in health.epoch(trainer):
                    cli.warn(line)
                trackers.epochs(trainer)
        with processes.alone():
            finish(trainer, images, pca, folder, trackers)


def plan(trainer: "Trainer", images: ImageSet, folder: Path, args: argparse.Namespace) -> str:
    """What this run would do and write, with everything resolved."""
    recipe, count = trainer.recipe, sum(weight.numel() for weight in trainer.model.parameters())
    settings = {**dict(recipe.model_args), **{name: getattr(recipe, name) for name in TRAINING}}
    return (
        f"Recipe {recipe.name}, {count:,} weights: {', '.join(f'{k} {v}' for k, v in settings.items())}\n"
        f"Images {images.title}: {len(images.train_images):,} to train on, {len(images.test_images):,} to test on\n"
        f"Device {trainer.device}, {trainer.precision}; trackers: {', '.join(args.tracker) or 'none'}\n"
        f"Would train epochs {len(trainer.history) + 1} to {recipe.epochs}, and write {recipe.weights_file}, run.json, "
        f"history.csv, checkpoint.pt and the pictures into {folder}"
    )


def describe(row: dict[str, Any], epochs: int) -> str:
    """One epoch in one line; of an ensemble the mean."""
    named = {"train_loss": "average loss", "test_loss": "test loss"}
    hidden = ("epoch", "seconds", "images_per_second")
    numbers = [
        f"{named.get(k, k)} {fmean(v if isinstance(v, list) else [v]):.4f}" for k, v in row.items() if k not in hidden
    ]
    return f"Epoch {row['epoch']}/{epochs}: {', '.join(numbers)}, {row['seconds']:.2f} s"


def keep(trainer: "Trainer", images: ImageSet, folder: Path, args: argparse.Namespace, trackers: Trackers) -> None:
    """Keep the pictures and the weights of this epoch where the flags ask for them."""
    from autoencoders.training.checkpoint import save_weights
    from autoencoders.training.report import reconstructions

    epoch, recipe = len(trainer.history), trainer.recipe
    mark = f"epoch_{epoch:03d}"
    if args.pictures_every and epoch % args.pictures_every == 0:
        path = folder / f"reconstructions_{mark}.png"
        write_atomic(path, reconstructions(trainer, images, f"epoch {epoch}"))
        trackers.picture(trainer, path, "epoch_reconstructions")
    if args.weights_every and epoch % args.weights_every == 0:
        save_weights(folder / f"{Path(recipe.weights_file).stem}_{mark}.pt", trainer.model)


def finish(trainer: "Trainer", images: ImageSet, pca: Pca, folder: Path, trackers: Trackers) -> None:
    """Measure the trained model beside PCA, then write weights, record, history and pictures."""
    from autoencoders.training.checkpoint import save_record, save_weights, versions
    from autoencoders.training.health import behind_pca
    from autoencoders.training.report import measure, pictures, verdict

    recipe = trainer.recipe
    metrics = measure(trainer, images, pca)
    digest = save_weights(folder / recipe.weights_file, trainer.model)
    history = table(trainer.history)
    write_atomic(folder / "history.csv", history)
    for name, picture in pictures(trainer, images, metrics):
        write_atomic(folder / name, picture)
        trackers.picture(trainer, folder / name)
    save_record(folder, {
        "recipe": recipe.as_dict(), "weights": recipe.weights_file, "weights_sha256": digest,
        "history_sha256": hashlib.sha256(history).hexdigest(),
        "dataset": {
            "name": images.name, "title": images.title, "fingerprint": images.fingerprint, **images.origin,
            "leave_out": images.left_out,
        },
        "device": str(trainer.device), "precision": str(trainer.precision), "versions": versions(),
        "seconds": round(sum(row["seconds"] for row in trainer.history), 3), "metrics": metrics,
    })  # fmt: skip
    trackers.summary(trainer, metrics)
    print(verdict(recipe, metrics))
    print(f"Wrote {recipe.weights_file}, run.json, history.csv and the pictures into {folder} ({images.title})")
    if behind := behind_pca(trainer, metrics):
        cli.warn(behind)


def table(history: list[dict[str, Any]]) -> bytes:
    """The history as CSV: a header, then a row an epoch; an ensemble's numbers in a column each."""
    rows = [flat(row) for row in history]
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


if __name__ == "__main__":
    cli.run(main)
