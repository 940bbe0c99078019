"""Evaluate a trained model on the test images, next to PCA of the same code size.

--run names the folder of a finished run of ae_train.py; its run.json and weights are all that is needed. A table goes
to stdout, evaluation.json and evaluation.png into the folder. A variational autoencoder also gets its likelihood.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoencoders.data.binary import BINARIZED, static_draw
from autoencoders.data.images import Images, ImageSet, MappedImages
from autoencoders.data.own import read_images
from autoencoders.data.sets import DATASETS, dataset_type, load_images
from autoencoders.runtime import cli
from autoencoders.runtime.checks import printable
from autoencoders.runtime.errors import UsageError
from autoencoders.runtime.files import prepare_folder, write_atomic, write_json

if TYPE_CHECKING:
    from autoencoders.evaluation.analyses import Analysis, OutlierSplit
    from autoencoders.training.trained import TrainedRun


# fmt: off
def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--run", type=cli.path, required=True, help="folder of the trained model, such as outputs")
    parser.add_argument("--output-dir", type=cli.path, help="where results go (default: the folder of the run)")
    parser.add_argument("--dataset", type=dataset_type, metavar="SET",
                        help="the run's images (default: those it was trained on, as run.json says)")
    parser.add_argument("--data-root", type=cli.path, default=Path("data"),
                        help="where known sets are, or are downloaded")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--seed", type=cli.integer(0), default=0, metavar="N", help="random seed of all analyses")

    nats = parser.add_argument_group("likelihood (variational autoencoders)")
    nats.add_argument("--importance-samples", type=cli.integer(0, 10**6), metavar="N",
                      help="codes drawn per image; 0 skips the likelihood (default: 1000)")
    nats.add_argument("--binarize", choices=("none", "static", "dynamic"),
                      help="grey levels as they are, one fixed draw of binary pixels, or a draw by --seed "
                      "(default: as the run was trained)")

    codes = parser.add_argument_group("codes (of an ensemble, those of the first autoencoder)")
    codes.add_argument("--probe", action="store_true",
                       help="linear probe, k-NN and k-means: find labels from codes, PCA's codes and pixels")
    codes.add_argument("--features", choices=("code", "dense"), default="code",
                       help="what --probe reads of a sparse code: the code, or all activations before the selection "
                       "of the largest (default: code)")
    codes.add_argument("--agree-with", type=cli.path, nargs="*", metavar="FOLDER",
                       help="runs to match the features of this one with: do they find the same ones? Without a folder "
                       "the autoencoders of an ensemble are matched")
    codes.add_argument("--map", action="store_true", help="draw the test codes in the plane, by PCA and by t-SNE")

    errors = parser.add_argument_group("outliers, by reconstruction").add_mutually_exclusive_group()
    errors.add_argument("--outliers", type=dataset_type, metavar="SET",
                        help="the outliers are the test images of this set, or all images at this path (default: none)")
    errors.add_argument("--leave-out", type=cli.integer(0, 65535), metavar="LABEL",
                        help="the outliers are the test images of this label (default: the label that the run was "
                        "trained without, if any, or all labels but the one it was trained on)")
    return parser
# fmt: on


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)

    # What imports torch is imported once the flags are known to be good.
    import torch

    from autoencoders.evaluation import analyses
    from autoencoders.evaluation.likelihood import likelihood
    from autoencoders.evaluation.pca import load_or_fit_pca
    from autoencoders.runtime.device import keep_freed_memory, pick_device
    from autoencoders.training.checkpoint import versions
    from autoencoders.training.trained import load_run

    keep_freed_memory()
    run = load_run(args.run, pick_device(args.device))
    images = run.load_images(args.dataset, args.data_root)
    samples, binarize = importance_samples(run, args), pixels_of_likelihood(run, images, args.binarize)
    check_analyses(run, images, args)
    split, others = outlier_split(images, args), [load_run(folder, run.device) for folder in args.agree_with or ()]
    check_dictionaries([run, *others], args)
    folder = prepare_folder(args.output_dir or args.run)

    test_images = torch.tensor(images.test_images, device=run.device)
    nats = likelihood(run.model, test_images, samples, binarize, args.seed) if samples else {}
    pca = load_or_fit_pca(args.run, images, run.recipe.code_size or 0)
    subject = analyses.Subject(run.model, run.recipe, images, test_images, pca, args.seed, nats, split, args.features,
                               {str(each.folder): each.model for each in others})  # fmt: skip
    requested = {analyses.reconstruction: True, analyses.likelihood: nats, analyses.probe: args.probe,
                 analyses.agreement: args.agree_with is not None, analyses.code_map: args.map,
                 analyses.outliers: split}  # fmt: skip
    results = run_details(run, images) | {"versions": versions()}
    for analysis in (analysis for analysis, wanted in requested.items() if wanted):
        results |= write_analysis(analysis(subject), folder)
    write_json(folder / "evaluation.json", results)
    print(f"\nWrote evaluation.json and the pictures into {folder} ({subject.title})")


def run_details(run: "TrainedRun", images: ImageSet) -> dict[str, Any]:
    """The part of evaluation.json that says what was evaluated."""
    return {"recipe": run.recipe.as_dict(), "weights_sha256": run.record["weights_sha256"],
            "dataset": run.record["dataset"], "test_images": len(images.test_images),
            "device": str(run.device)}  # fmt: skip


def write_analysis(analysis: "Analysis", folder: Path) -> dict[str, Any]:
    """Print an analysis's table and write its pictures; its results."""
    results, text, pictures = analysis
    print(text, end="")
    for file, png in pictures.items():
        write_atomic(folder / file, png)
    return results


def importance_samples(run: "TrainedRun", args: argparse.Namespace) -> int:
    """Samples per image of the likelihood, 0 for none; UsageError for a likelihood that the model does not have."""
    if run.model.generative and run.model.loss_name == "bce":
        if args.binarize and args.importance_samples == 0:
            raise UsageError("--binarize: has no effect with --importance-samples 0; drop one of them")
        return 1000 if args.importance_samples is None else int(args.importance_samples)
    if args.importance_samples is not None or args.binarize:
        flag = "binarize" if args.binarize else "importance-samples"
        reason = "this run was trained with --loss mse" if run.model.generative else f"{run.recipe.name} is none"
        raise UsageError(f"--{flag} is for variational autoencoders of binary pixels: {reason}")
    return 0


def pixels_of_likelihood(run: "TrainedRun", images: ImageSet, flag: str | None) -> str:
    """The pixels of the likelihood, as `likelihood` takes them; UsageError for grey levels of binary images."""
    pixels = "published" if images.name == BINARIZED else str(run.recipe.model_args.get("binarize"))
    if flag in ("none", "dynamic") and pixels in ("static", "published"):
        raise UsageError(f"--binarize {flag}: the images of this run are one fixed draw of binary pixels; drop it")
    return pixels if flag is None or pixels == "published" else flag


def check_analyses(run: "TrainedRun", images: ImageSet, args: argparse.Namespace) -> None:
    """UsageError where an analysis needs more images or labels, or another model."""
    if args.probe and len(np.unique(images.train_labels)) < 2:
        raise UsageError(f"--probe: the training images ({images.title}) need at least two labels")
    if args.probe and not np.isin(images.test_labels, images.train_labels).any():
        raise UsageError(f"--probe: no test image ({images.title}) has a label that was trained on")
    if args.features == "dense":
        if not args.probe:
            raise UsageError("--features dense: is for --probe; add it")
        if not run.model.selects:
            raise UsageError(f"--features dense: the code of the recipe {run.recipe.name} is not sparse; drop it")
    if args.map and len(images.test_images) < 3:  # t-SNE needs neighbours
        raise UsageError(f"--map: needs at least 3 test images; there are {len(images.test_images)}")


def check_dictionaries(runs: "list[TrainedRun]", args: argparse.Namespace) -> None:
    """UsageError where --agree-with cannot match the features of the first run with those of the others."""
    first = runs[0]
    if args.agree_with is None:
        return
    for run in runs:
        if run.model.dictionaries() is None:
            raise UsageError(f"--agree-with: the recipe {run.recipe.name} ({run.folder}) has no dictionary; only a "
                             "decoder that ends in a fully connected layer has one")  # fmt: skip
        if run.recipe.model_args.get("standardize", False) != first.recipe.model_args.get("standardize", False):
            raise UsageError(f"--agree-with {run.folder}: only one of the runs is standardized; their features do not "
                             "compare")  # fmt: skip
        if run.recipe.pixels != first.recipe.pixels:
            raise UsageError(f"--agree-with {run.folder}: its images have {run.recipe.pixels:,} pixels, those of "
                             f"{first.folder} {first.recipe.pixels:,}")  # fmt: skip
    if len({run.record["weights_sha256"] for run in runs}) < len(runs):
        raise UsageError("--agree-with: names a run twice, which agrees with itself; name runs of other seeds")
    if len(runs) == 1 and first.model.members == 1:
        raise UsageError(f"--agree-with: {first.folder} is no ensemble; name the runs that it is compared with")


def outlier_split(images: ImageSet, args: argparse.Namespace) -> "OutlierSplit | None":
    """The outliers that the flags or the run name, and the inliers: test images of labels that were trained on."""
    label = images.left_out if args.leave_out is None else args.leave_out
    if label is None and images.only is None and not args.outliers:
        return None
    inlier = np.isin(images.test_labels, images.train_labels)
    outliers: Images
    if args.outliers in DATASETS:
        others = load_images(args.outliers, args.data_root, images.side)
        name, outliers = others.title, others.test_images
    elif args.outliers:
        name, outliers = load_all_images(Path(args.outliers), images.side)
    elif label is None:
        name, outliers = f"all labels but {images.only}, never trained on", images.test_images[~inlier]
    else:
        name = f"label {label}, {'also' if np.isin(label, images.train_labels) else 'never'} trained on"
        outliers, inlier = images.test_images[images.test_labels == label], inlier & (images.test_labels != label)
    inliers = images.test_images[inlier]
    if np.isin(inliers, (0, 255)).all() and not isinstance(outliers, MappedImages):
        outliers = static_draw(outliers, "test")  # else the grey levels would tell them apart
    if not (inlier.any() and len(outliers)):
        raise UsageError(f"{name}: {len(outliers)} outliers and {inlier.sum()} inliers; both need at least one image")
    return name, inliers, outliers


def load_all_images(path: Path, side: int) -> tuple[str, Images]:
    """The printable name of `path`, and all images there (N, side * side) uint8; many of them stay in their file."""
    images, _, _ = read_images(path, side, has_parts=False, stream="auto")
    return printable(path.resolve().name, 40), images


def command() -> None:
    cli.run(main)


if __name__ == "__main__":
    command()
