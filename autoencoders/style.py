"""The style of all pictures: colours, fonts and axes; from a figure to the bytes of a PNG.

Without pyplot no display is needed and no figure stays open.
"""

import contextlib
import io
import logging
import textwrap
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

from matplotlib import color_sequences, colormaps, rc_context, rcParamsDefault
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported now: Ctrl-C in its import would be a bug's
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

BLUE, ORANGE, GREY = "#2563a8", "#d9722b", "#8a8f98"
MAX_NAMED = 10  # colours that can be told apart, and so lines in a legend
# Fonts with Chinese, Japanese or Korean letters, of Linux, macOS and Windows.
_CJK = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "PingFang HK", "Hiragino Sans GB", "Hiragino Sans",
    "Heiti TC", "Apple SD Gothic Neo", "Arial Unicode MS", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic",
)  # fmt: skip
_STYLE: Any = {name: value for name, value in rcParamsDefault.items() if "backend" not in name} | {
    "font.size": 11, "axes.titlesize": 12, "figure.titlesize": 13, "figure.titleweight": "bold", "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.color": "#e6e8eb",
    "legend.frameon": False, "figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.12,
    "text.usetex": False, "text.parse_math": False,  # the name of an image set may contain a $
}  # fmt: skip


@cache
def font_families() -> list[str]:
    """Matplotlib's own font, then the installed ones of `_CJK`: a letter that one lacks is taken from the next."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # that a font lacks bold letters is no news
    installed = set(get_font_names())
    return ["DejaVu Sans", *(name for name in _CJK if name in installed)]


@contextlib.contextmanager
def styled_figure(title: str, width: float = 8.0, height: float = 4.8) -> Iterator[Figure]:
    """An empty figure, in inches, 6 or more wide, under a wrapped title; draw, and call `png`, inside the block."""
    width = max(width, 6.0)
    with rc_context(_STYLE | {"font.family": font_families()}):
        figure = Figure((width, height), dpi=150, layout="constrained")
        figure.suptitle(textwrap.fill(title, int(8.5 * width)))  # matplotlib's own wrapping would parse a $
        yield figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about letters that no font has, and a layout without room
        FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]  # savefig draws twice
    return buffer.getvalue()


def log_ticks(axis: Axis, formatter: Any = "{x:g}") -> None:
    """A few ticks, with plain numbers, on a logarithmic axis whose limits are set."""
    low, high = axis.get_view_interval()
    # Less than a decade may hold only one of 1, 2, 5, 10, ..; many decades hold too many.
    few = MaxNLocator(5) if high < 10 * low else LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,))
    axis.set_major_locator(few)
    axis.set_major_formatter(formatter)
    axis.set_minor_locator(NullLocator())


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers only, on an axis of epochs or labels."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def colours(count: int) -> Colormap:
    """A map of `count` colours: up to ten that colour-blind readers can tell apart (Petroff 2021), then a rainbow."""
    if count <= MAX_NAMED:
        return ListedColormap(color_sequences["petroff10"][:count])
    return colormaps["turbo"].resampled(count)
