"""The PNGs of ae_eval.py and ae_search.py; see style.py for the style, figures.py for what pictures share."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import EngFormatter

from autoencoders.figures import Captions, Rows, label_bar, labelled_dots, signed_colours, squares, strip, strips
from autoencoders.style import BLUE, GREY, MAX_NAMED, ORANGE, colours, log_ticks, png, styled_figure

Scored = tuple[np.ndarray, Sequence[float]]  # images (n, pixels) and the error of each


def search(
    parameters: np.ndarray, errors: np.ndarray, spreads: np.ndarray, names: Sequence[str], series: Sequence[str],
    title: str, y_label: str,
) -> bytes:  # fmt: skip
    """Errors of candidates, with standard errors, against their parameters; of many only the Pareto front is named."""
    order = np.lexsort((errors, parameters))
    best = np.minimum.accumulate(errors[order])
    front = order[np.flatnonzero(np.diff(best, prepend=np.inf))]
    with styled_figure(title) as figure:
        axes = figure.add_subplot(xlabel="parameters of the model", ylabel=y_label)
        if len(best) > 1:
            axes.step(parameters[order], best, "--", where="post", color=GREY, zorder=1, label="Pareto front")
        for number, kind in enumerate(dict.fromkeys(series)):
            i, colour = np.array(series) == kind, colours(len(set(series)))(number)
            axes.errorbar(parameters[i], errors[i], spreads[i], fmt="o", color=colour, capsize=3, label=kind)
        for i in front:  # no candidate lies below and to the left of these
            point = parameters[i], errors[i]
            axes.annotate(names[i], point, (-6, -4), textcoords="offset points", ha="right", va="top")
        for i in set(range(len(names))).difference(front if len(names) <= MAX_NAMED else range(len(names))):
            axes.annotate(names[i], (parameters[i], errors[i]), (6, 4), textcoords="offset points", color="#5a5f66")
        axes.set(xscale="log", yscale="log")  # not before: error bars on such axes give the range of one dot some width
        axes.margins(0.15)
        log_ticks(axes.xaxis, EngFormatter())
        log_ticks(axes.yaxis)
        figure.legend(fontsize=9, loc="outside lower center", ncols=3)
        return png(figure)


def code_map(places: Rows, labels: np.ndarray, images: np.ndarray, chosen: Rows, title: str) -> bytes:
    """A panel for each method: dots at places (n, 2) coloured by label; the chosen images (n, pixels) as thumbnails."""
    tiles = squares(images)
    with styled_figure(title, 8 * len(places) + 1, 8) as figure:
        panels = figure.subplots(1, len(places), squeeze=False)[0]
        for axes, (method, points) in zip(panels, places.items()):
            axes.set(title=method, xticks=[], yticks=[])
            dots = labelled_dots(axes, points, labels, s=6, linewidths=0)
            for number in chosen[method]:
                thumbnail = OffsetImage(tiles[number], zoom=12.6 / tiles.shape[1], cmap="gray_r")
                frame = {"edgecolor": dots.to_rgba(labels[number]), "linewidth": 1.5}
                axes.add_artist(AnnotationBbox(thumbnail, points[number], pad=0.05, bboxprops=frame))
        label_bar(figure, dots, panels, fraction=0.02)
        return png(figure)


def evaluation(errors: Mapping[str, Mapping[int, float]], rows: Rows, notes: Captions, title: str) -> bytes:
    """Bars of the errors of two models by label, next to rows of images (n, pixels); `notes` holds a row's captions."""
    heights = np.array([list(by_label.values()) for by_label in errors.values()])
    low, high = max(heights.min(), 1e-6 * heights.max()), heights.max()
    images_width = 1.13 * max(map(len, rows.values())) + 2
    with styled_figure(title, images_width + 5.5, 1.25 * len(rows) + 0.7) as figure:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(5.5, images_width)).flat
        axes = left.add_subplot(xlabel="label" * (heights.shape[1] > 1), ylabel="MSE, pixels in [0, 1]")
        for name, bars, shift, colour in zip(errors, heights, (-0.2, 0.2), (BLUE, GREY)):
            axes.bar(np.arange(len(bars)) + shift, bars, 0.4, label=name, color=colour)
        count = heights.shape[1]
        some = slice(None, None, 1 if count <= 20 else -(-count // 5))  # the names of hundreds would overlap
        names = list(next(iter(errors.values())))
        axes.set_xticks(range(count)[some], names[some] if count > 1 else ["all images"])
        if high > 30 * low:  # short bars would be invisible on a linear scale
            axes.set(yscale="log", ylim=(low / 2, 2 * high))
            log_ticks(axes.yaxis)
        axes.grid(visible=False, axis="x")
        left.legend(loc="outside upper center", ncols=2)
        strips(right, rows, notes)
        return png(figure)


def outliers(errors: Rows, threshold: float, rows: Mapping[str, Scored], title: str) -> bytes:
    """Histograms of the errors (n,) of two kinds of images, with a threshold, above rows of images and errors."""
    values = np.concatenate(list(errors.values()))
    low = max(values.min(), 1e-3 * np.median(values), 1e-12)
    high = max(values.max(), 1.1 * low)  # all errors may be equal
    fewest = min(map(len, errors.values()))
    bins = np.geomspace(low, high, 1 + min(60, max(10, round(2 * fewest**0.5)))).tolist()
    with styled_figure(title, 10.5, 4 + 1.4 * len(rows)) as figure:
        top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.6, 1.4 * len(rows))).flat
        axes = top.add_subplot(xlabel="reconstruction error (MSE, pixels in [0, 1])", ylabel="share of images")
        for (kind, of_kind), colour in zip(errors.items(), (BLUE, ORANGE)):
            weights, label = np.full(len(of_kind), 1 / len(of_kind)), f"{kind} ({len(of_kind):,})"
            axes.hist(of_kind.clip(low), bins, weights=weights, color=colour, alpha=0.6, label=label)
        axes.axvline(threshold, color=GREY, linestyle="--", label=f"threshold {threshold:.4g}")
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
        top.legend(loc="outside upper center", ncols=3)
        captions = {label: [f"MSE {mark:.4f}" for mark in marks] for label, (_, marks) in rows.items()}
        strips(bottom, {label: images for label, (images, _) in rows.items()}, captions)
        return png(figure)


def agreement(pairs: Rows, notes: Captions, cosines: Rows, same: float, title: str) -> bytes:
    """Rows of features (n, pixels), with captions, above histograms of matched cosines (m,): of two runs first, then of
    what chance gives; above the cosine `same` two features count as one. Features that are no pictures have no row."""
    height, bins = 1.25 * len(pairs), np.linspace(min(0.0, *map(np.min, cosines.values())), 1, 61).tolist()
    with styled_figure(title, 12.5, 3.9 + height) as figure:
        *above, below = figure.subfigures(1 + bool(pairs), 1, squeeze=False,
                                          height_ratios=[height] * bool(pairs) + [3.4]).flat  # fmt: skip
        for part in above:
            for axes, (label, features) in zip(part.subplots(len(pairs), squeeze=False)[:, 0], pairs.items()):
                strip(axes, signed_colours(features), label, notes.get(label, ()))
        axes = below.add_subplot(xlabel="cosine of two matched features", ylabel="share of the features")
        known = {"independent runs": BLUE, "autoencoders of one run": ORANGE, "untrained": GREY}
        for name, values in cosines.items():
            colour = known.get(name, "black")
            style = {"alpha": 0.6} if colour == BLUE else {"histtype": "step"}
            weights, label = np.full(len(values), 1 / len(values)), f"{name}: mean {values.mean():.3f}"
            axes.hist(values, bins, weights=weights, label=label, linewidth=1.5, color=colour, **style)
        axes.axvline(same, color=GREY, linestyle="--", label=f"counted as the same above {same}")
        below.legend(loc="outside upper center", ncols=3)
        return png(figure)
