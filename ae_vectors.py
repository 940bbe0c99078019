"""Train a sparse autoencoder on any vectors, such as the activations of another network, and measure its features.

VECTORS is a .npy file (N, d) of floats. The recipes are the sparse ones of ae_train.py; features are reported as
numbers (features.csv). With --resume a finished run is measured again, for example with --agree-with.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoencoders.data.images import ImageSet
from autoencoders.data.vectors import load_vectors
from autoencoders.recipes import BEST_SPARSE, RECIPES, Recipe, add_setting_flags, recipe_named_in, recipe_of
from autoencoders.runtime import cli
from autoencoders.runtime.errors import UsageError
from autoencoders.runtime.files import locked

if TYPE_CHECKING:
    from autoencoders.training.trained import TrainedRun

_SPARSE = [name for name, row in RECIPES.items() if "k" in row.model_args]


# fmt: off
def parser(recipe: Recipe = RECIPES[BEST_SPARSE]) -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("vectors", type=cli.path, metavar="VECTORS", help="a .npy file of floats (N, d)")
    data = parser.add_argument_group("data")
    data.add_argument("--test-fraction", type=cli.number(0, 0.9, exclusive=True), default=0.1, metavar="X",
                      help="share of the vectors used for testing, at most 10,000")
    data.add_argument("--split-seed", type=cli.integer(0), default=0, metavar="N", help="seed of that split")
    data.add_argument("--stream", choices=("auto", "on", "off"), default="auto",
                      help="leave the vectors in their file and read them during training; auto: if they would take "
                      "more than a quarter of the memory")
    model = parser.add_argument_group("model")
    model.add_argument("--recipe", choices=_SPARSE, default=BEST_SPARSE, help="what to train")
    add_setting_flags(model, "model", recipe, only_own=True)
    training = parser.add_argument_group("training")
    add_setting_flags(training, "training", recipe)
    training.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", type=cli.path, default=Path("outputs/vectors"), help="where results go")
    output.add_argument("--resume", action="store_true", help="continue from the output folder's checkpoint")
    output.add_argument("--agree-with", type=cli.path, nargs="+", default=(), metavar="FOLDER",
                        help="other runs on these vectors: do they find the same features?")
    return parser
# fmt: on


def main(arguments: list[str] | None = None) -> None:
    named = recipe_named_in(arguments)
    args = parser(named if named.name in _SPARSE else RECIPES[BEST_SPARSE]).parse_args(arguments)
    recipe = recipe_of(args)
    if recipe.epochs < 1:
        raise UsageError("--epochs 0: there is nothing to train; give at least 1")
    if args.output_dir.resolve() in args.vectors.resolve().parents:
        raise UsageError(
            f"{args.vectors}: lies in --output-dir, where results could replace it; use another --output-dir"
        )
    # What imports torch is imported once the flags are known to be good.
    from autoencoders.runtime.device import pick_device
    from autoencoders.training import health
    from autoencoders.training.report import print_epoch
    from autoencoders.training.run import Run, training_progress
    from autoencoders.training.trained import load_run
    from autoencoders.training.trainer import Trainer
    from autoencoders.training.vector_results import write_measurements

    device, started = pick_device(args.device), time.monotonic()
    vectors = load_vectors(args.vectors, args.test_fraction, args.split_seed, args.stream)
    recipe = replace(recipe, vector_size=vectors.train_images.shape[1])
    recipe = recipe if "epochs" in args else recipe.override({"epochs": vectors.epochs(recipe.epochs)})
    others = {str(folder): load_run(folder, device, vectors=True) for folder in args.agree_with}
    check_comparable(recipe, vectors, others)
    run = Run(Trainer(recipe, vectors, device), vectors, args.output_dir)
    with locked(args.output_dir):
        print(f"{vectors.title}: {len(vectors.train_images):,} vectors of {recipe.vector_size:,} numbers for training, "
              f"{len(vectors.test_images):,} for testing")  # fmt: skip
        run.resume_or_start(args.resume)
        with training_progress(run.trainer, None) as on_step:  # nothing is left to train of a finished run
            for row in run.epochs(on_step, minutes=10):
                print_epoch(row, recipe.epochs, always=False)
                health.check(run.trainer, run.reported)
        write_measurements(run, {name: other.model for name, other in others.items()})
    print(f"Took {time.monotonic() - started:.0f} s; now open {args.output_dir / 'features.csv'}")


def check_comparable(recipe: Recipe, vectors: ImageSet, others: "dict[str, TrainedRun]") -> None:
    """UsageError for a run whose features do not compare with those of this recipe on these vectors."""
    for name, other in others.items():
        if other.record["dataset"]["fingerprint"] != vectors.fingerprint:
            raise UsageError(f"--agree-with {name}: was trained on something else than these vectors, or another split")
        if other.recipe.model_args["standardize"] != recipe.model_args["standardize"]:
            raise UsageError(f"--agree-with {name}: only one of the two is standardized; their features do not compare")
        if other.recipe.settings() == recipe.settings():
            raise UsageError(f"--agree-with {name}: has the same seed and settings, so it is the same run; name "
                             "runs of other seeds")  # fmt: skip


def command() -> None:
    cli.run(main)


if __name__ == "__main__":
    command()
