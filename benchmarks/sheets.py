"""How well `ae_generate.py --input` prepares photos of handwritten digits: prints two tables in Markdown.

The photos are rendered: a sheet, plain, ruled or squared, under a random combination of a shadow over a third of it, a
vignette, a linear gradient of light, grain, a glint and JPEG at quality 40. Drawings are compared with the same drawing
black on white; MNIST's test digits, rendered large, are classified by nearest neighbours of a trained model's codes.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.interpolate import make_interp_spline

from autoencoders.data.digit import to_digit
from autoencoders.data.images import ImageSet
from autoencoders.data.sets import load_images
from autoencoders.evaluation.probes import accuracy, knn
from autoencoders.runtime import cli
from autoencoders.runtime.device import pick_device
from autoencoders.runtime.errors import UsageError
from autoencoders.training.generation import encode
from autoencoders.training.trained import TrainedRun, load_run

# Each digit as strokes through points (x, y) of the unit square; those in _STRAIGHT are polylines, the rest splines.
_STROKES: dict[int, list[list[tuple[float, float]]]] = {
    0: [[(0.5, 0), (0.25, 0.15), (0.15, 0.5), (0.25, 0.85), (0.5, 1), (0.78, 0.85), (0.85, 0.5), (0.7, 0.1), (0.5, 0)]],
    1: [[(0.3, 0.25), (0.55, 0), (0.5, 1)]],
    2: [[(0.2, 0.25), (0.45, 0), (0.78, 0.2), (0.6, 0.55), (0.2, 1)], [(0.2, 1), (0.5, 0.95), (0.85, 1)]],
    3: [[(0.2, 0.1), (0.55, 0), (0.75, 0.22), (0.45, 0.46)], [(0.45, 0.46), (0.82, 0.7), (0.55, 1), (0.2, 0.9)]],
    4: [[(0.55, 0), (0.15, 0.65), (0.85, 0.65)], [(0.65, 0.35), (0.6, 1)]],
    5: [[(0.3, 0), (0.25, 0.42), (0.6, 0.42), (0.8, 0.7), (0.55, 1), (0.2, 0.92)], [(0.3, 0), (0.55, 0.02), (0.8, 0)]],
    6: [[(0.7, 0), (0.35, 0.3), (0.2, 0.75), (0.5, 1), (0.78, 0.75), (0.5, 0.52), (0.22, 0.75)]],
    7: [[(0.15, 0), (0.8, 0), (0.4, 1)]],
    8: [[(0.5, 0.4), (0.2, 0.2), (0.5, 0), (0.8, 0.2), (0.5, 0.4), (0.2, 0.7), (0.5, 1), (0.8, 0.7), (0.5, 0.4)]],
    9: [[(0.75, 0.2), (0.45, 0), (0.25, 0.28), (0.5, 0.48), (0.75, 0.2), (0.7, 0.6), (0.6, 1)]],
}  # fmt: skip
_STRAIGHT = (1, 4, 7)


def draw(digit: int, random: np.random.Generator) -> np.ndarray:
    """The ink, 0 to 1, of a digit drawn with a round pen on a square sheet of 400 to 1000 pixels."""
    side, size, pen = int(random.integers(400, 1001)), random.uniform(0.35, 0.65), random.uniform(0.012, 0.05)
    corner, slant = random.uniform(0.05, 0.95 - size, 2), random.uniform(-0.15, 0.15)
    image = Image.new("L", (2 * side, 2 * side))  # twice as large, for smooth edges
    pencil = ImageDraw.Draw(image)
    radius = pen * side
    for stroke in _STROKES[digit]:
        points = np.array(stroke) + random.normal(0, 0.02, (len(stroke), 2))
        points[:, 0] += slant * (0.5 - points[:, 1])
        degree = 1 if digit in _STRAIGHT else min(3, len(stroke) - 1)
        path = make_interp_spline(np.linspace(0, 1, len(stroke)), points, degree)(np.linspace(0, 1, 400))
        for x, y in 2 * side * (corner + size * path):
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32) / 255


def enlarge(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The ink of an MNIST image (784,) uint8, 300 to 500 pixels large, on a square sheet of 600 to 1000 pixels."""
    side, size = (int(random.integers(*limits)) for limits in ((600, 1001), (300, 501)))
    large = Image.fromarray(image.reshape(28, 28)).resize((size, size), Image.Resampling.BICUBIC)
    sheet = Image.new("L", (side, side))
    left, top = random.integers(0, side - size, 2).tolist()
    sheet.paste(large, (left, top))
    return np.asarray(sheet, np.float32) / 255


def clean(ink: np.ndarray) -> Image.Image:
    """The ink black on a white sheet."""
    return Image.fromarray(np.rint(255 * (1 - ink)).astype(np.uint8))


def photograph(ink: np.ndarray, random: np.random.Generator) -> tuple[Image.Image, list[str]]:
    """A photo of the ink on a sheet, and the names of its random faults, each there with probability 1/2."""
    faults = {name for name in ("shadow", "vignette", "gradient", "grain", "glint", "JPEG") if random.random() < 0.5}
    ruling = str(random.choice(["plain", "ruled", "squared"]))
    paper, pen = random.uniform(0.75, 0.95), random.uniform(0.08, 0.45)
    side = len(ink)
    y, x = np.indices(ink.shape) / side - 0.5
    sheet = paper * _ruling(ruling, x, y, side, random)
    sheet = sheet + (np.minimum(pen, sheet) - sheet) * ink
    if "shadow" in faults:
        turn, softness = random.uniform(0, 2 * np.pi), random.uniform(0.002, 0.03)
        across = np.cos(turn) * x + np.sin(turn) * y
        sheet *= 1 - 0.15 / (1 + np.exp(((across - np.quantile(across, 1 / 3)) / softness).clip(-50, 50)))
    if "vignette" in faults:
        sheet *= 1 - 0.3 * 2 * (x**2 + y**2)
    if "gradient" in faults:
        turn = random.uniform(0, 2 * np.pi)
        sheet *= 1 + 0.2 * (np.cos(turn) * x + np.sin(turn) * y)
    if "grain" in faults:
        sheet += random.normal(0, 0.03, ink.shape)
    if "glint" in faults:
        top, left = random.integers(0, side - 3, 2)
        sheet[top : top + random.integers(1, 4), left : left + random.integers(1, 4)] = 1
    photo = Image.fromarray(np.rint(255 * sheet.clip(0, 1)).astype(np.uint8))
    if "JPEG" in faults:
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=40)
        photo = Image.open(file)
    return photo, [ruling, *sorted(faults)]


def _ruling(kind: str, x: np.ndarray, y: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """What the lines of the paper leave of its brightness; the page is turned by up to 3 degrees."""
    period, width, level = random.uniform(0.03, 0.1), random.uniform(1, 3) / side, random.uniform(0.65, 0.9)
    turn, light = np.deg2rad(random.uniform(-3, 3)), np.ones_like(x)
    directions = {"plain": [], "ruled": [turn], "squared": [turn, turn + np.pi / 2]}[kind]
    for angle in directions:
        distance = np.abs((np.cos(angle) * y - np.sin(angle) * x + 5 * period) % period - period / 2)
        light = np.minimum(light, 1 - (1 - level) * ((width / 2 - distance) * side + 0.5).clip(0, 1))
    return light


def prepare(photo: Image.Image) -> np.ndarray | None:
    """The digit (784,) uint8 of a photo, or None if it is refused."""
    try:
        return to_digit(photo)
    except UsageError:
        return None


def correlations(count: int, random: np.random.Generator) -> np.ndarray:
    """Of `count` drawings: the correlation of the digit in the photo with that of the clean drawing; NaN if refused."""
    found = []
    for number in range(count):
        ink = draw(number % 10, random)
        digit = prepare(photograph(ink, random)[0])
        found.append(np.nan if digit is None else np.corrcoef(digit, to_digit(clean(ink)))[0, 1])
    return np.array(found)


def recognised(run: TrainedRun, images: ImageSet, count: int, random: np.random.Generator) -> list[list[str]]:
    """Rows (pictures, refused, accuracy, 95% interval) of `count` test images: as they are, enlarged, photographed.

    A refused picture counts as not recognised.
    """
    picked = random.permutation(len(images.test_images))[:count]
    kinds: dict[str, list[np.ndarray | None]] = {"as they are": [], "large, black on white": [], "photographed": []}
    for image in images.test_images[picked]:
        ink = enlarge(image, random)
        for found, digit in zip(kinds.values(), (image, prepare(clean(ink)), prepare(photograph(ink, random)[0]))):
            found.append(digit)
    train, rows = encode(run, images.train_images[:]), []
    for name, digits in kinds.items():
        there = [number for number, digit in enumerate(digits) if digit is not None]
        codes = encode(run, np.stack([digit for digit in digits if digit is not None]))
        share = knn(train, images.train_labels, codes, images.test_labels[picked[there]])["accuracy"]
        result = accuracy(np.arange(len(picked)) < round(share * len(there)))
        low, high = result["interval"]
        refused = str(len(picked) - len(there))
        rows.append([name, refused, f"{result['accuracy']:.4f}", f"[{low:.4f}, {high:.4f}]"])
    return rows


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run trained on MNIST")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the images are")
    parser.add_argument("--drawings", type=cli.integer(1), default=200, help="drawings to compare")
    parser.add_argument("--digits", type=cli.integer(1), default=1000, help="MNIST test images to recognise")
    parser.add_argument("--seed", type=int, default=0, help="of the random sheets")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    run, images = load_run(args.run, pick_device("auto")), load_images("mnist", args.data_root)
    random = np.random.default_rng(args.seed)
    found = correlations(args.drawings, random)
    values = (f"{np.mean(found >= 0.95):.1%}", f"{np.nanmedian(found):.4f}", f"{np.nanmin(found):.4f}")
    row = [str(args.drawings), str(np.isnan(found).sum()), *values]
    print(cli.format_table(("drawings", "refused", "correlation >= 0.95", "median", "worst"), [row], markdown=True))
    rows = recognised(run, images, args.digits, random)
    head = (f"{args.digits:,} test images", "refused", "accuracy", "95% interval")
    print("\n" + cli.format_table(head, rows, markdown=True))


if __name__ == "__main__":
    cli.run(main)
