"""Every PNG the suite makes. Functions draw and return the file's bytes; the caller writes them.

Figures are made without pyplot: no display is needed, and nothing is kept once a figure is drawn.
Images come as (n, 784) arrays in unit range, or of any other square number of pixels.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

BLUE, ORANGE, GREY = "#2563a8", "#d9722b", "#8a8f98"
_SIGNED = "RdBu_r"  # zero is white
_MOST_NAMED = 10  # autoencoders that get a line each in a legend
_STYLE: Any = {
    "font.size": 11, "axes.titlesize": 13, "axes.titleweight": "bold", "figure.titlesize": 13,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e8eb",
    "text.parse_math": False,  # a folder of images may be called anything
    "axes.axisbelow": True, "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.12,
}  # fmt: skip


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _chart(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def _log_ticks(axis: Axis, span: float = 100.0) -> None:
    """Few ticks on a logarithmic axis, the most over the least of which is `span`; their numbers as they are."""
    # Of 1, 2, 5, 10, .. less than a decade may hold but one, and many decades hold too many.
    axis.set_major_locator(MaxNLocator(5) if span < 10 else LogLocator(subs=(1, 2, 5) if span < 1000 else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


@rc_context(_STYLE)
def variance_curve(cumulative: np.ndarray, variance: float, count: int, images: str) -> bytes:
    """Cumulative explained variance against the number of components, the wanted share and the chosen number."""
    title = f"{images}: {count} components explain {variance:.4g} of the variance"
    figure, axes = _chart(title, "number of components", "cumulative explained variance")
    axes.plot(np.arange(len(cumulative) + 1), np.concatenate(([0.0], cumulative)), color=BLUE, linewidth=2)
    axes.axhline(variance, color=GREY, linestyle="--", linewidth=1)
    axes.axvline(count, color=ORANGE, linestyle="--", linewidth=1)
    axes.plot([count], [cumulative[count - 1]], "o", color=ORANGE)
    right = count < len(cumulative) / 2
    axes.annotate(
        f"k = {count}", (count, cumulative[count - 1]), xytext=(10 if right else -10, -22),
        textcoords="offset points", ha="left" if right else "right", color=ORANGE, fontweight="bold",
    )  # fmt: skip
    axes.text(len(cumulative), variance - 0.015, f"{100 * variance:g} %", ha="right", va="top", color=GREY)
    axes.set(xlim=(0, len(cumulative)), ylim=(0, 1.02))
    return _png(figure)


@rc_context(_STYLE)
def loss_curve(batch_losses: Sequence[float], history: Sequence[dict[str, Any]], title: str, label: str) -> bytes:
    """The loss of every batch, faint, with each epoch's training and test average over it."""
    figure, axes = _chart(title, "epoch", label)
    per_epoch = len(batch_losses) / max(len(history), 1)
    axes.plot((np.arange(len(batch_losses)) + 1) / per_epoch, batch_losses, color=BLUE, alpha=0.3, linewidth=0.8,
              label="training, every batch")  # fmt: skip
    epochs = np.array([row["epoch"] for row in history])
    dots = 4 if len(epochs) <= 20 else 0
    axes.plot(epochs - 0.5, [row["train_loss"] for row in history], "o-", color=BLUE, markersize=dots,
              label="training, epoch average")  # fmt: skip
    axes.plot(epochs, [row["test_loss"] for row in history], "s-", color=ORANGE, markersize=dots, label="test",
              clip_on=False)  # fmt: skip
    # The first batches of an untrained model would flatten all that follows.
    settled = np.concatenate((batch_losses[len(batch_losses) // 50 :], [row["test_loss"] for row in history]))
    low, high = float(np.min(settled)), float(np.max(settled))
    axes.set(xlim=(0, len(history)), ylim=(max(0.0, low - 0.1 * (high - low)), high + 0.05 * (high - low)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return _png(figure)


@rc_context(_STYLE)
def image_rows(rows: dict[str, np.ndarray], title: str, notes: Sequence[str] = ()) -> bytes:
    """Rows of images (n, 784), each row under its label; `notes` stand under the columns."""
    columns = _columns(len(next(iter(rows.values()))), title)
    figure = Figure(figsize=(1.05 * columns + 1.5, 1.1 * len(rows) + 0.75), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (label, images) in zip(grid, rows.items()):
        _row(axes_row, label, _squares(images))
    _under(grid[-1], notes)
    return _png(figure)


def _columns(count: int, title: str) -> int:
    """Columns, of an inch, for so many images and the title above them."""
    return max(count, math.ceil(len(title) / 10.5 - 1))


def _squares(images: np.ndarray) -> np.ndarray:
    """Images (n, pixels) as (n, side, side)."""
    return images.reshape(len(images), math.isqrt(images.shape[1]), -1)


def _row(axes_row: Sequence[Axes], label: str, images: np.ndarray, **colours: Any) -> None:
    """Images (n, h, w) behind the row's label, grey unless told otherwise."""
    axes_row[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=10)
    look: Any = {"cmap": "gray", "vmin": 0, "vmax": 1} | colours
    for axes, image in zip(axes_row, images):
        axes.imshow(image, **look)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes in axes_row[len(images) :]:
        axes.set_visible(False)


def _under(axes_row: Sequence[Axes], notes: Sequence[str]) -> None:
    for axes, note in zip(axes_row, notes):
        axes.set_xlabel(note, fontsize=9)


@rc_context(_STYLE)
def sparse_rows(rows: dict[str, np.ndarray], codes: np.ndarray, title: str, notes: Sequence[str]) -> bytes:
    """Rows of images (n, 784) with notes under the last; below, codes (n, features) as maps of what fired."""
    count, features = codes.shape
    columns = _columns(count, title)
    figure = Figure(figsize=(1.05 * columns + 2.2, 1.15 * (len(rows) + 1) + 1.2), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    grid = figure.subplots(len(rows) + 1, columns, squeeze=False)
    for axes_row, (label, images) in zip(grid, rows.items()):
        _row(axes_row, label, _squares(images))
    _under(grid[-2], notes)
    side = int(np.ceil(features**0.5))
    maps = np.full((count, -(-features // side) * side), np.nan)
    maps[:, :features] = codes
    # A few large numbers would leave the many small ones white.
    limit = float(np.quantile(np.abs(codes[codes != 0]), 0.7)) if codes.any() else 1.0
    _row(grid[-1], "what fired", maps.reshape(count, -1, side), cmap=_SIGNED, vmin=-limit, vmax=limit)
    for axes in grid[-1]:
        axes.spines[:].set(visible=True, color=GREY)
    bar = figure.colorbar(grid[-1][0].images[0], ax=grid, location="right", shrink=0.4, anchor=(0, 0), extend="both")
    bar.set_label("code")
    caption = "a dot of the last row is a feature, the most often firing first; its colour is its number in the code"
    figure.supxlabel(caption, fontsize=9)
    return _png(figure)


@rc_context(_STYLE)
def curves(panels: dict[str, np.ndarray], title: str) -> bytes:
    """A panel for each array (epochs, S): its course over the epochs, a line for each of S autoencoders."""
    figure = Figure(figsize=(4.4 * len(panels), 4.4), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    for axes, (label, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for number, (course, colour) in enumerate(zip(values.T, _colours(values.shape[1])), start=1):
            axes.plot(np.arange(1, len(course) + 1), course, "o-", color=colour, linewidth=1.5,
                      markersize=4 if len(course) <= 20 else 0, label=f"autoencoder {number}")  # fmt: skip
        axes.set(xlabel="epoch", title=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if values.shape[1] <= _MOST_NAMED:
        axes.legend(fontsize=9)
    return _png(figure)


@rc_context(_STYLE)
def feature_grid(features: np.ndarray, rates: np.ndarray, title: str, columns: int = 10) -> bytes:
    """Features (n, 784) as one sheet, red above zero and blue below, a row's range of firing rates beside it."""
    rows = -(-len(features) // columns)
    figure = Figure(figsize=(0.7 * columns + 2.8, 0.7 * rows + 0.6), layout="constrained")
    axes = figure.add_subplot()
    limit = float(np.quantile(np.abs(features), 0.998)) or 1.0
    shown = axes.imshow(_sheet(features, columns, blank=np.nan), cmap=_SIGNED, vmin=-limit, vmax=limit)
    firsts = [f"{100 * rate:.3g} %" if rate else "never" for rate in rates[::columns].tolist()]
    side = _squares(features).shape[1]
    axes.set_yticks((side + 1) * np.arange(rows) + (side - 1) / 2, firsts)
    axes.set(title=title, xticks=[], ylabel="how many test images a row's first feature fires for")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    figure.colorbar(shown, ax=axes, label="weight, of a feature of length 1", fraction=0.04, aspect=30, extend="both")
    return _png(figure)


@rc_context(_STYLE)
def activity(rates: np.ndarray, images: int, title: str) -> bytes:
    """Histograms of log10 firing rates (S, features) counted on so many images; the dead ones stand in the legend."""
    figure, axes = _chart(
        title, "log10 of the share of test images that a feature fires for", f"of {rates.shape[1]} features"
    )
    bins = np.arange(-np.log10(images) - 0.05, 0.2, 0.2).tolist()
    for number, (rate, colour) in enumerate(zip(rates, _colours(len(rates))), start=1):
        label = f"autoencoder {number}: {(rate == 0).sum()} dead"
        axes.hist(np.log10(rate[rate > 0]), bins, histtype="step", color=colour, linewidth=1.5, label=label)
    mean = float(rates.mean())
    axes.axvline(np.log10(mean), color=GREY, linestyle="--", linewidth=1, label=f"mean rate {mean:.2%}")
    if len(rates) <= _MOST_NAMED:
        figure.legend(fontsize=9, loc="outside lower center", ncols=3)
    return _png(figure)


@rc_context(_STYLE)
def search(
    parameters: np.ndarray, errors: np.ndarray, spreads: np.ndarray, names: Sequence[str], series: Sequence[str],
    title: str, y_label: str,
) -> bytes:  # fmt: skip
    """Candidates' errors, with standard errors, against their parameters; the front of those that none beats in both.

    Candidates of one `series` share a colour, those of one `name` a label.
    """
    figure, axes = _chart(title, "parameters of the model", y_label)
    best = np.minimum.accumulate(errors[np.lexsort((errors, parameters))])
    if len(best) > 1:
        axes.step(np.sort(parameters), best, where="post", color=GREY, linestyle="--", linewidth=1.2, zorder=1,
                  label="Pareto front")  # fmt: skip
    kinds = list(dict.fromkeys(series))
    for kind, colour in zip(kinds, [BLUE, ORANGE] if len(kinds) < 3 else _colours(len(kinds))):
        here = np.array([one == kind for one in series])
        axes.errorbar(parameters[here], errors[here], spreads[here], fmt="o", color=colour, capsize=3, label=kind)
    if parameters.max() > 3 * parameters.min():
        axes.set_xscale("log")
        _log_ticks(axes.xaxis, parameters.max() / parameters.min())
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.margins(0.12)
    _name(axes, names, np.column_stack((parameters, errors + spreads)))
    figure.legend(fontsize=9, loc="outside lower center", ncols=3)
    return _png(figure)


def _name(axes: Axes, names: Sequence[str], places: np.ndarray) -> None:
    """Names above places (n, 2); of those that lie as near as their names are large, a name stands once, on top."""
    axes.autoscale_view()
    at = (axes.transData + axes.transAxes.inverted()).transform(places)
    named: list[int] = []
    for place in np.argsort(-at[:, 1], kind="stable").tolist():
        if not any(names[place] == names[i] and (np.abs(at[place] - at[i]) < (0.1, 0.06)).all() for i in named):
            named.append(place)
            axes.annotate(names[place], places[place], xytext=(0, 5), textcoords="offset points", ha="center",
                          fontsize=9, zorder=1.5, bbox={"color": "white", "pad": 1})  # fmt: skip


def _colours(count: int) -> Any:
    """A colour for each of so many autoencoders."""
    return (
        colormaps["tab10"](range(count)) if count <= _MOST_NAMED else colormaps["viridis"](np.linspace(0, 0.9, count))
    )


@rc_context(_STYLE)
def image_grid(images: np.ndarray, title: str, columns: int = 10) -> bytes:
    """Images (n, 784) as one sheet, with a thin line between them."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(max(6.0, 0.7 * columns + 0.3), 0.7 * rows + 0.75), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(_sheet(images, columns), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title)
    axes.set_axis_off()
    return _png(figure)


def _sheet(images: np.ndarray, columns: int, gap: int = 1, blank: float = 0.35) -> np.ndarray:
    """Images (n, 784) side by side in one array, `columns` a row, lines of `gap` blank pixels between them."""
    squares = _squares(images)
    rows, side = -(-len(images) // columns), squares.shape[1] + gap
    sheet = np.full((rows * side - gap, columns * side - gap), blank)
    for number, image in enumerate(squares):
        top, left = side * (number // columns), side * (number % columns)
        sheet[top : top + side - gap, left : left + side - gap] = image
    return sheet


@rc_context(_STYLE)
def latent_map(
    decoded: np.ndarray, extent: tuple[float, ...], codes: np.ndarray, labels: np.ndarray, title: str
) -> bytes:
    """Images decoded over a plane (a square number of them), beside codes (n, 2) coloured by label."""
    figure = Figure(figsize=(12.5, 6), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    left, right = figure.subplots(1, 2)
    left.imshow(_sheet(decoded, int(len(decoded) ** 0.5), gap=0), cmap="gray", vmin=0, vmax=1, extent=extent,
                aspect="auto")  # fmt: skip
    left.set(title="what each place decodes to", xlabel="code 1", ylabel="code 2")
    left.grid(False)
    dots = _labelled_dots(right, codes, labels, s=3, alpha=0.6)
    right.set(title="where the test images lie", xlabel="code 1", ylabel="code 2")
    figure.colorbar(dots, ax=right, label="label", ticks=MaxNLocator(integer=True))
    return _png(figure)


def _labelled_dots(axes: Axes, places: np.ndarray, labels: np.ndarray, **look: Any) -> PathCollection:
    """Dots at places (n, 2), a colour for each label."""
    count = int(labels.max()) + 1
    colours = colormaps["tab10"] if count <= 10 else colormaps["turbo"].resampled(count)
    return axes.scatter(places[:, 0], places[:, 1], c=labels, cmap=colours, vmin=-0.5, vmax=colours.N - 0.5, **look)


@rc_context(_STYLE)
def side_by_side(panels: dict[str, np.ndarray], title: str) -> bytes:
    """Images of any size, grey (h, w) in [0, 1] or RGB (h, w, 3), in a row, each under its label."""
    figure = Figure(figsize=(3.1 * len(panels) + 0.3, 3.9), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    for axes, (label, image) in zip(figure.subplots(1, len(panels)), panels.items()):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[], xlabel=label)
        axes.spines[:].set(visible=True, color=GREY)
    return _png(figure)


@rc_context(_STYLE)
def scaling_panels(panels: dict[str, dict[int, float]], title: str) -> bytes:
    """A panel for each `"x label|y label|recipe"`, with the cost for each x, on logarithmic axes."""
    figure = Figure(figsize=(4 * min(len(panels), 3), 3.4 * -(-len(panels) // 3)), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    for place, (labels, points) in enumerate(panels.items(), start=1):
        x_label, y_label, recipe = labels.split("|")
        axes = figure.add_subplot(-(-len(panels) // 3), min(len(panels), 3), place)
        axes.plot(list(points), list(points.values()), "o-", color=BLUE)
        axes.set(title=recipe, xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
        axes.set_xticks(list(points), [f"{x:,}" if x < 10_000 else f"{x // 1000}k" for x in points])
        axes.xaxis.set_minor_locator(NullLocator())
        low, high = min(points.values()), max(points.values())
        axes.set_ylim(low / 1.6, high * 1.6)
        _log_ticks(axes.yaxis)
    return _png(figure)


@rc_context(_STYLE)
def loss_panels(losses: Mapping[str, Sequence[tuple[float, float]]], title: str) -> bytes:
    """Training and test loss of every epoch, a panel for each run."""
    rows = -(-len(losses) // 3)
    figure = Figure(figsize=(12, 3.2 * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    for place, (name, course) in enumerate(losses.items(), start=1):
        axes = figure.add_subplot(rows, 3, place)
        epochs = np.arange(1, len(course) + 1)
        for values, colour, label in zip(np.transpose(course), (BLUE, ORANGE), ("training", "test")):
            axes.plot(epochs, values, "o-" if len(course) < 20 else "-", color=colour, markersize=4, label=label)
        axes.set(title=name, xlabel="epoch", ylabel="loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if place == 1:
            axes.legend()
    return _png(figure)


@rc_context(_STYLE)
def code_size_curves(pca: dict[int, float], errors: dict[str, dict[int, float]], count: int, title: str) -> bytes:
    """Test MSE over code sizes: PCA's curve, a line for each recipe, and where PCA explains 95 % of the variance."""
    figure, axes = _chart(title, "code size", "test MSE per pixel in [0, 1]")
    axes.plot(list(pca), list(pca.values()), color=GREY, linewidth=2, label="PCA")
    for (name, points), colour, mark in zip(errors.items(), (BLUE, ORANGE), "os"):
        axes.plot(list(points), list(points.values()), f"{mark}-", color=colour, label=name)
    axes.set(xscale="log", yscale="log")
    if count in pca:
        axes.axvline(count, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(f"95 % of the variance: {count}", (count, 1), xytext=(-6, -4), color="#5a5f66", ha="right",
                      va="top", xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    _log_ticks(axes.yaxis)
    sizes = sorted({size for points in errors.values() for size in points})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend()
    return _png(figure)


def _strip(axes: Axes, label: str, images: np.ndarray, notes: Sequence[str] = ()) -> None:
    """Images (n, 784) side by side behind their label, a note under each."""
    side = _squares(images).shape[1]
    gap = max(1, side // 7)
    axes.imshow(_sheet(images, len(images), gap, blank=1.0), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks((side + gap) * np.arange(len(notes)) + (side - 1) / 2, notes, fontsize=9)
    axes.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=10)
    axes.set_yticks([])
    axes.set_anchor("W")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)


@rc_context(_STYLE)
def evaluation(errors: dict[str, dict[int, float]], rows: dict[str, np.ndarray], notes: dict[str, list[str]],
               title: str) -> bytes:  # fmt: skip
    """Bars of two errors by label, beside rows of images (n, 784), some of them with notes underneath."""
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.05 * columns + 7.5, 1.25 * len(rows) + 0.7), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(5.5, 1.05 * columns + 2)).flat
    axes, labels = left.subplots(), list(next(iter(errors.values())))
    for (name, of_label), shift, colour in zip(errors.items(), (-0.2, 0.2), (BLUE, GREY)):
        axes.bar(np.arange(len(labels)) + shift, list(of_label.values()), 0.4, label=name, color=colour)
    axes.set(xticks=range(len(labels)), xticklabels=labels, xlabel="label", ylabel="MSE, pixels in [0, 1]")
    every = [error for of_label in errors.values() for error in of_label.values()]
    low, high = max(min(every), 1e-6 * max(every)), max(every)
    if high > 30 * low:  # the short bars would not be seen
        axes.set(yscale="log", ylim=(low / 2, 2 * high))
        _log_ticks(axes.yaxis)
    axes.grid(visible=False, axis="x")
    left.legend(loc="outside upper center", ncols=2)
    for axes, (label, images) in zip(right.subplots(len(rows)), rows.items()):
        _strip(axes, label, images, notes.get(label, ()))
    return _png(figure)


@rc_context(_STYLE)
def code_map(places: dict[str, np.ndarray], labels: np.ndarray, images: np.ndarray, chosen: dict[str, np.ndarray],
             title: str) -> bytes:  # fmt: skip
    """A panel a method: images (n, 784) as dots at places (n, 2) coloured by label, the chosen ones as thumbnails."""
    figure = Figure(figsize=(8 * len(places) + 1, 8), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    panels = figure.subplots(1, len(places), squeeze=False)[0]
    zoom = 12.6 / math.isqrt(images.shape[1])
    for axes, (method, at) in zip(panels, places.items()):
        low, high = np.quantile(at, (0.002, 0.998), axis=0)
        margin = 0.05 * (high - low) + 1e-9
        axes.set(title=method, xticks=[], yticks=[], xlim=(low[0] - margin[0], high[0] + margin[0]),
                 ylim=(low[1] - margin[1], high[1] + margin[1]))  # fmt: skip
        dots = _labelled_dots(axes, at, labels, s=6, linewidths=0)
        for number in chosen[method]:
            thumbnail = OffsetImage(_squares(images[number : number + 1])[0], zoom=zoom, cmap="gray_r")
            frame = {"edgecolor": dots.to_rgba(labels[number]), "linewidth": 1.5}
            axes.add_artist(AnnotationBbox(thumbnail, at[number], pad=0.05, bboxprops=frame))
    figure.colorbar(dots, ax=panels, label="label", ticks=MaxNLocator(integer=True), fraction=0.02)
    return _png(figure)


@rc_context(_STYLE)
def outliers(errors: dict[str, np.ndarray], threshold: float, rows: dict[str, tuple[np.ndarray, Sequence[float]]],
             title: str) -> bytes:  # fmt: skip
    """Histograms of errors by kind of image with the threshold; below, rows of images (n, 784), the error of each."""
    columns = max(7, *(len(images) for images, _ in rows.values()))  # the axis has numbers enough for seven inches
    figure = Figure(figsize=(1.05 * _columns(columns, title) + 3, 4 + 1.4 * len(rows)), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    top, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.6, 1.4 * len(rows))).flat
    axes = top.subplots()
    every = np.concatenate(list(errors.values()))
    low, high = max(float(every.min()), 1e-3 * float(np.median(every)), 1e-12), float(every.max())
    high = max(high, 1.1 * low)  # all errors may be the same
    bins = np.geomspace(low, high, 80).tolist()
    for (kind, values), colour in zip(errors.items(), (BLUE, ORANGE)):
        share = np.full(len(values), 1 / len(values))
        axes.hist(values.clip(low), bins, weights=share, color=colour, alpha=0.6, label=f"{kind} ({len(values):,})")
    axes.axvline(threshold, color=GREY, linestyle="--", label=f"threshold {threshold:.4g}")
    axes.set(xscale="log", xlabel="reconstruction error (MSE, pixels in [0, 1])", ylabel="share of images")
    _log_ticks(axes.xaxis, high / low)
    top.legend(loc="outside upper center", ncols=3)
    for axes, (label, (images, marks)) in zip(below.subplots(len(rows)), rows.items()):
        _strip(axes, label, images, [f"MSE {mark:.4f}" for mark in marks])
    return _png(figure)
