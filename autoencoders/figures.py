"""The PNGs of training and generation; those of an evaluation are in evaluation/plots.py, that of PCA in pca.py.

Each function draws one picture and returns the bytes of its file; the caller writes them. Images are arrays (n, pixels)
of squares in [0, 1].
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from autoencoders.style import BLUE, GREY, MAX_NAMED, ORANGE, colours, log_ticks, png, styled_figure, whole_numbers

Rows = Mapping[str, np.ndarray]
Captions = Mapping[str, Sequence[str]]

_GREY_LEVELS: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}  # fixed, so that a dim image looks dim
_SIGNED = "RdBu_r"  # zero is white


def squares(images: np.ndarray) -> np.ndarray:
    """Images (n, pixels) as (n, side, side)."""
    return images.reshape(len(images), math.isqrt(images.shape[1]), -1)


def strips(figure: FigureBase, rows: Rows, captions: Captions) -> list[Axes]:
    """Draw rows of images (n, pixels), each next to its label, some with captions."""
    grid = list(figure.subplots(len(rows), squeeze=False)[:, 0])
    for axes, (label, images) in zip(grid, rows.items()):
        strip(axes, squares(images), label, captions.get(label, ()))
    return grid


def strip(axes: Axes, images: Any, label: str = "", captions: Sequence[str] = ()) -> None:
    """Draw images, grey (h, w) or RGB (h, w, 3), side by side in unit squares: the label left, the captions below."""
    centres = 1.13 * np.arange(len(images))
    for centre, image in zip(centres, images):
        height, width = np.array(image.shape[:2]) / max(image.shape[:2]) / 2
        axes.imshow(image, extent=(centre - width, centre + width, -height, height), **_GREY_LEVELS)
        frame = Rectangle((centre - width, -height), 2 * width, 2 * height, fill=False, edgecolor=GREY, linewidth=0.8)
        axes.add_patch(frame).set_clip_on(False)
    axes.set(xlim=(-0.5, centres[-1] + 0.5), ylim=(-0.5, 0.5), yticks=[], anchor="W", frame_on=False)
    axes.set_xticks(centres[: len(captions)], captions, fontsize=9)
    axes.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=10)
    axes.tick_params(length=0, grid_alpha=0)


def signed_colours(features: np.ndarray) -> np.ndarray:
    """Features (n, pixels) as RGB (n, side, side, 3): red above 0, blue below; each by its own largest weight."""
    limits = np.maximum(np.abs(features).max(axis=1, keepdims=True), 1e-30)
    return np.asarray(colormaps[_SIGNED](0.5 + squares(features / limits) / 2))[..., :3]


def _sheet(images: np.ndarray, columns: int, gap: int = 1, blank: float = 0.35) -> np.ndarray:
    """Images (n, pixels) as one array, `columns` in a row, with `gap` blank pixels between; nan where none is left."""
    tiles = np.pad(squares(images), ((0, 0), (0, gap), (0, gap)), constant_values=blank)
    tiles = np.pad(tiles, ((0, -len(images) % columns), (0, 0), (0, 0)), constant_values=np.nan)
    sheet = np.vstack([np.hstack(row) for row in tiles.reshape(-1, columns, *tiles.shape[1:])])
    return sheet[: len(sheet) - gap, : sheet.shape[1] - gap]


def labelled_dots(axes: Axes, points: np.ndarray, labels: np.ndarray, **style: Any) -> PathCollection:
    """Dots at points (n, 2), a colour for each label; a few labels are also written at the median of their dots."""
    map_ = colours(int(labels.max()) + 1)
    known = np.unique(labels)
    if map_.N <= MAX_NAMED and len(known) > 1:
        outline = [withStroke(linewidth=4, foreground="white")]
        for label in known:
            x, y = np.median(points[labels == label], axis=0)
            axes.annotate(str(label), (x, y), fontsize=17, weight="bold", ha="center", va="center", zorder=5,
                          path_effects=outline)  # fmt: skip
    return axes.scatter(points[:, 0], points[:, 1], c=labels, cmap=map_, vmin=-0.5, vmax=map_.N - 0.5, **style)


def label_bar(figure: Figure, dots: PathCollection, axes: Any, **place: Any) -> None:
    """The colour of each label of `labelled_dots`, as a bar beside axes; none where all have the same."""
    if len(np.unique(np.asarray(dots.get_array()))) < 2:
        return
    bar = figure.colorbar(dots, ax=axes, label="label", **place)
    whole_numbers(bar.ax.yaxis)
    if dots.get_cmap().N <= MAX_NAMED:
        bar.set_ticks(range(dots.get_cmap().N))
    if bar.solids:
        bar.solids.set_alpha(1)
    bar.ax.grid(visible=False)


def loss_curve(
    batches: np.ndarray, train: np.ndarray, test: np.ndarray, title: str, y_label: str, pca_mse: float | None = None
) -> bytes:
    """The training loss of every batch and, level, of every epoch; the test loss after each epoch; PCA's test error."""
    epochs = np.arange(1, len(test) + 1)
    at, size = np.linspace(0, len(epochs), len(batches) + 1)[1:], 4 if len(epochs) <= 20 else 0
    with styled_figure(title) as figure:
        axes = figure.add_subplot(xlabel="epoch", ylabel=y_label)
        axes.plot(at, batches, color=BLUE, alpha=0.3, linewidth=0.8, label="training, every batch")
        axes.stairs(train, [0, *epochs], baseline=None, color=BLUE, linewidth=1.5, label="training, epoch average")
        axes.plot(epochs, test, "s-", color=ORANGE, label="test", clip_on=False, markersize=size)
        if pca_mse is not None:
            axes.axhline(pca_mse, color=GREY, linestyle="--", label=f"PCA, same code size: {pca_mse:.4f}")
        _log_scale(axes, batches, train, test)
        axes.set_xlim(0, len(epochs))
        whole_numbers(axes.xaxis)
        axes.legend()
        return png(figure)


def _log_scale(axes: Axes, *values: np.ndarray) -> None:
    """A logarithmic y axis, unless a value has no logarithm."""
    if min(each.min() for each in values) > 0:
        axes.set_yscale("log")
        log_ticks(axes.yaxis)


def image_rows(rows: Rows, title: str, captions: Captions = MappingProxyType({})) -> bytes:
    """Rows of images (n, pixels), each next to its label, some with captions."""
    with styled_figure(title, 1.13 * max(map(len, rows.values())) + 1.4, 1.3 * len(rows) + 0.6) as figure:
        strips(figure, rows, captions)
        return png(figure)


def sparse_rows(rows: Rows, codes: np.ndarray, title: str, captions: Captions) -> bytes:
    """Rows of images (n, pixels), some with captions, and their codes (n, features) as square maps."""
    count, features = codes.shape
    maps = np.pad(codes, ((0, 0), (0, math.ceil(features**0.5) ** 2 - features)), constant_values=np.nan)
    # A few large activations would leave the many small ones white.
    limit = float(np.quantile(np.abs(codes[codes != 0]), 0.7)) if codes.any() else 1.0
    with styled_figure(title, 1.13 * count + 2.2, 1.3 * len(rows) + 2.1) as figure:
        *_, axes = grid = strips(figure, {**rows, "active\nfeatures": maps}, captions)
        signed = codes.min() < 0
        for image in axes.images:
            image.set(cmap=_SIGNED if signed else "Reds", clim=(-limit if signed else 0, limit))
        axes.set_xlabel("one pixel per feature, the most active first", fontsize=9)
        figure.colorbar(axes.images[0], ax=grid, label="activation", shrink=0.4, anchor=(0, 0),
                        extend="both" if signed else "max")  # fmt: skip
        return png(figure)


def images_in_a_row(panels: Rows, title: str) -> bytes:
    """Images of any size, grey (h, w) in [0, 1] or RGB (h, w, 3), each above its label."""
    with styled_figure(title, 3.2 * len(panels) + 0.3, 3.9) as figure:
        strip(figure.add_subplot(), list(panels.values()), captions=list(panels))
        return png(figure)


def image_grid(images: np.ndarray, title: str, columns: int = 10) -> bytes:
    """Images (n, pixels) as one sheet."""
    with styled_figure(title, 0.7 * columns + 0.3, 0.7 * -(-len(images) // columns) + 0.75) as figure:
        figure.add_subplot(xticks=[], yticks=[], frame_on=False).imshow(_sheet(images, columns), **_GREY_LEVELS)
        return png(figure)


def feature_grid(features: np.ndarray, rates: np.ndarray, title: str, columns: int = 10) -> bytes:
    """Features (n, pixels) as one sheet, each row with the firing rate (n,) of its first feature."""
    rows, step = -(-len(features) // columns), math.isqrt(features.shape[1]) + 1
    limit = float(np.quantile(np.abs(features), 0.998)) or 1.0
    with styled_figure(title, 0.7 * columns + 2.8, max(3.2, 0.7 * rows + 0.9)) as figure:
        axes = figure.add_subplot(xticks=[], ylabel="firing rate of the\nfirst feature in the row", frame_on=False)
        shown = axes.imshow(_sheet(features, columns, blank=np.nan), cmap=_SIGNED, vmin=-limit, vmax=limit)
        axes.set_yticks(step * np.arange(rows) + step / 2 - 1, [f"{100 * rate:.3g}%" for rate in rates[::columns]])
        axes.tick_params(length=0, grid_alpha=0)
        figure.colorbar(shown, ax=axes, label="weight (unit norm)", fraction=0.04, aspect=30, extend="both")
        return png(figure)


def firing_rate_histogram(rates: np.ndarray, images: int, title: str) -> bytes:
    """Histograms of firing rates (S, features) on `images` images, a panel for each of the first ten autoencoders."""
    shown, bins = rates[:MAX_NAMED], np.geomspace(0.9 / images, 1.1, max(2, round(8 * math.log10(images))))
    with styled_figure(title, height=1.1 * len(shown) + 2) as figure:
        grid = figure.subplots(len(shown), sharex=True, sharey=True, squeeze=False)[:, 0]
        for number, (axes, rate) in enumerate(zip(grid, shown), start=1):
            axes.hist(rate[rate > 0], bins.tolist(), color=BLUE)
            axes.axvline(rate.mean(), color=ORANGE, linestyle="--")
            text = f"autoencoder {number}: {(rate == 0).sum()} dead, mean rate {rate.mean():.2%}"
            axes.set_title(text, loc="left", fontsize=10)
        axes.set(xscale="log", xlim=(bins[0], bins[-1]), xlabel=f"firing rate on {images:,} test images")
        log_ticks(axes.xaxis, lambda value, _: f"{100 * value:g}%")
        figure.supylabel("number of features", fontsize=11)
        return png(figure)


def epoch_curves(panels: Rows, title: str, labels: Sequence[str], y_label: str = "", log: bool = False) -> bytes:
    """A panel for each array (epochs, lines), up to three in a row; a line has the same label in every panel."""
    rows, columns = -(-len(panels) // 3), min(len(panels), 3)
    with styled_figure(title, 4.2 * columns, 3.3 * rows + 0.8) as figure:
        for number, (name, values) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, columns, number, xlabel="epoch", ylabel=y_label)
            axes.set_title(textwrap.fill(name, 40))  # the name of a run may be its flags
            epochs, size = np.arange(1, len(values) + 1), 4 if len(values) <= 20 else 0
            for i, label in enumerate(labels):
                axes.plot(epochs, values[:, i], "o-", color=colours(len(labels))(i), label=label, markersize=size)
            whole_numbers(axes.xaxis)
            if log:
                _log_scale(axes, values)
        if len(labels) <= MAX_NAMED:
            figure.legend(*axes.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=5)
        return png(figure)


def latent_map(decoded: np.ndarray, ends: np.ndarray, codes: np.ndarray, labels: np.ndarray, title: str) -> bytes:
    """Images decoded from a square grid between two 2-D codes, `ends`, next to the codes (n, 2) there, by label."""
    (low, high), sheet = ends, _sheet(decoded, math.isqrt(len(decoded)), gap=0)
    inside = ((codes >= low) & (codes <= high)).all(axis=1).mean()
    place: dict[str, Any] = {"xlim": (low[0], high[0]), "ylim": (low[1], high[1]), "box_aspect": 1, "xlabel": "code 1",
                             "ylabel": "code 2"}  # fmt: skip
    with styled_figure(title, 12.5, 6) as figure:
        left, right = figure.subplots(1, 2)
        left.imshow(
            sheet, extent=(*place["xlim"], *place["ylim"]), aspect="auto", zorder=1, **_GREY_LEVELS
        )  # over the grid
        left.set(title="decoded codes", **place)
        dots = labelled_dots(right, codes, labels, s=3, alpha=0.6)
        right.set(title=f"codes of the test images, {inside:.0%} of them in this range", **place)
        label_bar(figure, dots, right)
        return png(figure)
