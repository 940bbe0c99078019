"""Picture files of any origin: read without trust in their content, and resized."""

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


@_silent_libtiff()  # around all of it: a failure in there is not the picture's fault
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
        with warnings.catch_warnings():
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
        raise UsageError(f"{path}: is damaged or no picture; save it anew as one of {', '.join(FORMATS)}") from error


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
