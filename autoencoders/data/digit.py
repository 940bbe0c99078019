"""A person's own picture as a 28 x 28 grey digit, prepared as MNIST's digits were.

The level of the paper is a wide median, which follows shadows. Lines across the sheet, strips along a side and small
marks far from the digit are removed; a threshold separates the ink from the noise. LeCun, Bottou, Bengio & Haffner
1998: the ink, white on black, is scaled without distortion until its longer side has 20 pixels, and its centre of mass
is moved to the centre of 28 x 28.
"""

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from autoencoders.runtime.errors import UsageError

_SIDE = 28
_READ_SIDE = 512  # pixels: the longer side of the picture that is analysed
_SMALL = 100  # pixels: a smaller picture has no thin lines
_AROUND = np.ones((3, 3))  # a pixel's eight neighbours


def to_digit(picture: Image.Image, invert: str = "auto") -> np.ndarray:
    """The picture as a digit (784,) uint8, white on black; UsageError for a picture without ink.

    `invert` says whether the ink is darker than its background: `on`, `off`, or `auto`, judged by the deepest contrast.
    """
    grey = picture.convert("L")
    grey.thumbnail((_READ_SIDE, _READ_SIDE), Image.Resampling.BOX)
    ink = _ink(np.asarray(grey, np.float32) / 255, invert)
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
    try:
        return _separate(grey, _wide_median(grey), invert)
    except UsageError:  # of a digit that fills the picture, ink is most of what is around a pixel
        plane = _border_plane(grey)
        if np.mean(np.abs(grey - plane) < 0.02) < 0.4:
            raise
        return _separate(grey, plane, invert)


def _separate(grey: np.ndarray, paper: np.ndarray, invert: str) -> np.ndarray:
    """The ink, 0 to 1, of grey levels against those of the paper, both (height, width); UsageError without a digit."""
    contrast = grey - paper
    if invert == "on" or (invert == "auto" and (contrast**3).sum() < 0):  # cubes: deep ink outweighs a wide shadow
        contrast = -contrast / np.maximum(paper, 0.1)
    if min(grey.shape) >= _SMALL:
        contrast = _without_lines(_without_lines(contrast).T).T
    smooth = ndimage.gaussian_filter(contrast, max(grey.shape) / _READ_SIDE)
    noise = 5 * 1.4826 * float(np.median(np.abs(smooth - np.median(smooth))))
    strong, kept = _parts(smooth, noise)
    labels, _ = ndimage.label(kept, _AROUND)
    sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    whole = [np.bincount(side).argmax() for side in sides if (side > 0).mean() > 0.9]  # a frame or a strip of the table
    strips = ndimage.binary_dilation(np.isin(labels, whole) & kept, _AROUND, iterations=max(grey.shape) // 60 + 1)
    contrast, smooth = np.where(strips, 0, contrast), np.where(strips, 0, smooth)
    strong, kept = _parts(smooth, noise)
    kept = _one_digit(kept, strong, smooth > max(noise, 0.06), paper)
    kept = ndimage.binary_dilation(kept, _AROUND, iterations=max(grey.shape) // 250 + 1)
    depth = np.quantile(smooth[strong], 0.9)  # below, the weakest tenth is noise, which would pull the centre of mass
    return np.where(kept, ((contrast / depth - 0.1) / 0.9).clip(0, 1), 0).astype(np.float32)


def _parts(smooth: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """The masks of deep ink and of ink without dust, of a smooth contrast (height, width); UsageError without ink."""
    cut = max(noise, _threshold(smooth[smooth > noise]))
    strong = smooth > cut
    if not strong.any() or smooth[strong].mean() < 0.06:  # black on white has 1
        raise UsageError("the picture is blank: no ink stands out in it; use a darker pen, or --invert on or off")
    labels, count = ndimage.label(smooth > max(cut / 2, noise), _AROUND)
    sizes = ndimage.sum_labels(strong, labels, np.arange(1, count + 1))
    return strong, np.isin(labels, 1 + np.flatnonzero(sizes > 0.03 * sizes.max()))


def _one_digit(ink: np.ndarray, strong: np.ndarray, faint: np.ndarray, paper: np.ndarray) -> np.ndarray:
    """The mask of ink (height, width) without small marks far from the digit.

    `strong` and `faint` mask deep and any ink. UsageError unless what is left can be one digit on one sheet of paper.
    """
    labels, _ = ndimage.label(ink, _AROUND)
    tall = [n for n, (y, _) in enumerate(ndimage.find_objects(labels), 1) if y.stop - y.start > 0.6 * _size(ink)[0]]
    several = ndimage.label(np.isin(labels, tall).any(axis=0))[1] > 1  # side by side
    reach = 0.1 * max(_size(labels == np.bincount(labels[strong & ink]).argmax()))
    groups, _ = ndimage.label(ndimage.distance_transform_edt(~ink) <= reach)
    shares = np.bincount(groups[strong & ink])
    labels, _ = ndimage.label(faint, _AROUND)
    labels[np.isin(labels, np.concatenate((labels[ink], _ring(labels))))] = 0
    several |= any(max(_size(labels[box] > 0)) > 5 * reach for box in ndimage.find_objects(labels) if box)
    digit = ink & (groups == shares.argmax())
    ring, size, depth = _ring(digit), _size(digit), ndimage.distance_transform_edt(digit)
    if several or shares.sum() > 1.2 * shares.max():
        fault = "more than one digit or mark"
    elif ndimage.label(digit, _AROUND)[1] > 8 or (ring & ~np.roll(ring, 1)).sum() > 6:
        fault = "many lines or spots"
    elif paper.max() + 0.05 > 3.5 * (paper.min() + 0.05):
        fault = "more than a sheet of paper, or light that is too uneven"
    elif ring.any() and (size < 0.75 * np.array(ink.shape)).any():  # else it is cropped to its digit
        fault = "ink that its border cuts off"
    elif min(ink.shape) >= _SMALL and (max(size) < 20 or depth.max() > min(0.3 * max(size), 4 * depth[digit].mean())):
        fault = "a spot without strokes"
    else:
        return digit
    raise UsageError(f"the picture shows {fault}; crop it to one digit on paper, with a margin")


def _size(ink: np.ndarray) -> np.ndarray:
    """The height and width of the ink in a mask (height, width)."""
    return np.ptp(np.nonzero(ink), axis=1) + 1


def _ring(mask: np.ndarray) -> np.ndarray:
    """The pixels along the border (height, width), clockwise."""
    return np.concatenate((mask[0], mask[1:, -1], mask[-1, -2::-1], mask[-2:0:-1, 0]))


def _threshold(levels: np.ndarray) -> float:
    """The level half-way between the means of the levels below and above it, of 0 and these (Ridler & Calvard 1978)."""
    levels = np.append(levels, 0)
    cut = float(levels.mean())
    for _ in range(30 if cut > 0 else 0):
        cut = float(levels[levels <= cut].mean() + levels[levels > cut].mean()) / 2
    return cut


def _wide_median(grey: np.ndarray) -> np.ndarray:
    """The level of the paper on each pixel as the median around it; it follows shadows and vignettes."""
    small = Image.fromarray(grey)
    small.thumbnail((48, 48), Image.Resampling.BOX)
    frame = min(small.size) // 20  # a thin frame is not paper
    level = np.pad(np.asarray(ImageOps.crop(small, frame)), frame, "reflect", reflect_type="odd")
    wide = ndimage.median_filter(level, size=2 * (max(small.size) // 3) + 1, mode="nearest")
    return np.asarray(Image.fromarray(wide).resize(grey.shape[::-1], Image.Resampling.BILINEAR))


def _border_plane(grey: np.ndarray) -> np.ndarray:
    """The level of the paper as a plane through the border's pixels, for light from one side.

    Least trimmed squares (Rousseeuw 1984): the worse half of the border is left out, so that ink may touch it.
    """
    border = ~ndimage.binary_erosion(np.ones(grey.shape, bool), _AROUND, iterations=max(1, min(grey.shape) // 50))
    y, x = np.indices(grey.shape) / max(grey.shape)
    planes = np.stack((np.ones_like(x), x, y), axis=-1)
    points, levels = planes[border], grey[border]
    misfit = np.abs(levels - np.median(levels))
    for _ in range(4):
        better = misfit <= np.median(misfit)
        plane = np.linalg.lstsq(points[better], levels[better])[0]
        misfit = np.abs(levels - points @ plane)
    return (planes @ plane).clip(0, 1)


def _without_lines(contrast: np.ndarray) -> np.ndarray:
    """The contrast (height, width) without thin lines from the left to the right border, within 10 degrees of level.

    A line is a run of dark pixels over most of a window that is longer than a digit's strokes, at one of the slopes.
    """
    height, width = contrast.shape
    thick = max(height, width) // 85  # pixels, of the thickest line
    broad = ndimage.grey_opening(contrast, (thick, 1))
    thin = ndimage.uniform_filter1d(contrast - broad, width // 16, axis=1)
    thin = thin > max(0.03, np.median(thin) + 0.02)
    step = width // 64
    dark = (thin | (broad > 0.1)).astype(np.float32)[:, step // 2 :: step]
    rows, columns = np.indices(dark.shape)
    runs = np.zeros(dark.shape, bool)
    for slope in np.arange(-0.18, 0.181, 0.006):
        drift = np.rint(slope * step * (columns - dark.shape[1] / 2)).astype(int)
        straight = np.take_along_axis(dark, (rows + drift).clip(0, height - 1), axis=0)
        run = ndimage.uniform_filter1d(straight, dark.shape[1] * 6 // 10, axis=1) > 0.85
        runs |= np.take_along_axis(run, (rows - drift).clip(0, height - 1), axis=0)
    labels, _ = ndimage.label(runs, _AROUND)
    across = np.intersect1d(labels[:, :4], labels[:, -4:])
    runs = ndimage.binary_dilation(np.isin(labels, across[across > 0]), np.ones((3, 1)))
    lines = runs[:, (np.arange(width) // step).clip(0, dark.shape[1] - 1)] & thin
    if not lines.any():
        return contrast
    lines &= contrast <= 1.3 * np.quantile(contrast[lines], 0.9)  # ink over a line stays
    lines = ndimage.binary_dilation(lines, np.ones((3, 1)))
    filled = ndimage.grey_closing(np.where(lines, 0, contrast), (thick + 3, 1))
    return np.where(lines, filled, contrast)


def _extent(profile: np.ndarray) -> tuple[int, int]:
    """The first row (or column) with ink and the one after the last; 0.2% of the ink at either end may be dust."""
    share = profile.cumsum(dtype=np.float64) / profile.sum(dtype=np.float64)
    return int(np.searchsorted(share, 0.002, "right")), int(np.searchsorted(share, 0.998)) + 1


def _start(profile: np.ndarray, first: int, last: int, scale: float) -> float:
    """The start of the window whose pixel 14 of 0 to 27, as in MNIST, holds the centre of mass; all ink is inside."""
    centre = float((np.arange(len(profile)) + 0.5) @ profile / profile.sum())
    return min(max(centre - (_SIDE / 2 + 0.5) * scale, last - _SIDE * scale), first)
