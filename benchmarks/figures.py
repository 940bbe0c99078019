"""The figures of the benchmarks: costs over sizes, and errors over code sizes. Each function returns a PNG's bytes."""

from collections.abc import Mapping

from matplotlib.ticker import NullLocator

from autoencoders.figures import BLUE, GREY, ORANGE, log_ticks, png, styled_figure


def scaling_panels(panels: Mapping[str, Mapping[int, float]], title: str) -> bytes:
    """A panel for each `"x label|y label|recipe"`, with the cost at each x, on logarithmic axes."""
    rows, columns = -(-len(panels) // 3), min(len(panels), 3)
    with styled_figure(title, 4 * columns, 3.4 * rows) as figure:
        for number, (labels, points) in enumerate(panels.items(), start=1):
            x_label, y_label, recipe = labels.split("|")
            axes = figure.add_subplot(rows, columns, number)
            axes.plot(list(points), list(points.values()), "o-", color=BLUE)
            axes.set(title=recipe, xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
            axes.set_xticks(list(points), [f"{x:,}" if x < 10_000 else f"{x // 1000}k" for x in points])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylim(min(points.values()) / 1.6, max(points.values()) * 1.6)
            log_ticks(axes.yaxis)
        return png(figure)


def code_size_curves(
    pca: Mapping[int, float], errors: Mapping[str, Mapping[int, float]], count: int, title: str
) -> bytes:
    """Test MSE over code sizes, of PCA and of each recipe; `count` components explain 95% of the variance."""
    with styled_figure(title) as figure:
        axes = figure.add_subplot(xlabel="code size", ylabel="test MSE per pixel in [0, 1]")
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
