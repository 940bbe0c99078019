"""A person's own picture as a 28 x 28 grey digit, prepared as MNIST's digits were.

LeCun, Bottou, Bengio & Haffner 1998: the ink, white on black, is scaled without distortion until its longer side has
20 pixels, and its centre of mass is moved to the centre of 28 x 28.
"""

import numpy as np
from PIL import Image

from autoencoders.runtime.errors import UsageError

_SIDE = 28


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
