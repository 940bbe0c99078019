"""What is a trained model worth? Its errors on the test images with PCA's beside them, and more where it is asked for.

--run names the folder of a finished run of ae_train.py: its run.json and weights are all that is needed. A table goes
to stdout, evaluation.json and evaluation.png into the folder. A variational autoencoder gets its likelihood too, over
whose images the processes of torchrun share the work.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoencoders.data.own import load_whole
from autoencoders.data.sets import DATASETS, ImageSet, Pixels, load_images
from autoencoders.evaluation.pca import Pca, fit_pca, read_pca
from autoencoders.recipes import Recipe
from autoencoders.runtime import cli, processes
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import prepare_folder, write_atomic, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from ae_models import Autoencoder
    from autoencoders.data.stream import Images
    from autoencoders.evaluation.scores import Scores

# As in ae_train.py, what imports torch is imported once the flags are found good.

EVALUATION_FILE = "evaluation.json"
_SHOWN = 8  # images in a row of a figure
_PART = 2_000  # images that are looked at at once
_LEAST_MAPPED = 3  # with fewer there are no neighbours to keep
_ROWS = {
    "test_mse_unit": ("MSE, pixels in [0, 1]", ".5f"), "test_mse_signed": ("MSE, pixels in [-1, 1]", ".5f"),
    "psnr": ("PSNR, dB", ".2f"), "ssim": ("SSIM", ".4f"), "pearson": ("Pearson correlation", ".4f"),
    "l0": ("L0, numbers of a code not 0", ".1f"), "dead_features": ("dead, share of the code", ".4f"),
    "mmcs": ("MMCS of the dictionaries", ".4f"), "noisy_mse": ("MSE of noisy images", ".5f"),
    "restored_mse": ("MSE of restored images", ".5f"),
}  # fmt: skip
_NATS = {"elbo": "ELBO", "nll": "negative log-likelihood", "kl_loss": "KL term", "entropy_floor": "entropy floor"}


# fmt: off
def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    shown = "(default: %(default)s)"
    parser.add_argument("--run", type=Path, required=True, help="folder of the trained model, such as outputs")
    parser.add_argument("--output-dir", type=Path, help="where results go (default: the folder of the run)")
    parser.add_argument("--dataset", type=cli.dataset, help="the run's images (default: what the run names)")
    parser.add_argument("--data-root", type=Path, help="where the images are (default: where the run found them)")
    parser.add_argument("--device", default="auto", help=f"auto, cuda, cuda:N, mps or cpu {shown}")
    parser.add_argument("--seed", type=cli.integer(0), default=0, metavar="N",
                        help=f"of everything drawn at random {shown}")

    nats = parser.add_argument_group("likelihood (variational autoencoders)")
    nats.add_argument("--importance-samples", type=cli.integer(0, 10**6), metavar="N",
                      help="codes drawn for each image; 0 leaves the likelihood out (default: 1000)")
    nats.add_argument("--binarize", choices=("none", "static", "dynamic"),
                      help="grey levels as they are, one fixed draw of binary pixels, or one by --seed (default: none)")

    codes = parser.add_argument_group("codes (of an ensemble, those of the first autoencoder)")
    codes.add_argument("--probe", action="store_true",
                       help="read labels off codes, PCA's codes and pixels: logistic regression, nearest neighbours")
    codes.add_argument("--map", action="store_true", help="draw the test codes in the plane, by PCA and by t-SNE")

    errors = parser.add_argument_group("outliers, by reconstruction error").add_mutually_exclusive_group()
    errors.add_argument("--outliers", type=cli.dataset, metavar="NAME_OR_PATH",
                        help="the test images of this set, or all at this path, are the strange ones (default: none)")
    errors.add_argument("--leave-out", type=cli.integer(0, 9), metavar="DIGIT",
                        help="the test images of this label are (default: the one the run was trained without, if any)")
    return parser
# fmt: on


@dataclass(frozen=True)
class Subject:
    """A trained model and what it is held against: its images, and PCA with as many components as its code."""

    model: "Autoencoder"
    recipe: Recipe
    device: Any
    images: ImageSet
    pca: Pca

    @property
    def title(self) -> str:
        return f"{self.images.title}, {self.recipe.name}"

    @property
    def pca_title(self) -> str:
        whole = self.pca.samples == len(self.images.train_images)
        return f"PCA{'' if whole else f' of {self.pca.samples:,} images'}, {self.components}"

    @property
    def components(self) -> int:
        return min(self.recipe.code_size or 0, len(self.pca.components))

    def to_device(self, images: Pixels) -> "Images":
        from autoencoders.data.stream import to_device

        return to_device(images, self.device)

    @cached_property
    def test_images(self) -> "Images":
        return self.to_device(self.images.test_images)

    def rebuilt(self, images: np.ndarray) -> "tuple[Tensor, Tensor]":
        """Reconstructions in unit range, (S, n, 784), of the model's S autoencoders, and PCA's, (n, 784)."""
        import torch

        from autoencoders.evaluation.metrics import reconstruct

        ours = reconstruct(self.model, self.to_device(images)).cpu()
        pca = self.pca.decode(self.pca.encode(images, self.components))
        return ours.view(-1, *images.shape), torch.from_numpy(pca)

    def scored(self, images: Pixels) -> "tuple[list[Scores], Scores]":
        """The scores of each image (n, 784) uint8 through each of the model's autoencoders, and through PCA."""
        import torch

        from autoencoders.evaluation.metrics import to_pixels
        from autoencoders.evaluation.scores import scores

        found = []
        for start in range(0, len(images), _PART):
            part = images[start : start + _PART]
            ours, pca = self.rebuilt(part)
            found.append([scores(to_pixels(torch.tensor(part), "unit"), y) for y in (*ours, pca)])
        *each, by_pca = (
            {name: torch.cat([one[name] for one in of_one]) for name in of_one[0]} for of_one in zip(*found)
        )
        return each, by_pca


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)

    from autoencoders.runtime.device import keep_freed_memory, pick_device
    from autoencoders.training.checkpoint import images_of, load_run, versions

    keep_freed_memory()
    processes.join()
    device = pick_device(args.device)
    model, recipe, record = load_run(args.run, device)
    samples = importance_samples(model, recipe, args)
    images = images_of(args.run, record["dataset"], args.dataset, args.data_root)
    strange = strange_images(images, args, Path(record["dataset"]["root"]))
    refuse_too_few(images, args)
    subject = Subject(model, recipe, device, images, processes.first(partial(pca_of, args.run, recipe, images)))
    if not processes.is_first():  # the likelihood is what takes long
        if samples and not args.dry_run:
            likelihood(subject, samples, args.binarize or "none", args.seed)
        return
    folder = args.output_dir or args.run
    if args.dry_run:
        extra = {"a likelihood": samples, "probe": args.probe, "code_map.png": args.map, "outliers.png": strange}
        more = "".join(f", {name}" for name, wanted in extra.items() if wanted)
        print(f"Would measure {subject.title} on {len(images.test_images):,} test images{more}")
        print(f"Would write {EVALUATION_FILE} and the pictures into {folder}")
        return
    prepare_folder(folder)

    results: dict[str, Any] = {
        "recipe": recipe.as_dict(), "weights_sha256": record["weights_sha256"], "dataset": record["dataset"],
        "test_images": len(images.test_images), "device": str(device), "versions": versions(),
    }  # fmt: skip
    with processes.alone():
        results |= reconstruction(subject, folder)
    if samples:
        results["likelihood"] = likelihood(subject, samples, args.binarize or "none", args.seed)
    if args.probe:
        results["probe"] = probe(subject, args.seed)
    if args.map:
        code_map(subject, folder, args.seed)
    if strange:
        results["outliers"] = outliers(subject, folder, *strange)
    write_json(folder / EVALUATION_FILE, results)
    print(f"\nWrote {EVALUATION_FILE} and the pictures into {folder} ({subject.title})")


def importance_samples(model: "Autoencoder", recipe: Recipe, args: argparse.Namespace) -> int:
    """How many samples the likelihood takes, 0 for a model that has none; asking such a model for it is a UsageError."""
    from ae_models import VAE

    if isinstance(model, VAE):
        if args.binarize and args.importance_samples == 0:
            raise UsageError("--binarize: is of the likelihood, which --importance-samples 0 leaves out; drop one of them")
        return 1000 if args.importance_samples is None else int(args.importance_samples)
    if args.importance_samples is not None or args.binarize:
        flag = "binarize" if args.binarize else "importance-samples"
        raise UsageError(f"--{flag} is for variational autoencoders: the recipe {recipe.name} has no likelihood")
    return 0


def refuse_too_few(images: ImageSet, args: argparse.Namespace) -> None:
    """A UsageError where these are too few images, or too much alike, for what is asked for."""
    if args.probe and len(np.unique(images.train_labels)) < 2:
        raise UsageError(f"--probe: the training images ({images.title}) have no two labels to tell apart")
    if args.probe and not np.isin(images.test_labels, images.train_labels).any():
        raise UsageError(f"--probe: no test image ({images.title}) has a label that was trained on; there is none to read")
    if args.map and len(images.test_images) < _LEAST_MAPPED:
        raise UsageError(f"--map: has no sense with {len(images.test_images)} test images; {_LEAST_MAPPED} are the least")


def strange_images(images: ImageSet, args: argparse.Namespace, root: Path) -> tuple[str, Pixels, Pixels] | None:
    """What to find, in words, the usual test images and the strange ones, each (n, 784) uint8; or None.

    Usual is no label that was never trained on.
    """
    label, root = images.left_out if args.leave_out is None else args.leave_out, args.data_root or root
    if label is None and not args.outliers:
        return None
    usual = images.test_labels != images.left_out  # all of them where that is None
    if args.outliers in DATASETS:
        others = load_images(args.outliers, root, images.side)
        what, strange = others.title, others.test_images
    elif args.outliers:
        what, strange = load_whole(Path(args.outliers), images.side, root)
    else:
        what = f"label {label}, {'never' if label == images.left_out else 'also'} trained on"
        strange, usual = images.test_images[images.test_labels == label], usual & (images.test_labels != label)
    if not (usual.any() and len(strange)):
        raise UsageError(f"{what}: there are {len(strange)} strange and {usual.sum()} usual test images; look for another")
    return what, images.test_images if usual.all() else images.test_images[usual], strange


def pca_of(folder: Path, recipe: Recipe, images: ImageSet) -> Pca:
    """The run's own PCA, or a new one where that is missing, of other images, damaged, or too small."""
    try:
        pca = read_pca(folder, images)
    except (UsageError, RunError):
        pca = None
    return pca if pca and len(pca.components) >= min(recipe.code_size or 0, recipe.pixels) else fit_pca(images)


def reconstruction(subject: Subject, folder: Path) -> dict[str, Any]:
    """Errors of the model (an ensemble's in lists) and of PCA on the test images: measured, printed and drawn."""
    from autoencoders.evaluation.metrics import code_statistics, restoration_error
    from autoencoders.evaluation.scores import summary
    from autoencoders.sparse import SparseEnsemble, mmcs

    model, images = subject.model, subject.images
    scored, of_pca = subject.scored(images.test_images)
    each = [summary(one, images.test_labels) for one in scored]
    ours = {name: [one[name] for one in each] if len(each) > 1 else each[0][name] for name in each[0]}
    if isinstance(model, SparseEnsemble):
        counted = code_statistics(model, subject.test_images)
        ours |= {name: counted[name] for name in ("l0", "dead_features")}
        if len(each) > 1:
            ours["mmcs"] = mmcs(model.weight.detach()).item()
    if model.noise_factor:
        ours |= restoration_error(model, subject.test_images, subject.recipe.seed)
    pca = summary(of_pca, images.test_labels)

    name = subject.recipe.name + (f", mean of {len(each)}" if len(each) > 1 else "")
    rows = [(text, *(format(np.mean(of[key]), form) if key in of else "" for of in (ours, pca)))
            for key, (text, form) in _ROWS.items() if key in ours]  # fmt: skip
    by_label = {label: float(np.mean([one["mse_by_label"][label] for one in each])) for label in pca["mse_by_label"]}
    rows += [(f"MSE of label {label}", f"{error:.5f}", f"{pca['mse_by_label'][label]:.5f}")
             for label, error in by_label.items()]  # fmt: skip
    count = len(images.test_images)
    print(f"{subject.title}: {count:,} test images; a code keeps {subject.recipe.code_size} numbers of each")
    print(table(("", name, subject.pca_title), rows))

    from autoencoders.figures import evaluation

    errors = scored[0]["mse"].numpy()
    order = errors.argsort(kind="stable")
    shown = {"best": order[:_SHOWN], "worst": order[::-1][:_SHOWN]}
    pictures: dict[str, np.ndarray] = {}
    for label, index in shown.items():
        chosen = images.test_images[index]
        pictures |= {label: chosen / 255, f"{label}\nrebuilt": subject.rebuilt(chosen)[0][0].numpy()}
    notes = {f"{label}\nrebuilt": [f"MSE {errors[i]:.4f}" for i in index] for label, index in shown.items()}
    whose = ", autoencoder 1" if len(each) > 1 else ""
    title = f"{subject.title}: best and worst of {count:,} test images{whose}"
    bars = {name: by_label, subject.pca_title: pca["mse_by_label"]}
    write_atomic(folder / "evaluation.png", evaluation(bars, pictures, notes, title))
    return {"model": ours, "pca": {"components": subject.components, "samples": subject.pca.samples, **pca}}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))])
                     for row in (header, *rows))  # fmt: skip


def likelihood(subject: Subject, samples: int, binarize: str, seed: int) -> dict[str, Any]:
    """ELBO and importance-weighted likelihood of the test images, printed with their protocol."""
    from tqdm import tqdm

    from ae_models import VAE
    from autoencoders.evaluation.likelihood import likelihood as measure

    assert isinstance(subject.model, VAE)
    with tqdm(total=len(subject.test_images), unit="image", leave=False, disable=None) as bar:
        found = measure(subject.model, subject.test_images[:], samples, binarize, seed, bar.update)
    print(f"\nLikelihood in nats per image; protocol: {found['protocol']}")
    rows = [(text, f"{found[key]:.3f}") for key, text in _NATS.items() if key in found]
    spread = found["nll_standard_error"]
    rows += [
        ("standard error over images", "undefined" if spread is None else f"{spread:.3f}"),
        ("Monte Carlo error", f"{found['nll_monte_carlo_error']:.4f}"),
        ("effective samples, mean", f"{found['effective_samples']:.1f}"),
        ("active units", f"{found['active_units']} of {found['code_size']}"),
    ]
    print(table(("", "nats"), rows))
    return found


def probe(subject: Subject, seed: int) -> dict[str, Any]:
    """How well labels are read off the codes, PCA's codes and the pixels; of the labels that were trained on."""
    from autoencoders.evaluation.metrics import first_member_codes
    from autoencoders.evaluation.probes import NEIGHBOURS, linear_probe, nearest

    images = subject.images
    known = np.isin(images.test_labels, images.train_labels)
    labels = images.train_labels, images.test_labels[known]
    sides = images.train_images[:], images.test_images[known]
    features = {
        "code": [first_member_codes(subject.model, subject.to_device(side)).numpy() for side in sides],
        "pca": [subject.pca.encode(side, subject.components) for side in sides],
        "pixels": [side / np.float32(255) for side in sides],
    }
    names = {
        "code": f"code, {features['code'][0].shape[1]}",
        "pca": subject.pca_title,
        "pixels": f"pixels, {subject.recipe.pixels}",
    }
    found: dict[str, Any] = {"trained_on": len(sides[0]), "tested_on": len(sides[1]), "seed": seed}
    rows = []
    for key, (train, test) in features.items():
        of_one = {"linear": linear_probe(train, labels[0], test, labels[1], seed),
                  "nearest": nearest(train, labels[0], test, labels[1])}  # fmt: skip
        found[key] = {"features": train.shape[1], **of_one}
        rows.append((names[key], *map(share, of_one.values())))
    print(f"\nLabels read off {len(sides[0]):,} training images, accuracy on {len(sides[1]):,} test images [95 %]")
    print(table(("", "logistic regression", f"{NEIGHBOURS} nearest neighbours"), rows))
    return found


def share(found: dict[str, Any]) -> str:
    """An accuracy with its interval, in a table's words."""
    low, high = found["interval"]
    return f"{found['accuracy']:.4f} [{low:.4f}, {high:.4f}]{'' if found.get('converged', True) else ', not converged'}"


def code_map(subject: Subject, folder: Path, seed: int) -> None:
    """Draw the test codes in the plane."""
    from autoencoders.evaluation.metrics import first_member_codes
    from autoencoders.evaluation.probes import planes, spread_out
    from autoencoders.figures import code_map as draw

    images = subject.images
    places = planes(first_member_codes(subject.model, subject.test_images).numpy(), seed)
    chosen = {method: spread_out(at) for method, at in places.items()}
    title = f"{subject.title}: the codes of {len(images.test_images):,} test images"
    write_atomic(folder / "code_map.png", draw(places, images.test_labels, images.test_images, chosen, title))


def outliers(subject: Subject, folder: Path, what: str, usual: Pixels, strange: Pixels) -> dict[str, Any]:
    """How well the reconstruction error, and PCA's, tells the strange images (uint8) from the usual ones."""
    from autoencoders.evaluation.scores import detection
    from autoencoders.figures import outliers as draw

    scored = [(ours[0], pca) for ours, pca in map(subject.scored, (usual, strange))]
    errors = [[side["mse"].numpy() for side in sides] for sides in zip(*scored)]  # of the model and of PCA
    ours, pca = (detection(*of_one) for of_one in errors)
    rows = [(text, *(f"{of_one[key]:.4f}" for of_one in (ours, pca)))
            for key, text in (("auroc", "AUROC"), ("average_precision", "average precision"),
                              ("threshold", "threshold (MSE, pixels in [0, 1])"), ("specificity", "specificity there"),
                              ("sensitivity", "sensitivity there"))]  # fmt: skip
    print(f"\nOutliers: {len(strange):,} images ({what}) among {len(usual):,} test images")
    print(table(("", subject.recipe.name, subject.pca_title), rows))

    of_usual, of_strange = errors[0]
    order, missed = (-of_strange).argsort(kind="stable"), of_strange.argsort(kind="stable")
    alarms = (-of_usual).argsort(kind="stable")
    shown = {
        "strangest": (strange, of_strange, order), "least strange": (strange, of_strange, missed),
        "strangest of\nthe usual": (usual, of_usual, alarms),
    }  # fmt: skip
    pictures = {label: (x[index[:_SHOWN]] / 255, e[index[:_SHOWN]].tolist()) for label, (x, e, index) in shown.items()}
    title = f"{subject.title}: {what}; AUROC {ours['auroc']:.4f}"
    png = draw({"usual": of_usual, "strange": of_strange}, ours["threshold"], pictures, title)
    write_atomic(folder / "outliers.png", png)
    return {"strange": what, "usual_images": len(usual), "strange_images": len(strange), "model": ours, "pca": pca}


if __name__ == "__main__":
    cli.run(main)
