"""The figures of the benchmarks: costs and errors over sizes. Each function returns a PNG's bytes."""

from collections.abc import Mapping

from matplotlib.ticker import EngFormatter, NullLocator

from autoencoders.style import BLUE, GREY, ORANGE, log_ticks, png, styled_figure

_MEASURES = {"microseconds_per_image": "µs per image, log scale", "peak_mb": "peak memory, MB, log scale"}
_SIDES = {"ours": ("this suite", BLUE, "o"), "theirs": ("the closest other library", ORANGE, "s")}


def growth_panels(axes: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]], title: str) -> bytes:
    """Time above memory, a column for each thing that grows: {title: {side: {value: {measure: number}}}}."""
    with styled_figure(title, 3.1 * len(axes), 6.6) as figure:
        grid = figure.subplots(2, len(axes), squeeze=False)
        for column, (name, sides) in zip(grid.T, axes.items()):
            for panel, measure in zip(column, _MEASURES):
                for side, points in sides.items():
                    legend, colour, marker = _SIDES[side]
                    values, shown = [int(value) for value in points], [point[measure] for point in points.values()]
                    line = "-" if len(values) > 2 else ""  # two points are no curve
                    panel.plot(values, shown, f"{marker}{line}", color=colour, label=legend)
                drawn = [point[measure] for points in sides.values() for point in points.values()]
                ticks = [int(value) for value in sides["ours"]]
                panel.set(xscale="log", yscale="log", xlim=(ticks[0] / 1.3, ticks[-1] * 1.3),
                          ylim=(min(drawn) / 1.4, max(drawn) * 1.4))  # fmt: skip
                number = EngFormatter(sep="") if ticks[-1] >= 100_000 else str
                panel.set_xticks(ticks, [number(tick) for tick in ticks])
                panel.tick_params(axis="x", labelsize=9)
                panel.xaxis.set_minor_locator(NullLocator())
                log_ticks(panel.yaxis)
            column[0].set_title(name)
            column[1].set_xlabel(name)
        for panel, label in zip(grid[:, 0], _MEASURES.values()):
            panel.set_ylabel(label)
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return png(figure)


def code_size_curves(
    pca: Mapping[int, float], errors: Mapping[str, Mapping[int, float]], count: int, title: str
) -> bytes:
    """Test MSE over code sizes, of PCA and of each recipe; `count` components explain 95% of the variance."""
    with styled_figure(title) as figure:
        axes = figure.add_subplot(xlabel="code size", ylabel="test MSE, pixels in [0, 1]")
        axes.plot(list(pca), list(pca.values()), color=GREY, linewidth=2, label="PCA")
        for (name, points), colour, marker in zip(errors.items(), (BLUE, ORANGE), "os"):
            axes.plot(list(points), list(points.values()), f"{marker}-", color=colour, label=name)
        axes.set(xscale="log", yscale="log")
        if count in pca:
            axes.axvline(count, color=GREY, linestyle="--", linewidth=1)
            axes.annotate(f"95% of the variance: {count}", (count, 1), xytext=(-6, -4), color="#5a5f66", ha="right",
                          va="top", xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
        log_ticks(axes.yaxis)
        sizes = sorted({size for points in errors.values() for size in points})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend()
        return png(figure)
