"""A person's own picture, made into a 28 x 28 grey digit the way MNIST's digits were made.

`read_picture` opens a file that may have come from anywhere and trusts nothing in it; `to_digit` follows LeCun,
Bottou, Bengio & Haffner 1998: the ink, white on black, is scaled with its shape kept until its longer side has 20
pixels, and its centre of mass is put at the centre of 28 x 28. Needs NumPy and Pillow, not torch.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from autoencoders.runtime.errors import UsageError
from autoencoders.runtime.files import read_bytes

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
_MOST_PIXELS, _MOST_BYTES = 50_000_000, 2**29  # what a good camera makes, and what memory bears
_READ_SIDE = 1024  # pixels: many times what a digit of 20 needs
_SIDE, _DIGIT = 28, 20
_LEAST_CONTRAST = 0.06  # of black to white, below which there is no ink, only noise


def read_picture(path: Path, alone: bool = True) -> Image.Image:
    """The picture in a file: upright, RGB, its longer side at most 1024 pixels. Anything else there is a UsageError.

    Where the file has more than 8 bits, or shows what is behind it, one that stands `alone` is made as bright, and
    laid on black or white, as shows its ink best. One of a collection is not: alike files give alike pictures.
    """
    if not path.is_file():
        raise UsageError(f"{path}: {'is not a file' if path.exists() else 'is not there'}; name a picture")
    if not 0 < path.stat().st_size <= _MOST_BYTES:
        raise UsageError(f"{path}: has {path.stat().st_size:,} bytes; give a picture of 1 to {_MOST_BYTES:,}")
    file = io.BytesIO(read_bytes(path, "check its permissions"))
    try:
        with _silent_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks about odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                if not 0 < image.width * image.height <= _MOST_PIXELS:
                    raise UsageError(_unfit(path, f"has {image.width} x {image.height} pixels"))
                return _upright_rgb(image, alone)
    except (UsageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(_unfit(path, "is far too large")) from error
    except Exception as error:  # a decoder may raise anything over a broken file, and the file is to blame
        raise UsageError(f"{path}: is not a whole picture of a kind read here ({', '.join(FORMATS)})") from error


@contextlib.contextmanager
def _silent_libraries() -> Iterator[None]:
    """Nothing reaches the process's stderr: libtiff complains there in lines of its own, past Python."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _unfit(path: Path, what: str) -> str:
    return f"{path}: {what}; give a picture of 1 to {_MOST_PIXELS:,} pixels"


def _upright_rgb(image: Image.Image, alone: bool) -> Image.Image:
    image.draft("RGB", (_READ_SIDE, _READ_SIDE))  # lets a large JPEG be decoded small
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF")
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # more than 8 bits: Pillow would cut them off instead of scaling them
        values = np.nan_to_num(np.asarray(image, np.float32)).clip(0)
        white = 65535 if has_16_bits and not alone else max(values.max(), 1e-30)  # nobody knows what 32 bits end at
        image = Image.fromarray(np.rint(values / white * 255).astype(np.uint8))
    seethrough = image.has_transparency_data
    image = image.convert("RGBA" if seethrough else "RGB")
    image.thumbnail((_READ_SIDE, _READ_SIDE))
    if seethrough:
        grey, alpha = (np.asarray(image.convert("LA"), np.float32)[..., channel] for channel in (0, 1))
        backdrop = "black" if alone and (grey * alpha).sum() > 127 * alpha.sum() else "white"
        image = Image.alpha_composite(Image.new("RGBA", image.size, backdrop), image).convert("RGB")
    return image


def to_digit(picture: Image.Image, invert: str = "auto") -> np.ndarray:
    """The picture as a digit (784,) uint8, white on black; one without ink is a UsageError.

    `invert` says whether the ink is darker than its background: `on`, `off`, or `auto`, what the border says.
    """
    ink = _ink(np.asarray(picture.convert("L"), np.float32) / 255, invert)
    down, across = ink.sum(axis=1), ink.sum(axis=0)
    (top, bottom), (left, right) = _extent(down), _extent(across)
    scale = max(bottom - top, right - left) / _DIGIT  # of the picture's pixels to one of the digit's
    window, margin = _SIDE * scale, int(_SIDE * scale) + 1
    y, x = margin + _start(down, top, bottom, scale), margin + _start(across, left, right, scale)
    sheet = Image.fromarray(np.pad(ink, margin))  # the window may reach beyond the picture
    digit = np.asarray(sheet.resize((_SIDE, _SIDE), Image.Resampling.HAMMING, (x, y, x + window, y + window)))
    levels: np.ndarray = np.rint(255 * digit / digit.max())  # a thin pen is no fainter than a broad one
    return levels.astype(np.uint8).ravel()


def _ink(grey: np.ndarray, invert: str) -> np.ndarray:
    """How much ink lies on each pixel, 0 to 1, of grey levels (height, width) in [0, 1]."""
    departure = grey - _background(grey)
    dark = invert == "on" or (invert == "auto" and -departure.min() > departure.max())
    depth = -departure if dark else departure
    if depth.max() < _LEAST_CONTRAST:
        raise UsageError("the picture is blank: nothing in it stands out from its border as ink would")
    # The weakest tenth is paper and its noise, which would widen the crop and pull the centre of mass.
    ink: np.ndarray = np.clip((depth / depth.max() - 0.1) / 0.9, 0, 1)
    return ink.astype(np.float32)


def _background(grey: np.ndarray) -> np.ndarray:
    """The background as a plane through the border's pixels, for light that falls from one side.

    Least trimmed squares (Rousseeuw 1984): the worse half of the border is left out, so that ink may touch it.
    """
    margin = max(1, min(grey.shape) // 50)
    border = np.ones(grey.shape, bool)
    border[margin:-margin, margin:-margin] = False
    y, x = np.indices(grey.shape) / max(grey.shape)
    planes = np.stack((np.ones_like(x), x, y), axis=-1)
    places, levels = planes[border], grey[border]
    misfit = np.abs(levels - np.median(levels))
    for _ in range(4):
        kept = misfit <= np.median(misfit)
        plane = np.linalg.lstsq(places[kept], levels[kept])[0]
        misfit = np.abs(levels - places @ plane)
    background: np.ndarray = (planes @ plane).clip(0, 1)
    return background


def _extent(profile: np.ndarray) -> tuple[int, int]:
    """First row (or column) with ink and the first after it; a five hundredth at either end may be specks of dust."""
    share = profile.cumsum(dtype=np.float64) / profile.sum(dtype=np.float64)
    return int(np.searchsorted(share, 0.002, "right")), int(np.searchsorted(share, 0.998)) + 1


def _start(profile: np.ndarray, first: int, last: int, scale: float) -> float:
    """Where the window begins whose pixel 14 of 0 to 27, as in MNIST, holds the centre of mass; all ink inside it."""
    centre = float((np.arange(len(profile)) + 0.5) @ profile / profile.sum())
    return min(max(centre - (_SIDE / 2 + 0.5) * scale, last - _SIDE * scale), first)
