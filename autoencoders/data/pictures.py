"""A person's own picture, and the 28 x 28 grey digit that it becomes, prepared as MNIST's digits were.

`read_picture` opens a file of any origin and trusts nothing in it. `to_digit` follows LeCun, Bottou, Bengio & Haffner
1998: the ink, white on black, is scaled without distortion until its longer side has 20 pixels, and its centre of mass
is moved to the centre of 28 x 28.
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
_MAX_PIXELS, _MAX_BYTES = 50_000_000, 2**29  # more than a good camera makes
_READ_SIDE = 1024  # pixels: many times the 20 of a digit
_SIDE = 28


def read_picture(path: Path, keep_levels: bool = False) -> Image.Image:
    """The picture in a file: upright, RGB, its longer side at most 1024 pixels. Anything else there is a UsageError.

    A picture of more than 8 bits is stretched to full white, and a transparent one is laid on the background, black or
    white, that shows its ink. With `keep_levels` full white stays what 16 bits call white, and the background is
    always white: equal levels in two files of an image set stay equal.
    """
    if not path.is_file():
        raise UsageError(f"{path}: {'is not a file' if path.exists() else 'does not exist'}; name a picture")
    if not 0 < path.stat().st_size <= _MAX_BYTES:
        raise UsageError(f"{path}: has {path.stat().st_size:,} bytes; give a picture of 1 to {_MAX_BYTES:,}")
    file = io.BytesIO(read_bytes(path, "check its permissions"))
    try:
        with _silent_libtiff(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks about odd metadata
            with Image.open(file, formats=FORMATS) as image:
                if not 0 < image.width * image.height <= _MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
                return _upright_rgb(image, keep_levels)
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise UsageError(f"{path}: is too large or empty ({error}); give one of 1 to {_MAX_PIXELS:,} pixels") from error
    except Exception as error:  # a decoder may raise anything for a broken file, and the file is to blame
        raise UsageError(f"{path}: is not a whole picture of a readable format ({', '.join(FORMATS)})") from error


@contextlib.contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Nothing reaches the process's stderr: libtiff, inside Pillow, prints its complaints there."""
    stderr = os.dup(2)
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _upright_rgb(image: Image.Image, keep_levels: bool) -> Image.Image:
    image.draft("RGB", (_READ_SIDE, _READ_SIDE))  # lets a large JPEG be decoded small
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF")
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # more than 8 bits: Pillow would cut them off instead of scaling them
        values = np.nan_to_num(np.asarray(image, np.float32)).clip(0)
        white = 65535 if has_16_bits and keep_levels else max(values.max(), 1e-30)  # 32 bits have no agreed white
        image = Image.fromarray(np.rint(values / white * 255).astype(np.uint8))
    transparent = image.has_transparency_data
    image = image.convert("RGBA" if transparent else "RGB")
    image.thumbnail((_READ_SIDE, _READ_SIDE))
    if transparent:
        grey, alpha = (np.asarray(image.convert("LA"), np.float32)[..., channel] for channel in (0, 1))
        light_ink = (grey * alpha).sum() > 127 * alpha.sum()
        background = Image.new("RGBA", image.size, "black" if light_ink and not keep_levels else "white")
        image = Image.alpha_composite(background, image).convert("RGB")
    return image


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Images (N, height, width) uint8 as (N, side * side); the array itself if they have that size already."""
    if images.shape[1:] != (side, side):
        squares = (Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images)
        images = np.stack([np.asarray(square) for square in squares])
    return images.reshape(len(images), -1)


def to_digit(picture: Image.Image, invert: str = "auto") -> np.ndarray:
    """The picture as a digit (784,) uint8, white on black; UsageError for a picture without ink.

    `invert` says whether the ink is darker than its background: `on`, `off`, or `auto`, judged by the border.
    """
    ink = _ink(np.asarray(picture.convert("L"), np.float32) / 255, invert)
    down, across = ink.sum(axis=1), ink.sum(axis=0)
    (top, bottom), (left, right) = _extent(down), _extent(across)
    scale = max(bottom - top, right - left) / 20  # of the picture's pixels to one of the digit's
    window, margin = _SIDE * scale, int(_SIDE * scale) + 1
    y, x = margin + _start(down, top, bottom, scale), margin + _start(across, left, right, scale)
    sheet = Image.fromarray(np.pad(ink, margin))  # the window may reach beyond the picture
    digit = np.asarray(sheet.resize((_SIDE, _SIDE), Image.Resampling.HAMMING, (x, y, x + window, y + window)))
    return np.rint(255 * digit / digit.max()).astype(np.uint8).ravel()  # a thin pen is no fainter than a broad one


def _ink(grey: np.ndarray, invert: str) -> np.ndarray:
    """The ink on each pixel, 0 to 1, of grey levels (height, width) in [0, 1]."""
    contrast = grey - _background(grey)
    if invert == "on" or (invert == "auto" and -contrast.min() > contrast.max()):
        contrast = -contrast
    if contrast.max() < 0.06:  # black on white has 1
        raise UsageError("the picture is blank: nothing in it stands out from its border as ink would")
    # The weakest tenth is paper and its noise, which would widen the crop and pull the centre of mass.
    return np.clip((contrast / contrast.max() - 0.1) / 0.9, 0, 1).astype(np.float32)


def _background(grey: np.ndarray) -> np.ndarray:
    """The background as a plane through the border's pixels, for light from one side.

    Least trimmed squares (Rousseeuw 1984): the worse half of the border is left out, so that ink may touch it.
    """
    margin = max(1, min(grey.shape) // 50)
    border = np.ones(grey.shape, bool)
    border[margin:-margin, margin:-margin] = False
    y, x = np.indices(grey.shape) / max(grey.shape)
    planes = np.stack((np.ones_like(x), x, y), axis=-1)
    points, levels = planes[border], grey[border]
    misfit = np.abs(levels - np.median(levels))
    for _ in range(4):
        better = misfit <= np.median(misfit)
        plane = np.linalg.lstsq(points[better], levels[better])[0]
        misfit = np.abs(levels - points @ plane)
    return (planes @ plane).clip(0, 1)


def _extent(profile: np.ndarray) -> tuple[int, int]:
    """The first row (or column) with ink and the one after the last; 0.2% of the ink at either end may be dust."""
    share = profile.cumsum(dtype=np.float64) / profile.sum(dtype=np.float64)
    return int(np.searchsorted(share, 0.002, "right")), int(np.searchsorted(share, 0.998)) + 1


def _start(profile: np.ndarray, first: int, last: int, scale: float) -> float:
    """The start of the window whose pixel 14 of 0 to 27, as in MNIST, holds the centre of mass; all ink is inside."""
    centre = float((np.arange(len(profile)) + 0.5) @ profile / profile.sum())
    return min(max(centre - (_SIDE / 2 + 0.5) * scale, last - _SIDE * scale), first)
