"""Pictures that a trained model makes: new images, digits between two digits, one's own picture seen by the model.

--run names the folder of a finished run of ae_train.py. Without --interpolate, --walk or --input, images are drawn
from the model's distribution of codes, which only a variational autoencoder has.
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from autoencoders.data.pictures import read_picture, to_digit
from autoencoders.data.sets import DATASETS, ImageSet, Pixels, resized
from autoencoders.runtime import cli
from autoencoders.runtime.errors import UsageError
from autoencoders.runtime.files import prepare_folder, write_atomic

if TYPE_CHECKING:
    from PIL import Image

    from ae_models import Autoencoder

# As in ae_train.py, what imports torch is imported once the flags, and the person's picture, are found good.

_ROWS = 5  # test images in a walk
_PRIOR = 3.0  # a walk along the code of a VAE ends this many standard deviations of N(0, I) from 0

# Flags that belong to one kind of picture; with another they would be ignored, so they are refused.
_OWNERS = {
    "num": ("sample",), "temperature": ("sample",), "method": ("interpolate",), "steps": ("interpolate", "walk"),
    "dataset": ("interpolate", "walk"), "data_root": ("interpolate", "walk"),
    "seed": ("sample", "interpolate", "walk"), "invert": ("input",),
}  # fmt: skip


class Run(NamedTuple):
    """A trained model, on the device where its inputs must be, and what its pictures are titled with."""

    folder: Path
    model: "Autoencoder"
    device: Any
    recipe: str
    dataset: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.dataset['title']}, {self.recipe}"

    @property
    def of_digits(self) -> bool:
        """Whether the images are a known set's, not a person's own."""
        return self.dataset.get("source", self.dataset["name"]) in DATASETS


Picture = tuple[str, bytes, str]  # the name of the file, the PNG, and a line about it for the person who asked


# fmt: off
def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    shown = "(default: %(default)s)"
    parser.add_argument("--run", type=Path, required=True, help="folder of the trained model, such as outputs/vae")
    parser.add_argument("--output-dir", type=Path, help="where the picture goes (default: the folder of the run)")
    parser.add_argument("--device", default="auto", help=f"auto, cuda, cuda:N, mps or cpu {shown}")
    parser.add_argument("--seed", type=cli.integer(0), default=0, metavar="N",
                        help=f"of the samples, or of which test images are taken {shown}")

    sample = parser.add_argument_group("new images (what is done when nothing else is asked for)")
    sample.add_argument("--num", type=cli.integer(1, 1000), default=64, metavar="N", help=f"how many {shown}")
    sample.add_argument("--temperature", type=cli.number(0, 100), default=1.0, metavar="X",
                        help=f"standard deviation of the codes; below 1 is tamer, above 1 wilder {shown}")

    tests = parser.add_argument_group("from test images")
    kind = tests.add_mutually_exclusive_group()
    kind.add_argument("--interpolate", type=cli.integer(0, 9), nargs=2, metavar="LABEL",
                      help="go from a test image of one label to one of another")
    kind.add_argument("--walk", type=cli.integer(0), metavar="DIM",
                      help="vary one code dimension, counted from 0, of a few test images: 3 standard deviations of "
                           "the prior either way for a variational autoencoder, the range of the test codes for others")
    tests.add_argument("--method", choices=("spherical", "linear"), default="spherical",
                       help=f"the way from code to code {shown}")
    tests.add_argument("--steps", type=cli.integer(2, 40), default=9, metavar="N",
                       help=f"images from end to end {shown}")
    tests.add_argument("--dataset", type=cli.dataset, metavar="SET",
                       help="name or path of the images (default: what the run was trained on)")
    tests.add_argument("--data-root", type=Path, help="where the images are (default: where the run found them)")

    own = parser.add_argument_group("a picture of one's own")
    kind.add_argument("--input", type=Path, metavar="FILE",
                      help="reconstruct, or denoise, this picture; a digit is made 28 x 28 the way MNIST was, one "
                           "for a model of one's own images resized as they were")
    own.add_argument("--invert", choices=("auto", "on", "off"), default="auto",
                     help=f"is the ink darker than the paper; auto asks the picture's border {shown}")
    return parser
# fmt: on


def chosen(args: argparse.Namespace) -> str:
    """Which kind of picture the flags ask for; a flag that belongs to another kind is a UsageError."""
    kind = next((name for name in ("interpolate", "walk", "input") if getattr(args, name) is not None), "sample")
    for flag, owners in _OWNERS.items():
        if kind not in owners and getattr(args, flag) != parser().get_default(flag):
            wanted = " or ".join("new images" if owner == "sample" else f"--{owner}" for owner in owners)
            here = "new images" if kind == "sample" else f"--{kind}"
            raise UsageError(f"--{flag.replace('_', '-')} is for {wanted}, not for {here}")
    return kind


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    kind = chosen(args)
    if kind == "input":
        photo = read_picture(args.input)

    from autoencoders.runtime.device import pick_device
    from autoencoders.training.checkpoint import load_run

    device = pick_device(args.device)
    model, recipe, record = load_run(args.run, device)
    run = Run(args.run, model, device, recipe.name, record["dataset"])
    if kind == "input":
        if not run.of_digits:
            photo = read_picture(args.input, alone=False)
        name, png, what = own_picture(run, photo, prepared(run, photo, args.invert))
    elif kind == "interpolate":
        name, png, what = interpolation(run, test_set(run, args), args.interpolate, args.method, args.steps, args.seed)
    elif kind == "walk":
        name, png, what = walk(run, test_set(run, args), args.walk, args.steps, args.seed)
    else:
        name, png, what = samples(run, args.num, args.temperature, args.seed)
    if args.dry_run:
        print(f"{what}\nWould write {(args.output_dir or args.run) / name} ({run.title})")
        return
    folder = prepare_folder(args.output_dir or args.run)
    write_atomic(folder / name, png)
    print(f"{what}\nWrote {folder / name} ({run.title})")


def test_set(run: Run, args: argparse.Namespace) -> ImageSet:
    """The image set that the run was trained on; its test images are what the pictures start from."""
    from autoencoders.training.checkpoint import images_of

    return images_of(run.folder, run.dataset, args.dataset, args.data_root)


def codes_of(run: Run, images: Pixels) -> np.ndarray:
    """Codes (n, code_size) of uint8 images (n, 784); a model that gives an image several codes is a UsageError."""
    from autoencoders.data.stream import to_device
    from autoencoders.evaluation.metrics import encode

    pixels = to_device(images, run.device)
    if encode(run.model, pixels[:1]).ndim != 2:
        raise UsageError(f"{run.folder}: recipe {run.recipe} gives an image several codes; this needs a model with one")
    return encode(run.model, pixels).cpu().numpy()


def decoded(run: Run, codes: np.ndarray) -> np.ndarray:
    """Images (n, 784), unit range, of codes (n, code_size)."""
    import torch

    from ae_models import to_range

    with torch.no_grad():
        images = run.model.decode(torch.from_numpy(codes.astype(np.float32)).to(run.device))
    return to_range(images, run.model.output_range, "unit").cpu().numpy()


def samples(run: Run, count: int, temperature: float, seed: int) -> Picture:
    """`count` images decoded from codes drawn from N(0, temperature^2 I)."""
    import torch

    from ae_models import VAE
    from autoencoders.figures import image_grid
    from autoencoders.runtime.device import seed_for

    if not isinstance(run.model, VAE):
        raise UsageError(
            f"{run.folder}: recipe {run.recipe} has no distribution to draw codes from; new images need a variational "
            f"autoencoder, such as --recipe vae; --interpolate, --walk and --input work here"
        )
    torch.manual_seed(seed_for(seed))
    with torch.no_grad():
        images = run.model.sample(count, temperature).cpu().numpy()
    what = "decoded from N(0, I)" + (f" at temperature {temperature:g}" if temperature != 1 else "")
    columns = min(count, 20, max(8, round(count**0.5)))
    return "generated.png", image_grid(images, f"{run.title}: {what}", columns), f"{count} image(s) {what}"


def interpolation(run: Run, images: ImageSet, labels: list[int], method: str, steps: int, seed: int) -> Picture:
    """From a test image of one label to one of another; the ends are the reconstructions of the two."""
    from autoencoders.figures import image_rows

    ends = pick_pair(images.test_labels, labels, seed)
    start, end = codes_of(run, images.test_images[ends])
    between = decoded(run, path(start, end, steps, method))
    originals = images.test_images[ends] / 255
    row = np.concatenate((originals[:1], between, originals[1:]))
    notes = ["original", *(f"{t:.2f}" for t in np.linspace(0, 1, steps)), "original"]
    what = f"from test image {ends[0]}, a {labels[0]}, to {ends[1]}, a {labels[1]}"
    return "interpolation.png", image_rows({method: row}, f"{run.title}: {what}", notes), f"A {method} way {what}"


def pick_pair(labels: np.ndarray, wanted: list[int], seed: int) -> list[int]:
    """The numbers of two different images with the two wanted labels; the seed decides."""
    random = np.random.default_rng(seed)
    pair: list[int] = []
    for label in wanted:
        candidates = np.setdiff1d(np.flatnonzero(labels == label), pair)
        if not len(candidates):
            raise UsageError(f"--interpolate: the test images have too few of label {label}")
        pair.append(int(random.choice(candidates)))
    return pair


def path(start: np.ndarray, end: np.ndarray, steps: int, method: str) -> np.ndarray:
    """Codes (steps, code_size) from `start` to `end`, both included, on a straight line or along an arc.

    The arc is Shoemake 1985, slerp, with the angle w between the codes:
    (sin((1 - t) w) start + sin(t w) end) / sin w. Codes that are zero, parallel or opposite have no arc between
    them; theirs is the line.
    """
    t = np.linspace(0, 1, steps)[:, None]
    a, b = start.astype(np.float64), end.astype(np.float64)
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    angle = np.arccos(np.clip(a @ b / lengths, -1, 1)) if lengths else 0.0
    if method == "linear" or np.sin(angle) < 1e-4:
        return (1 - t) * a + t * b
    arc: np.ndarray = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return arc


def walk(run: Run, images: ImageSet, dimension: int, steps: int, seed: int) -> Picture:
    """A few test images, a row each, decoded with one dimension of the code moved through its range."""
    from ae_models import VAE
    from autoencoders.figures import image_rows

    count = len(images.test_images)
    shown = np.random.default_rng(seed).choice(count, min(_ROWS, count), replace=False)
    codes = codes_of(run, images.test_images)
    if dimension >= codes.shape[1]:
        raise UsageError(f"--walk {dimension}: the code of {run.folder} has the dimensions 0 to {codes.shape[1] - 1}")
    along = codes[:, dimension]
    low, high = (-_PRIOR, _PRIOR) if isinstance(run.model, VAE) else (float(along.min()), float(along.max()))
    if low == high:
        raise UsageError(f"--walk {dimension}: this dimension is {low:g} for every test image; take another")
    places = np.linspace(low, high, steps)
    rows = {}
    for number in shown:
        moved = np.repeat(codes[number : number + 1], steps, axis=0)
        moved[:, dimension] = places
        original = images.test_images[number : number + 1] / 255
        rows[f"test image {number}"] = np.concatenate((original, decoded(run, moved)))
    title = f"{run.title}: dimension {dimension} of the code"
    png = image_rows(rows, title, ["original", *(f"{place:.3g}" for place in places)])
    return "walk.png", png, f"Dimension {dimension} of the code from {low:.3g} to {high:.3g}"


def prepared(run: Run, photo: "Image.Image", invert: str) -> np.ndarray:
    """The picture as (784,) uint8, made what the images are that the model was trained on."""
    size = run.dataset.get("image_size", 28)
    if run.of_digits:
        return resized(to_digit(photo, invert).reshape(1, 28, 28), size).ravel()
    if invert != "auto":
        raise UsageError("--invert is for digits; a picture for a model of your own images is only resized")
    return resized(np.asarray(photo.convert("L"))[None], size).ravel()


def own_picture(run: Run, photo: "Image.Image", image: np.ndarray) -> Picture:
    """The picture as given, the image (784,) uint8 made of it, and what the model, or each of an ensemble, answers."""
    import torch

    from autoencoders.evaluation.metrics import reconstruct
    from autoencoders.figures import side_by_side

    answers = reconstruct(run.model, torch.tensor(image[None], device=run.device)).cpu().numpy()
    side = math.isqrt(len(image))
    answers, clean = answers.reshape(-1, side, side), image.reshape(side, side) / 255
    word = "restored" if run.model.noise_factor else "reconstruction"
    panels = {"the picture": np.asarray(photo), f"as a {side} x {side} image": clean}
    errors = [f"{np.square(answer - clean).mean():.4f}" for answer in answers]
    for number, (answer, error) in enumerate(zip(answers, errors), start=1):
        which = f"{word} {number}" if len(answers) > 1 else word
        panels[f"{which}, MSE {error}"] = answer
    png = side_by_side(panels, f"{run.title}: your picture")
    return "your_picture.png", png, f"MSE of the {word} {', '.join(errors)} (unit range)"


if __name__ == "__main__":
    cli.run(main)
