"""The figures of the benchmarks: costs over sizes, and errors over code sizes. Each function returns a PNG's bytes."""

from collections.abc import Mapping

from matplotlib.ticker import NullLocator

from autoencoders.style import BLUE, GREY, ORANGE, log_ticks, png, styled_figure


def scaling_panels(panels: Mapping[str, Mapping[int, float]], title: str) -> bytes:
    """A panel for each `"x label|y label|recipe"` of more than two points, with the cost at each x; two in a row."""
    drawn = {labels: points for labels, points in panels.items() if len(points) > 2}  # two make no curve
    with styled_figure(title, 11, 3.6 * -(-len(drawn) // 2) + 0.6) as figure:
        for number, (labels, points) in enumerate(drawn.items(), start=1):
            x_label, y_label, recipe = labels.split("|")
            axes = figure.add_subplot(-(-len(drawn) // 2), 2, number)
            axes.plot(list(points), list(points.values()), "o-", color=BLUE)
            axes.set(title=f"{x_label[0].upper()}{x_label[1:]} (recipe {recipe})", xscale="log", yscale="log",
                     xlabel=f"{x_label}, log scale", ylabel=f"{y_label}, log scale",
                     ylim=(min(points.values()) / 1.6, max(points.values()) * 1.6))  # fmt: skip
            axes.set_xticks(list(points), [f"{x:,}" for x in points])
            axes.xaxis.set_minor_locator(NullLocator())
            log_ticks(axes.yaxis)
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
