"""Train one recipe on one image set, and leave weights, numbers and pictures in the output folder.

With --code-size auto the code size is what ae_pca.py wrote into the output folder; when that is missing, the PCA
is computed and written first.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ae_cli
from ae_data import DATASETS, ImageSet, load_images
from ae_files import prepare_folder, read_count, write_atomic, write_json
from ae_linear import Pca, count_file, fit_pca, read_pca, write_pca
from ae_recipes import DEFAULT, PIXELS, RECIPES, Recipe

if TYPE_CHECKING:
    from ae_loop import Trainer

# The parser needs no torch, and neither does a refused flag: what imports it is imported when training is sure.


# fmt: off
def parser() -> ae_cli.Parser:
    default = RECIPES[DEFAULT]
    parser = ae_cli.Parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=DATASETS, default="mnist",
                      help="auto is mnist when it can be had, else digits (default: %(default)s)")
    data.add_argument("--data-root", type=Path, default=Path("data"),
                      help="where the images are, or are downloaded to (default: %(default)s)")
    data.add_argument("--workers", type=ae_cli.integer(0, 256), default=0,
                      help="DataLoader processes that fetch the batches; 0 indexes them out of the device's "
                      "memory (default: %(default)s)")

    # A recipe's setting has no default here: what is not given is not overridden.
    model = parser.add_argument_group("model")
    model.add_argument("--recipe", choices=RECIPES, default=DEFAULT, help="what to train (default: %(default)s)")
    model.add_argument("--hidden-sizes", type=ae_cli.sizes, default=argparse.SUPPRESS, metavar="N,N,...",
                       help="widths between input and code, '' for none (default: 2500)")
    model.add_argument("--code-size", type=ae_cli.code_size, default=argparse.SUPPRESS, metavar="N",
                       help="a number, or auto for what the PCA says (default: auto)")
    training = parser.add_argument_group("training")
    training.add_argument("--batch-size", type=ae_cli.integer(1), default=argparse.SUPPRESS,
                          help=f"images a step (default: {default.batch_size})")
    training.add_argument("--epochs", type=ae_cli.integer(1), default=argparse.SUPPRESS,
                          help=f"passes over the images (default: {default.epochs}; ten times that on digits)")
    training.add_argument("--lr", type=ae_cli.number(0, above=True), default=argparse.SUPPRESS,
                          help=f"learning rate (default: {default.lr:g})")
    training.add_argument("--seed", type=ae_cli.integer(0), default=argparse.SUPPRESS,
                          help=f"of weights, order and noise (default: {default.seed})")
    training.add_argument("--device", default="auto",
                          help="auto, cuda, cuda:N, mps or cpu; auto is the first there is (default: %(default)s)")
    training.add_argument("--amp", choices=("auto", "on", "off"), default="auto",
                          help="mixed precision; auto is on for CUDA, off elsewhere (default: %(default)s)")
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", type=Path, help="where results go (default: outputs)")
    return parser
# fmt: on


def resolve(args: argparse.Namespace) -> Recipe:
    """The recipe with the flags that were given; `--code-size auto` stays None until the images are known."""
    settings = {name for r in RECIPES.values() for name in r.model_args} | {"batch_size", "epochs", "lr", "seed"}
    flags = {name: value for name, value in vars(args).items() if name in settings}
    if flags.get("code_size") == "auto":
        flags["code_size"] = None
    return RECIPES[args.recipe].override(flags)


def settle(recipe: Recipe, args: argparse.Namespace, images: ImageSet, folder: Path) -> tuple[Recipe, Pca]:
    """Settle what depends on the images: the epochs and the code size; and the PCA to be held against.

    The PCA is read from the output folder; when it is not there it is fitted, and written where the code size
    needs it.
    """
    if "epochs" not in args:
        recipe = recipe.override({"epochs": images.epochs(recipe.epochs)})
    pca = read_pca(folder, images)
    path = count_file(folder, 0.95)
    automatic = "code_size" in recipe.model_args and recipe.model_args["code_size"] is None
    if automatic and path.exists():
        recipe = recipe.override({"code_size": read_count(path, PIXELS, f"run ae_pca.py --output-dir {folder} again")})
    if pca is None:
        pca = fit_pca(images)
    if automatic and not path.exists():
        count = write_pca(prepare_folder(folder), pca, 0.95)
        print(f"Number of components to explain 95% variance: {count}")
        recipe = recipe.override({"code_size": count})
    return recipe, pca


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    recipe = resolve(args)
    folder = args.output_dir or Path(recipe.default_folder)

    import torch

    from ae_loop import Trainer
    from ae_runtime import Precision, device_name, pick_device

    device = pick_device(args.device)
    precision = Precision(args.amp, device)
    images = load_images(args.dataset, args.data_root)
    recipe, pca = settle(recipe, args, images, folder)
    torch.manual_seed(recipe.seed)
    model = recipe.build()
    prepare_folder(folder)
    print(model)
    print(f"Recipe {recipe.name} on {images.title}, device {device_name(device)}, {precision}")

    trainer = Trainer(model, recipe, images.train_images, images.test_images, device, precision, args.workers)
    with ae_cli.progress() as bar:
        for row in trainer.epochs(bar):
            print(describe(row, recipe.epochs), flush=True)
    finish(trainer, images, pca, folder)


def describe(row: dict[str, Any], epochs: int) -> str:
    """One epoch in one line."""
    named = {"train_loss": "average loss", "test_loss": "test loss"}
    numbers = [f"{named.get(k, k)} {v:.4f}" for k, v in row.items() if "loss" in k]
    return f"Epoch {row['epoch']}/{epochs}: {', '.join(numbers)}, {row['seconds']:.2f} s"


def finish(trainer: "Trainer", images: ImageSet, pca: Pca, folder: Path) -> None:
    """Measure the trained model beside PCA, then write weights, record, history and pictures."""
    from ae_checkpoint import save_weights, versions
    from ae_metrics import range_factor, reconstruction_error

    model, recipe = trainer.model, trainer.recipe
    code_size = recipe.model_args["code_size"]
    metrics = reconstruction_error(model, trainer.test_images)
    metrics["pca_test_mse"] = pca.test_mse(images.test_images, code_size) * range_factor(model)
    metrics |= {k: v for k, v in trainer.history[-1].items() if "loss" in k or k == "images_per_second"}

    save_weights(folder / recipe.weights_file, model)
    write_atomic(folder / "history.csv", table(trainer.history))
    write_json(
        folder / "run.json",
        {
            "recipe": recipe.as_dict(),
            "dataset": {"name": images.name, "title": images.title, "fingerprint": images.fingerprint},
            "device": str(trainer.device),
            "precision": str(trainer.precision),
            "versions": versions(),
            "seconds": sum(row["seconds"] for row in trainer.history),
            "metrics": metrics,
        },
    )
    draw(trainer, images, metrics, folder)
    print(
        f"Test MSE {metrics['test_mse']:.5f}; PCA with {code_size} components {metrics['pca_test_mse']:.5f}: "
        f"{compare(metrics)}"
    )
    print(f"Wrote {recipe.weights_file}, run.json, history.csv and the pictures into {folder} ({images.title})")


def compare(metrics: dict[str, Any]) -> str:
    ratio = metrics["test_mse"] / metrics["pca_test_mse"]
    return f"the autoencoder's error is {abs(ratio - 1):.1%} {'above' if ratio > 1 else 'below'} PCA's"


def table(history: list[dict[str, Any]]) -> bytes:
    """The history as CSV: a header, then a row an epoch."""
    lines = [",".join(history[0]), *(",".join(str(value) for value in row.values()) for row in history)]
    return ("\n".join(lines) + "\n").encode()


def draw(trainer: "Trainer", images: ImageSet, metrics: dict[str, Any], folder: Path) -> None:
    """The loss curve and the first test images above their reconstructions."""
    from ae_figures import image_rows, loss_curve
    from ae_metrics import reconstruct

    recipe = trainer.recipe
    name = f"{images.title}, {recipe.name}"
    title = f"{name}: test loss {metrics['test_loss']:.4f} after {recipe.epochs} epochs"
    write_atomic(folder / "training_loss.png", loss_curve(trainer.batch_losses, trainer.history, title, "loss"))
    shown = trainer.test_images[:10]
    rows = {
        "original": images.test_images[:10] / 255,
        "reconstruction": reconstruct(trainer.model, shown).cpu().numpy(),
    }
    title = f"{name}: test MSE {metrics['test_mse']:.4f}, PCA {metrics['pca_test_mse']:.4f}"
    write_atomic(folder / "reconstructions.png", image_rows(rows, title))


if __name__ == "__main__":
    ae_cli.run(main)
