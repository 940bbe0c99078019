"""The pictures of an evaluation and of a search, held to the law of all pictures in test_figures.py."""

import itertools

import numpy as np
import pytest
from matplotlib.offsetbox import AnnotationBbox
from test_figures import IMAGES, LABELS, check_picture

from autoencoders.evaluation import plots as draw


def outliers(errors):
    rows = dict.fromkeys(("highest", "lowest"), (IMAGES, [0.0512] * 4))
    return draw.outliers({"inliers": errors, "outliers": errors[:9]}, 0.028, rows, "$et, symmetric: AUROC 0.9")


def evaluation(*errors):
    bars = {name: dict(enumerate(values)) for name, values in zip(("symmetric", "PCA, 154"), errors)}
    rows = dict.fromkeys(("best", "worst"), IMAGES)
    return draw.evaluation(bars, rows, {"best": ["MSE 0.0512"] * 4}, "$et, symmetric: best and worst")


def code_map(labels):
    points, images = np.random.default_rng(0).random((len(labels), 2)), np.zeros((len(labels), 64), np.uint8)
    return draw.code_map({"PCA": points}, labels, images, {"PCA": np.arange(len(labels))}, "$et, symmetric: codes")


DRAWINGS = {
    "search": (lambda: draw.search(np.array([5e5, 1e6]), np.array([0.02, 0.01]), np.array([0.001, 0.001]),
                                   ["500", "1000"], ["code 154"] * 2, "$et: 2 candidates", "MSE"),
               ("500", "1000", "code 154", "Pareto front", "MSE")),
    "map": (lambda: code_map(LABELS), ("PCA", "label")),
    "evaluation": (lambda: evaluation([0.02, 0.03], [0.01, 0.02]), ("symmetric", "PCA, 154", "worst", "MSE 0.0512")),
    "outliers": (lambda: outliers(np.linspace(0.01, 0.04, 100)), ("inliers (100)", "0.028", "lowest", "MSE 0.0512")),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_sharp_labelled_and_fills_its_file(name, figures):
    drawing, expected = DRAWINGS[name]
    png = drawing()
    check_picture(png, figures[0], expected)


def test_the_pareto_front_names_the_candidates_that_no_other_beats_in_both(figures):
    size, error = np.array([5, 1, 3, 3, 9]), np.array([0.2, 0.9, 0.5, 0.4, 0.3])
    draw.search(size, error, error / 10, list("abcde"), ["one", "two"] * 2 + ["one"], "title", "MSE")
    axes = figures[0].axes[0]
    front = next(line for line in axes.lines if line.get_label() == "Pareto front")
    assert list(zip(front.get_xdata(), front.get_ydata())) == [(1, 0.9), (3, 0.4), (3, 0.4), (5, 0.2), (9, 0.2)]
    places = {text.get_text(): text.xy for text in axes.texts}
    assert places == {name: (size[i], error[i]) for i, name in enumerate("abcde")}
    assert {text.get_text() for text in axes.texts if text.get_color() == "black"} == set("abd")


def test_of_many_candidates_only_the_pareto_front_is_named(figures):
    size = np.arange(1, 30)
    draw.search(size, 0.1 * size, 0.01 * size, list(map(str, size)), ["one"] * 29, "title", "MSE")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["1"]


@pytest.mark.parametrize("spread", [0, 0.1, 0.9])
def test_an_axis_of_errors_has_a_few_plain_numbers_that_do_not_overlap(spread, figures):
    outliers(0.022 * np.exp(spread * np.random.default_rng(0).standard_normal(900)))
    axes = figures[0].axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert len(ticks) >= 2 and not axes.xaxis.get_minor_ticks()
    assert [float(tick.label1.get_text()) for tick in ticks] == pytest.approx([tick.get_loc() for tick in ticks])
    boxes = [tick.label1.get_window_extent() for tick in ticks]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("low", [0, 1e-5, 0.01])
def test_every_bar_is_visible_unless_its_error_is_zero(low, figures):
    evaluation([0.02, 0.03], [low, 1.1 * low])
    assert all(bar.get_window_extent().height > 5 for bar in figures[0].axes[0].patches if bar.get_height())


@pytest.mark.parametrize("count", [2, 10, 14, 100])
def test_on_a_map_every_label_has_a_colour_of_its_own_and_a_place_on_the_bar(count, figures):
    code_map(np.arange(count))
    panel, bar = figures[0].axes
    dots = panel.collections[0].get_facecolors()
    assert len(np.unique(dots, axis=0)) == count
    np.testing.assert_allclose([box.patch.get_edgecolor() for box in panel.findobj(AnnotationBbox)], dots)
    assert bar.get_ylim() == (-0.5, count - 0.5) and all(tick == int(tick) for tick in bar.get_yticks())


def test_a_map_of_few_labels_says_which_is_where(figures):
    for count in (4, 14):
        code_map(np.repeat(np.arange(count), 2))
    few, many = figures
    assert [text.get_text() for text in few.axes[0].texts] == ["0", "1", "2", "3"]
    assert list(few.axes[1].get_yticks()) == [0, 1, 2, 3]
    assert not many.axes[0].texts  # they would cover one another


def test_the_names_of_hundreds_of_labels_do_not_overlap(figures):
    evaluation(np.linspace(0.01, 0.02, 400), np.linspace(0.01, 0.02, 400))
    boxes = [tick.get_window_extent() for tick in figures[0].axes[0].get_xticklabels()]
    assert len(boxes) == 5 and all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_few_outliers_get_few_bins(figures):
    for count in (400, 3000):
        outliers(np.random.default_rng(0).lognormal(-4, 0.4, count))  # nine of them are the outliers
    bars = figures[0].axes[0].containers[0]
    assert len(bars) == len(figures[1].axes[0].containers[0]) == 10
