"""The PNGs of PCA, training and generation, and the style of all; those of an evaluation are in evaluation/plots.py.

Each function draws one picture and returns the bytes of its file; the caller writes them.

Images are arrays (n, pixels) of squares in [0, 1]. Without pyplot no display is needed and no figure stays open.
"""

import contextlib
import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.colors import Colormap
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

Rows = Mapping[str, np.ndarray]
Captions = Mapping[str, Sequence[str]]

BLUE, ORANGE, GREY = "#2563a8", "#d9722b", "#8a8f98"
_GREY_LEVELS: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}  # fixed, so that a dim image looks dim
_SIGNED = "RdBu_r"  # zero is white
_MAX_NAMED = 10  # lines in a legend
_STYLE: Any = {
    "font.size": 11, "axes.titlesize": 12, "figure.titlesize": 13, "figure.titleweight": "bold", "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.color": "#e6e8eb",
    "legend.frameon": False, "figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.12,
    "text.usetex": False, "text.parse_math": False,  # the name of an image set may contain a $
}  # fmt: skip


@contextlib.contextmanager
def styled_figure(title: str, width: float = 8.0, height: float = 4.8) -> Iterator[Figure]:
    """An empty figure, in inches, 6 or more wide, under a wrapped title; draw, and call `png`, inside the block."""
    width = max(width, 6.0)
    with rc_context(_STYLE):
        figure = Figure((width, height), layout="constrained")
        figure.suptitle(textwrap.fill(title, int(8.5 * width)))  # matplotlib's own wrapping would parse a $
        yield figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a letter that the font does not have is a box
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def log_ticks(axis: Axis, ratio: float = 100.0, formatter: Any = "{x:g}") -> None:
    """A few ticks, with plain numbers, on a logarithmic axis whose ends have this ratio."""
    # Less than a decade may hold only one of 1, 2, 5, 10, ..; many decades hold too many.
    axis.set_major_locator(MaxNLocator(5) if 1 < ratio < 10 else LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,)))
    axis.set_major_formatter(formatter)
    axis.set_minor_locator(NullLocator())


def colours(count: int) -> Colormap:
    """A colour map whose first `count` colours differ."""
    return colormaps["tab10"] if count <= _MAX_NAMED else colormaps["turbo"].resampled(count)


def squares(images: np.ndarray) -> np.ndarray:
    """Images (n, pixels) as (n, side, side)."""
    return images.reshape(len(images), math.isqrt(images.shape[1]), -1)


def strips(figure: FigureBase, rows: Rows, captions: Captions) -> list[Axes]:
    """Draw rows of images (n, pixels), each next to its label, some with captions."""
    grid = list(figure.subplots(len(rows), squeeze=False)[:, 0])
    for axes, (label, images) in zip(grid, rows.items()):
        _strip(axes, squares(images), label, captions.get(label, ()))
    return grid


def _strip(axes: Axes, images: Any, label: str = "", captions: Sequence[str] = ()) -> None:
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


def _sheet(images: np.ndarray, columns: int, gap: int = 1, blank: float = 0.35) -> np.ndarray:
    """Images (n, pixels) as one array, `columns` in a row, with `gap` blank pixels between two images."""
    tiles = np.pad(squares(images), ((0, -len(images) % columns), (0, gap), (0, gap)), constant_values=blank)
    sheet = np.vstack([np.hstack(row) for row in tiles.reshape(-1, columns, *tiles.shape[1:])])
    return sheet[: len(sheet) - gap, : sheet.shape[1] - gap]


def labelled_dots(axes: Axes, points: np.ndarray, labels: np.ndarray, **style: Any) -> PathCollection:
    """Dots at points (n, 2), a colour for each label."""
    map_ = colours(int(labels.max()) + 1)
    return axes.scatter(points[:, 0], points[:, 1], c=labels, cmap=map_, vmin=-0.5, vmax=map_.N - 0.5, **style)


def variance_curve(cumulative: np.ndarray, variance: float, count: int, images: str) -> bytes:
    """Cumulative explained variance against the number of components; `count` of them explain the share `variance`."""
    title = f"{images}: {count} components explain {100 * variance:.4g}% of the variance"
    with styled_figure(title) as figure:
        axes = figure.add_subplot(xlabel="number of components", ylabel="cumulative explained variance")
        axes.plot(np.arange(len(cumulative) + 1), np.concatenate(([0.0], cumulative)), color=BLUE, linewidth=2)
        axes.axhline(variance, color=GREY, linestyle="--", linewidth=1, label=f"{100 * variance:g}% of the variance")
        axes.axvline(count, color=ORANGE, linestyle="--", linewidth=1)
        axes.plot([count], [cumulative[count - 1]], "o", color=ORANGE, label=f"k = {count}")
        axes.set(xlim=(0, len(cumulative)), ylim=(0, 1.02))
        axes.legend(loc="lower right")
        return png(figure)


def loss_curve(batch_losses: Sequence[float], history: Sequence[dict[str, Any]], title: str, y_label: str) -> bytes:
    """The training loss of every batch, faint, and the training and test loss of every epoch."""
    epochs, train, test = np.array([(row["epoch"], row["train_loss"], row["test_loss"]) for row in history]).T
    at, size = np.linspace(0, len(epochs), len(batch_losses) + 1)[1:], 4 if len(epochs) <= 20 else 0
    with styled_figure(title) as figure:
        axes = figure.add_subplot(xlabel="epoch", ylabel=y_label)
        axes.plot(at, batch_losses, color=BLUE, alpha=0.3, linewidth=0.8, label="training, every batch")
        axes.plot(epochs - 0.5, train, "o-", color=BLUE, label="training, epoch average", markersize=size)
        axes.plot(epochs, test, "s-", color=ORANGE, label="test", clip_on=False, markersize=size)
        # The first batches of an untrained model would flatten everything after them.
        after_start = [*batch_losses[len(batch_losses) // 50 :], *test]
        low, high = min(after_start), max(after_start)
        axes.set(xlim=(0, len(history)), ylim=(max(0.0, low - 0.1 * (high - low)), high + 0.05 * (high - low)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return png(figure)


def image_rows(rows: Rows, title: str, captions: Sequence[str] = ()) -> bytes:
    """Rows of images (n, pixels), each next to its label, with captions under the last row."""
    with styled_figure(title, 1.13 * max(map(len, rows.values())) + 1.4, 1.3 * len(rows) + 0.6) as figure:
        strips(figure, rows, {list(rows)[-1]: captions})
        return png(figure)


def sparse_rows(rows: Rows, codes: np.ndarray, title: str, captions: Sequence[str]) -> bytes:
    """Rows of images (n, pixels) with captions under the last, and their codes (n, features) as square maps."""
    count, features = codes.shape
    maps = np.pad(codes, ((0, 0), (0, math.ceil(features**0.5) ** 2 - features)), constant_values=np.nan)
    # A few large activations would leave the many small ones white.
    limit = float(np.quantile(np.abs(codes[codes != 0]), 0.7)) if codes.any() else 1.0
    with styled_figure(title, 1.13 * count + 2.2, 1.3 * len(rows) + 2.1) as figure:
        *_, axes = grid = strips(figure, {**rows, "active\nfeatures": maps}, {list(rows)[-1]: captions})
        for image in axes.images:
            image.set(cmap=_SIGNED, clim=(-limit, limit))
        axes.set_xlabel("one pixel per feature, the most active first", fontsize=9)
        figure.colorbar(axes.images[0], ax=grid, label="activation", shrink=0.4, anchor=(0, 0), extend="both")
        return png(figure)


def images_in_a_row(panels: Rows, title: str) -> bytes:
    """Images of any size, grey (h, w) in [0, 1] or RGB (h, w, 3), each above its label."""
    with styled_figure(title, 3.2 * len(panels) + 0.3, 3.9) as figure:
        _strip(figure.add_subplot(), list(panels.values()), captions=list(panels))
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
        axes = figure.add_subplot(xticks=[], ylabel="firing rate, first of the row", frame_on=False)
        shown = axes.imshow(_sheet(features, columns, blank=np.nan), cmap=_SIGNED, vmin=-limit, vmax=limit)
        axes.set_yticks(step * np.arange(rows) + step / 2 - 1, [f"{100 * rate:.3g}%" for rate in rates[::columns]])
        axes.tick_params(length=0, grid_alpha=0)
        figure.colorbar(shown, ax=axes, label="weight (unit norm)", fraction=0.04, aspect=30, extend="both")
        return png(figure)


def firing_rate_histogram(rates: np.ndarray, images: int, title: str) -> bytes:
    """Histograms of firing rates (S, features) on `images` images; the legend counts the dead features."""
    with styled_figure(title) as figure:
        axes = figure.add_subplot(xlabel=f"firing rate on {images:,} test images", ylabel="number of features")
        bins = np.geomspace(0.9 / images, 1.1, max(2, round(5 * math.log10(images)))).tolist()
        for number, rate in enumerate(rates):
            label, colour = f"autoencoder {number + 1}: {(rate == 0).sum()} dead", colours(len(rates))(number)
            axes.hist(rate[rate > 0], bins, histtype="step", color=colour, linewidth=1.5, label=label)
        axes.axvline(rates.mean(), color=GREY, linestyle="--", linewidth=1, label=f"mean {rates.mean():.2%}")
        axes.set(xscale="log", xlim=(bins[0], bins[-1]))
        log_ticks(axes.xaxis, images, lambda value, _: f"{100 * value:g}%")
        if len(rates) <= _MAX_NAMED:
            figure.legend(fontsize=9, loc="outside lower center", ncols=3)
        return png(figure)


def epoch_curves(panels: Rows, title: str, labels: Sequence[str], y_label: str = "") -> bytes:
    """A panel for each array (epochs, lines), up to three in a row; a line has the same label in every panel."""
    rows, columns = -(-len(panels) // 3), min(len(panels), 3)
    with styled_figure(title, 4.2 * columns, 3.3 * rows + 0.8) as figure:
        for number, (name, values) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, columns, number, title=name, xlabel="epoch", ylabel=y_label)
            epochs, size = np.arange(1, len(values) + 1), 4 if len(values) <= 20 else 0
            for i, label in enumerate(labels):
                axes.plot(epochs, values[:, i], "o-", color=colours(len(labels))(i), label=label, markersize=size)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(labels) <= _MAX_NAMED:
            figure.legend(*axes.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=5)
        return png(figure)


def latent_map(decoded: np.ndarray, ends: np.ndarray, codes: np.ndarray, labels: np.ndarray, title: str) -> bytes:
    """Images decoded from a square grid between two 2-D codes, `ends`, next to codes (n, 2) coloured by label."""
    with styled_figure(title, 12.5, 6) as figure:
        left = figure.add_subplot(1, 2, 1, title="decoded codes", xlabel="code 1", ylabel="code 2")
        sheet, (low, high) = _sheet(decoded, math.isqrt(len(decoded)), gap=0), ends
        extent = low[0], high[0], low[1], high[1]
        left.imshow(sheet, extent=extent, aspect="auto", zorder=1, **_GREY_LEVELS)  # over the grid
        right = figure.add_subplot(1, 2, 2, title="codes of the test images", xlabel="code 1", ylabel="code 2")
        dots = labelled_dots(right, codes, labels, s=3, alpha=0.6)
        figure.colorbar(dots, ax=right, label="label", ticks=MaxNLocator(integer=True))
        return png(figure)
