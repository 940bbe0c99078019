"""Pictures made by a trained model. Each function returns (file name, PNG, a line that describes the picture)."""

from pathlib import Path

import numpy as np
import torch

from ae_models import to_range
from autoencoders import figures
from autoencoders.data.digit import to_digit
from autoencoders.data.images import ImageSet
from autoencoders.data.pictures import read_picture, resized
from autoencoders.data.sets import DATASETS
from autoencoders.evaluation import metrics
from autoencoders.runtime.device import seed_for
from autoencoders.runtime.errors import UsageError
from autoencoders.training.trained import TrainedRun

Picture = tuple[str, bytes, str]


def encode(run: TrainedRun, images: np.ndarray) -> np.ndarray:
    """Codes (n, code_size) of images (n, 784) uint8; UsageError for an ensemble, which gives an image several codes."""
    on_device = torch.tensor(images, device=run.device)
    if metrics.encode(run.model, on_device[:1]).ndim != 2:
        raise UsageError(f"{run.folder}: recipe {run.recipe.name} gives an image several codes; this needs one code")
    return metrics.encode(run.model, on_device).cpu().numpy()


@torch.no_grad()
def decode(run: TrainedRun, codes: np.ndarray) -> np.ndarray:
    """Images (n, 784) in [0, 1] of codes (n, code_size)."""
    images = run.model.decode(torch.from_numpy(codes.astype(np.float32)).to(run.device))
    return to_range(images, run.model.output_range, "unit").cpu().numpy()


@torch.no_grad()
def samples(run: TrainedRun, count: int, temperature: float, seed: int) -> Picture:
    """`count` images decoded from codes drawn from N(0, temperature^2 I)."""
    if not run.model.generative:
        raise UsageError(
            f"{run.folder}: recipe {run.recipe.name} has no distribution to draw codes from; new images need a "
            f"variational autoencoder, such as --recipe vae; --interpolate, --walk and --input work here"
        )
    torch.manual_seed(seed_for(seed))
    images = run.model.sample(count, temperature).cpu().numpy()
    text = "decoded from N(0, I)" + (f" at temperature {temperature:g}" if temperature != 1 else "")
    png = figures.image_grid(images, f"{run.title}: {text}", min(count, 20, max(8, round(count**0.5))))
    return "generated.png", png, f"{count} image(s) {text}"


def interpolation(run: TrainedRun, images: ImageSet, labels: list[int], method: str, steps: int, seed: int) -> Picture:
    """From the reconstruction of a test image of one label to that of another, between the two originals."""
    ends = pick_pair(images.test_labels, labels, seed)
    originals = images.test_images[ends] / 255
    start, end = encode(run, images.test_images[ends])
    decoded = decode(run, interpolate(start, end, steps, method))
    captions = ["original", *(f"{t:.2f}" for t in np.linspace(0, 1, steps)), "original"]
    text = f"from test image {ends[0]} (label {labels[0]}) to {ends[1]} (label {labels[1]})"
    rows = {method: np.concatenate((originals[:1], decoded, originals[1:]))}
    png = figures.image_rows(rows, f"{run.title}: {text}", {method: captions})
    return "interpolation.png", png, f"{method.capitalize()} interpolation {text}"


def pick_pair(labels: np.ndarray, wanted: list[int], seed: int) -> list[int]:
    """The indices of two different images with the two wanted labels, chosen by the seed."""
    random = np.random.default_rng(seed)
    pair: list[int] = []
    for label in wanted:
        candidates = np.setdiff1d(np.flatnonzero(labels == label), pair)
        if not len(candidates):
            raise UsageError(f"--interpolate: the test images have too few of label {label}")
        pair.append(int(random.choice(candidates)))
    return pair


def interpolate(start: np.ndarray, end: np.ndarray, steps: int, method: str) -> np.ndarray:
    """Codes (steps, code_size) from `start` to `end`, both included, on a straight line or along an arc.

    The arc is slerp (Shoemake 1985). Between codes that are zero, parallel or opposite there is none, but the line.
    """
    t = np.linspace(0, 1, steps)[:, None]
    a, b = start.astype(np.float64), end.astype(np.float64)
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    angle = np.arccos(np.clip(a @ b / lengths, -1, 1)) if lengths else 0.0
    if method == "linear" or np.sin(angle) < 1e-4:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def traverse(run: TrainedRun, images: ImageSet, dimension: int, steps: int, seed: int) -> Picture:
    """A few test images, a row each, decoded while one dimension of the code moves through its range."""
    count = len(images.test_images)
    shown = np.random.default_rng(seed).choice(count, min(5, count), replace=False)
    codes = encode(run, images.test_images)
    if dimension >= codes.shape[1]:
        raise UsageError(f"--walk {dimension}: the code of {run.folder} has the dimensions 0 to {codes.shape[1] - 1}")
    column = codes[:, dimension]
    low, high = (-3.0, 3.0) if run.model.generative else (float(column.min()), float(column.max()))  # N(0, I): 3 sigma
    if low == high:
        raise UsageError(f"--walk {dimension}: this dimension is {low:g} for every test image; take another")
    values = np.linspace(low, high, steps)
    rows = {}
    for number in shown:
        moved = np.repeat(codes[[number]], steps, axis=0)
        moved[:, dimension] = values
        rows[f"test image {number}"] = np.concatenate((images.test_images[[number]] / 255, decode(run, moved)))
    captions = ["original", *(f"{value:.3g}" for value in values)]
    png = figures.image_rows(rows, f"{run.title}: dimension {dimension} of the code", {list(rows)[-1]: captions})
    return "walk.png", png, f"Dimension {dimension} of the code from {low:.3g} to {high:.3g}"


def own_picture(run: TrainedRun, path: Path, invert: str) -> Picture:
    """The picture in a file, the image that the model sees of it, and its reconstruction by each autoencoder.

    It is prepared like the images that the model was trained on: as a digit, or, for a person's own images, resized.
    """
    dataset, side = run.record["dataset"], run.recipe.image_size
    is_known_set = dataset["source"] in DATASETS
    photo = read_picture(path, keep_levels=not is_known_set)
    if is_known_set:
        image = resized(to_digit(photo, invert).reshape(1, 28, 28), side)
    elif invert == "auto":
        image = resized(np.asarray(photo.convert("L"))[None], side)
    else:
        raise UsageError("--invert is for digits; a picture for a model of your own images is only resized")
    clean = image.reshape(side, side) / 255
    on_device = torch.tensor(image, device=run.device)
    rebuilt = metrics.reconstruct(run.model, on_device).cpu().numpy().reshape(-1, side, side)
    errors = [f"{np.square(answer - clean).mean():.4f}" for answer in rebuilt]
    word = "restored" if run.model.noise_factor else "reconstruction"
    panels = {"your picture": np.asarray(photo), f"as a {side} x {side} image": clean}
    for number, (answer, error) in enumerate(zip(rebuilt, errors), start=1):
        panels[f"{word}{f' {number}' if len(rebuilt) > 1 else ''}, MSE {error}"] = answer
    png = figures.images_in_a_row(panels, f"{run.title}: your picture")
    return "your_picture.png", png, f"MSE of the {word}: {', '.join(errors)} (pixels in [0, 1])"
