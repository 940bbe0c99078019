"""Train one recipe on one image set, and leave weights, numbers and pictures in the output folder.

With --code-size auto the code size is what ae_pca.py wrote into the output folder; when that is missing, the PCA
is computed and written first.
"""

import argparse
from collections.abc import Container
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import ae_cli
from ae_data import DATASETS, ImageSet, load_images
from ae_errors import Fault, Mistake
from ae_files import lock_folder, prepare_folder, read_count, write_atomic
from ae_linear import Pca, count_file, fit_pca, read_pca, write_pca
from ae_recipes import DEFAULT, PIXELS, RECIPES, SETTINGS, Recipe, listing

if TYPE_CHECKING:
    from ae_loop import Trainer

# The parser needs no torch, and neither does a refused flag: what imports it is imported when training is sure.


# fmt: off
def parser(settings: Container[str] = SETTINGS) -> ae_cli.Parser:
    """The command line; a script for one recipe names the settings that it wants of ours."""
    parser = ae_cli.Parser(__doc__)
    shown = "(default: %(default)s)"
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=DATASETS, default="mnist",
                      help=f"auto is mnist when it can be had, else digits {shown}")
    data.add_argument("--data-root", type=Path, default=Path("data"),
                      help=f"where the images are, or are downloaded to {shown}")
    data.add_argument("--leave-out", type=ae_cli.integer(0, 9), metavar="DIGIT",
                      help="train without the images of this label; ae_eval.py then asks how strange they look")
    data.add_argument("--workers", type=ae_cli.integer(0, 256), default=0,
                      help=f"DataLoader processes that fetch the batches; 0 keeps the images on the device {shown}")

    # A setting of a recipe has no default here: a flag that is not given overrides nothing.
    def setting(group: argparse._ArgumentGroup, flag: str, help: str, **kinds: Any) -> None:
        if flag.removeprefix("--").replace("-", "_") in settings:
            group.add_argument(flag, default=argparse.SUPPRESS, help=f"{help} (default: the recipe's)", **kinds)

    model = parser.add_argument_group("model", "Settings default to the recipe's; --list-recipes shows them.")
    model.add_argument("--recipe", choices=RECIPES, default=DEFAULT, help=f"what to train {shown}")
    model.add_argument("--list-recipes", action="store_true", help="print every recipe with its settings, and end")
    setting(model, "--hidden-sizes", "widths between pixels and code, '' for none", type=ae_cli.sizes, metavar="N,N,..")
    setting(model, "--code-size", "a number, or auto for what the PCA says", type=ae_cli.code_size, metavar="N")
    setting(model, "--code-activation", "after the last layer of the encoder", choices=("relu", "none"))
    setting(model, "--loss", "squared error, or cross-entropy", choices=("mse", "bce"))
    setting(model, "--noise-factor", "standard deviation of the noise added to training images",
            type=ae_cli.number(0), metavar="X")
    setting(model, "--test-noise", "add the noise to the test images too", action="store_true")
    setting(model, "--kl-weight", "beta, the weight of the KL term", type=ae_cli.number(0), metavar="X")
    setting(model, "--kl-anneal", "let beta grow with the epoch", choices=("linear", "none"))

    setting(model, "--num-saes", "autoencoders trained side by side", type=ae_cli.integer(1, 1000), metavar="N")
    setting(model, "--features", "of each sparse autoencoder", type=ae_cli.integer(1), metavar="N")
    setting(model, "--k", "features of a code that are kept", type=ae_cli.integer(1), metavar="N")
    setting(model, "--consistency-weight", "of the term that pulls the dictionaries together",
            type=ae_cli.number(0), metavar="X")
    setting(model, "--consistency-warmup", "steps until it has its full weight", type=ae_cli.integer(0), metavar="N")
    setting(model, "--revive", "bring silent features back", choices=("lift", "off"))
    setting(model, "--reinit-threshold", "start an autoencoder afresh when mean(|rate - 0.0625| / 0.0625)^3 "
            "passes this", type=ae_cli.number(0), metavar="X")

    training = parser.add_argument_group("training")
    setting(training, "--batch-size", "images a step", type=ae_cli.integer(1), metavar="N")
    setting(training, "--epochs", "passes over the images; ten times the recipe's where there are fewer than 10,000",
            type=ae_cli.integer(1), metavar="N")
    setting(training, "--lr", "learning rate", type=ae_cli.number(0, above=True), metavar="X")
    setting(training, "--lr-schedule", "of the learning rate", choices=("constant", "one-cycle", "cosine"))
    setting(training, "--optimizer", "what updates the weights", choices=("adam", "adamw"))
    setting(training, "--weight-decay", "of the optimiser", type=ae_cli.number(0), metavar="X")
    setting(training, "--grad-clip", "longest gradient let through, 0 for any", type=ae_cli.number(0), metavar="X")
    setting(training, "--seed", "of weights, order and noise", type=ae_cli.integer(0), metavar="N")
    training.add_argument("--device", default="auto",
                          help=f"auto, cuda, cuda:N, mps or cpu; auto is the first there is {shown}")
    training.add_argument("--amp", choices=("auto", "on", "off"), default="auto",
                          help=f"mixed precision; auto is on for CUDA, off elsewhere {shown}")

    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", type=Path, help="where results go (default: outputs, or outputs/RECIPE)")
    output.add_argument("--resume", action="store_true", help="go on from the output folder's checkpoint")
    output.add_argument("--checkpoint-minutes", type=ae_cli.number(0), default=10.0, metavar="X",
                        help=f"save the place inside of long epochs too, this often {shown}")
    output.add_argument("--log-interval", type=ae_cli.integer(1), metavar="N",
                        help="print the loss of every N-th batch")
    output.add_argument("--pictures-every", type=ae_cli.integer(1), metavar="N",
                        help="keep a picture of the reconstructions of every N-th epoch")
    output.add_argument("--weights-every", type=ae_cli.integer(1), metavar="N",
                        help="keep the weights of every N-th epoch")
    return parser
# fmt: on


def resolve(args: argparse.Namespace) -> Recipe:
    """The recipe with the flags that were given; `--code-size auto` stays None until the images are known."""
    flags = {name: value for name, value in vars(args).items() if name in SETTINGS}
    if flags.get("code_size") == "auto":
        flags["code_size"] = None
    return RECIPES[args.recipe].override(flags)


def settle(recipe: Recipe, args: argparse.Namespace, images: ImageSet, folder: Path) -> tuple[Recipe, Pca, bool]:
    """Settle what depends on the images: the epochs and the code size; and the PCA to be held against.

    The PCA is read from the output folder, or fitted. The last answer is whether the code size comes from one that
    has yet to be written there.
    """
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
        count = read_count(path, PIXELS, remedy)
        if pca and pca.components_for(0.95) != count:
            raise Mistake(f"{path}: says {count}, and pca.npz beside it {pca.components_for(0.95)}; {remedy}")
        recipe = recipe.override({"code_size": count})
    # One fitted on few images has few components.
    if pca is None or min(recipe.code_size or 0, PIXELS) > len(pca.components):
        pca = fit_pca(images)
    missing = automatic and not path.exists()
    if missing:
        recipe = recipe.override({"code_size": pca.components_for(0.95)})
    return recipe, pca, missing


def main(arguments: list[str] | None = None) -> None:
    run(parser().parse_args(arguments))


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    if args.list_recipes:
        print(listing())
        return
    recipe = resolve(args)
    folder = args.output_dir or Path(recipe.default_folder)

    import torch

    from ae_loop import Trainer
    from ae_run import Run
    from ae_runtime import Precision, check_memory, device_name, keep_freed_memory, pick_device

    device = pick_device(args.device)
    precision = Precision(args.amp, device)
    images = load_images(args.dataset, args.data_root)
    if args.leave_out is not None:
        images = images.without(args.leave_out)
    recipe, pca, pca_missing = settle(recipe, args, images, folder)
    check_memory(recipe)
    keep_freed_memory()
    torch.manual_seed(recipe.seed)
    model = recipe.build()
    trainer = Trainer(model, recipe, images.train_images, images.test_images, device, precision, args.workers)
    with lock_folder(prepare_folder(folder)):
        kept = Run(trainer, images, folder)
        if not args.resume:
            kept.set_aside()
        elif kept.resume():
            return
        if pca_missing:
            count = write_pca(folder, pca, 0.95, images.title)
            print(f"Number of components to explain 95% variance: {count}")
        print(model)
        print(f"Recipe {recipe.name} on {images.title}, device {device_name(device)}, {precision}", flush=True)
        with ae_cli.progress(args.log_interval) as show:
            for row in kept.epochs(show, lambda: keep(trainer, images, folder, args), args.checkpoint_minutes):
                print(describe(row, recipe.epochs), flush=True)
        finish(trainer, images, pca, folder, args.data_root.resolve())


def describe(row: dict[str, Any], epochs: int) -> str:
    """One epoch in one line; of an ensemble the mean."""
    named = {"train_loss": "average loss", "test_loss": "test loss"}
    hidden = ("epoch", "seconds", "images_per_second")
    numbers = [
        f"{named.get(k, k)} {fmean(v if isinstance(v, list) else [v]):.4f}" for k, v in row.items() if k not in hidden
    ]
    return f"Epoch {row['epoch']}/{epochs}: {', '.join(numbers)}, {row['seconds']:.2f} s"


def keep(trainer: "Trainer", images: ImageSet, folder: Path, args: argparse.Namespace) -> None:
    """Keep the pictures and the weights of this epoch where the flags ask for them."""
    from ae_checkpoint import save_weights
    from ae_report import reconstructions

    epoch, recipe = len(trainer.history), trainer.recipe
    mark = f"epoch_{epoch:03d}"
    if args.pictures_every and epoch % args.pictures_every == 0:
        write_atomic(folder / f"reconstructions_{mark}.png", reconstructions(trainer, images, f"epoch {epoch}"))
    if args.weights_every and epoch % args.weights_every == 0:
        save_weights(folder / f"{Path(recipe.weights_file).stem}_{mark}.pt", trainer.model)


def finish(trainer: "Trainer", images: ImageSet, pca: Pca, folder: Path, root: Path) -> None:
    """Measure the trained model beside PCA, then write weights, record, history and pictures."""
    from ae_checkpoint import save_record, save_weights, versions
    from ae_report import measure, pictures, verdict

    recipe = trainer.recipe
    metrics = measure(trainer, images, pca)
    digest = save_weights(folder / recipe.weights_file, trainer.model)
    write_atomic(folder / "history.csv", table(trainer.history))
    for name, picture in pictures(trainer, images, metrics):
        write_atomic(folder / name, picture)
    save_record(folder, {
        "recipe": recipe.as_dict(), "weights": recipe.weights_file, "weights_sha256": digest,
        "dataset": {
            "name": images.name, "title": images.title, "fingerprint": images.fingerprint, "root": str(root),
            "leave_out": images.left_out,
        },
        "device": str(trainer.device), "precision": str(trainer.precision), "versions": versions(),
        "seconds": round(sum(row["seconds"] for row in trainer.history), 3), "metrics": metrics,
    })  # fmt: skip
    print(verdict(recipe, metrics))
    print(f"Wrote {recipe.weights_file}, run.json, history.csv and the pictures into {folder} ({images.title})")


def table(history: list[dict[str, Any]]) -> bytes:
    """The history as CSV: a header, then a row an epoch; an ensemble's numbers in a column each."""
    flat = [{f"{k}_{i}" if isinstance(v, list) else k: number
             for k, v in row.items() for i, number in enumerate(v if isinstance(v, list) else [v], start=1)}
            for row in history]  # fmt: skip
    lines = [",".join(flat[0]), *(",".join(str(value) for value in row.values()) for row in flat)]
    return ("\n".join(lines) + "\n").encode()


if __name__ == "__main__":
    ae_cli.run(main)
