import io
import itertools

import numpy as np
import pytest
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image

from autoencoders.figures import (
    activity,
    code_map,
    code_size_curves,
    evaluation,
    feature_grid,
    image_rows,
    loss_curve,
    outliers,
    scaling_panels,
    search,
    sparse_rows,
    variance_curve,
)

HISTORY = [
    {"epoch": 1, "train_loss": 0.50, "test_loss": 0.40},
    {"epoch": 2, "train_loss": 0.30, "test_loss": 0.35},
    {"epoch": 3, "train_loss": 0.20, "test_loss": 0.25},
]
BATCHES = np.linspace(0.6, 0.15, 30).tolist()
CUMULATIVE = 1 - 0.9 ** np.arange(1, 101)  # 29 components for 95 %


def decode(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def texts(figure):
    """Every piece of text that a figure shows."""
    return " | ".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def rows():
    random = np.random.default_rng(0)
    return {"original": random.integers(0, 2, (4, 784)) * 1.0, "reconstruction": random.random((4, 784))}


def strips(side=28):
    return np.zeros((4, side**2))


def strangest(errors):
    shown = dict.fromkeys(("strangest", "least strange"), (strips(), [0.05] * 4))
    return outliers({"usual": errors, "strange": errors[:9]}, 0.028, shown, "MNIST, symmetric: AUROC 0.9")


def rebuilt(*errors, side=28):
    bars = {name: dict(enumerate(of)) for name, of in zip(("symmetric", "PCA, 154"), errors)}
    notes = {"best": [f"MSE {number}" for number in range(4)]}
    return evaluation(bars, dict.fromkeys(("best", "worst"), strips(side)), notes, "MNIST, symmetric: best and worst")


def mapped(labels, side=28):
    places = np.random.default_rng(0).standard_normal((len(labels), 2))
    images = np.zeros((len(labels), side**2), np.uint8)
    return code_map({"PCA": places}, labels, images, {"PCA": np.arange(len(labels))}, "MNIST, symmetric: the codes")


FEATURES = np.random.default_rng(0).standard_normal((30, 784))
DRAWINGS = {
    "curve": lambda: variance_curve(CUMULATIVE, 0.95, 29, "MNIST"),
    "loss": lambda: loss_curve(BATCHES, HISTORY, "MNIST, symmetric: test loss 0.25", "loss"),
    "rows": lambda: image_rows(rows(), "MNIST, symmetric: test MSE 0.0142"),
    "outliers": lambda: strangest(np.linspace(0.01, 0.04, 100)),
    "evaluation": lambda: rebuilt([0.02, 0.03], [0.01, 0.02]),
    "map": lambda: mapped(np.arange(14)),
    "features": lambda: feature_grid(FEATURES, np.linspace(1, 0, 30), "MNIST, sparse: 30 features"),
    "activity": lambda: activity(np.linspace(0, 0.1, 60).reshape(2, 30), 1000, "MNIST, sparse: features"),
    "search": lambda: search(np.array([5e5, 1e6]), np.array([0.02, 0.01]), np.array([0.001, 0.001]), ["500", "1000"],
                             ["code 154"] * 2, "MNIST, symmetric: 2 candidates", "MSE"),
    "code sizes": lambda: code_size_curves({2: 0.05, 8: 0.02}, {"symmetric": {2: 0.04, 8: 0.01}}, 8, "MNIST"),
    "scaling": lambda: scaling_panels({f"images|seconds|{name}": {1000: 2.0, 2000: 4.0} for name in "ab"}, "MNIST"),
}  # fmt: skip


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())
def test_a_picture_is_a_png_as_sharp_as_a_slide_needs_without_empty_margins(draw):
    picture = decode(draw())
    height, width = picture.shape
    assert width >= 800 and height >= 350
    ink = np.argwhere(picture < 200)
    (top, left), (bottom, right) = ink.min(axis=0), ink.max(axis=0)
    assert max(top, height - 1 - bottom) < 0.1 * height and max(left, width - 1 - right) < 0.1 * width
    assert picture.std() > 10


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())
def test_no_text_is_markup(draw, figures):
    draw()
    assert "$" not in texts(figures[0])


@pytest.mark.parametrize("spread", [0, 0.01, 0.1, 0.4, 0.9, 1.5])
def test_an_axis_of_errors_has_a_few_plain_numbers_that_do_not_overlap(figures, spread):
    strangest(0.022 * np.exp(spread * np.random.default_rng(0).standard_normal(900)))
    axes = figures[0].axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert len(ticks) >= 2 and not axes.xaxis.get_minor_ticks()
    assert [float(tick.label1.get_text()) for tick in ticks] == pytest.approx([tick.get_loc() for tick in ticks])
    boxes = [tick.label1.get_window_extent() for tick in ticks]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_the_same_numbers_draw_the_same_bytes():
    assert DRAWINGS["curve"]() == DRAWINGS["curve"]()


def test_a_row_shows_the_given_images_in_their_order_and_grey_levels(figures):
    given = rows()
    picture = decode(image_rows(given, "title"))
    axes = [a for a in figures[0].axes if a.images]
    height, width = picture.shape
    for place, image in zip(axes, np.concatenate(list(given.values())), strict=True):
        box = place.get_position()
        columns = ((box.x0 + box.width * (np.arange(28) + 0.5) / 28) * width).astype(int)
        lines = ((1 - box.y1 + box.height * (np.arange(28) + 0.5) / 28) * height).astype(int)
        assert np.abs(picture[np.ix_(lines, columns)] - 255 * image.reshape(28, 28)).max() < 3


def test_a_dim_image_stays_dim(figures):
    """Grey levels are not stretched to the image's own range, or a washed-out reconstruction would look fine."""
    image_rows({"dim": np.full((1, 784), 0.25)}, "title")
    shown = figures[0].axes[0].images[0]
    assert shown.norm(0.25) == pytest.approx(0.25)


def test_rows_carry_title_labels_and_notes(figures):
    image_rows(rows(), "MNIST, symmetric: test MSE 0.0142", ["first", "second", "third", "fourth"])
    shown = texts(figures[0])
    for text in ("MNIST, symmetric: test MSE 0.0142", "original", "reconstruction", "first", "fourth"):
        assert text in shown


def test_the_loss_picture_holds_every_batch_and_both_averages(figures):
    loss_curve(BATCHES, HISTORY, "MNIST, symmetric", "mean squared error")
    axes = figures[0].axes[0]
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert BATCHES in drawn and [0.5, 0.3, 0.2] in drawn and [0.4, 0.35, 0.25] in drawn
    assert axes.get_xlabel() == "epoch" and axes.get_ylabel() == "mean squared error"
    assert axes.get_title() == "MNIST, symmetric" and axes.get_legend() is not None
    low, high = axes.get_ylim()
    assert low <= 0.2 and high >= 0.5


def test_a_run_of_one_epoch_of_one_batch_can_be_drawn():
    assert decode(loss_curve([0.5], HISTORY[:1], "t", "loss")).std() > 5


def test_the_curve_shows_the_variance_the_line_and_the_chosen_count(figures):
    variance_curve(CUMULATIVE, 0.95, 29, "MNIST")
    axes = figures[0].axes[0]
    curve, *marks = axes.lines
    assert dict(zip(curve.get_xdata(), curve.get_ydata()))[29] == CUMULATIVE[28]
    assert any(set(line.get_ydata()) == {0.95} for line in marks)
    assert any(set(line.get_xdata()) == {29} for line in marks)
    shown = texts(figures[0])
    assert "k = 29" in shown and "95 %" in shown and "MNIST" in shown
    assert axes.get_xlabel() and axes.get_ylabel()


@pytest.mark.parametrize("side", [6, 8, 28, 64])
def test_a_note_stands_under_the_middle_of_its_image_whatever_its_size(figures, side):
    rebuilt([0.02, 0.03], [0.01, 0.02], side=side)
    axes = figures[0].axes[1]
    black = np.flatnonzero(axes.images[0].get_array()[0] == 0)
    assert list(axes.get_xticks()) == black.reshape(4, side).mean(axis=1).tolist()
    assert np.all(np.diff(black.reshape(4, side)[:, 0]) > side)  # a gap between two


@pytest.mark.parametrize("count", [10, 14, 100])
def test_on_the_map_every_label_has_a_colour_of_its_own_and_a_place_on_the_bar(figures, count):
    mapped(np.arange(count))
    panel, bar = figures[0].axes
    dots = panel.collections[0].get_facecolors()
    frames = [box.patch.get_edgecolor() for box in panel.findobj(AnnotationBbox)]
    assert len(np.unique(dots, axis=0)) == count
    np.testing.assert_allclose(frames, dots)
    assert bar.get_ylim() == (-0.5, count - 0.5)
    assert all(tick == int(tick) for tick in bar.get_yticks())


def test_thumbnails_on_the_map_are_as_large_whatever_the_images_size(figures):
    widths = set()
    for side in (8, 28, 64):
        mapped(np.arange(3), side)
        widths |= {round(image.get_window_extent().width) for image in figures[-1].findobj(OffsetImage)}
    assert max(widths) - min(widths) <= 2


def test_a_rows_firing_rate_is_written_out(figures):
    feature_grid(FEATURES, np.repeat([1, 0.0123, 0], 10), "title")
    assert [tick.get_text() for tick in figures[0].axes[0].get_yticklabels()] == ["100 %", "1.23 %", "never"]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_epochs_are_counted_in_whole_numbers_and_the_last_marker_is_whole(figures, epochs):
    loss_curve(BATCHES, HISTORY[:epochs], "t", "loss")
    axes = figures[0].axes[0]
    assert all(tick == int(tick) for tick in axes.get_xticks())
    assert not next(line for line in axes.lines if line.get_label() == "test").get_clip_on()


@pytest.mark.parametrize("name", ["scikit-learn digits", 40 * "a"])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_a_title_fits_above_however_few_images(figures, count, name):
    title = f"{name}, symmetric: test MSE 0.0142, PCA 0.0123 (pixels in [-1, 1])"
    image_rows({"original": np.zeros((count, 784))}, title)
    sparse_rows({"original": np.zeros((count, 784))}, np.ones((count, 9)), title, [])
    shown = dict.fromkeys(("strangest", "least strange"), (np.zeros((count, 784)), [0.05] * count))
    outliers({"usual": np.array([0.1, 0.2]), "strange": np.array([0.3])}, 0.2, shown, title)
    for figure in figures:
        figure.draw_without_rendering()
        box = figure._suptitle.get_window_extent()
        assert box.x0 > 0 and box.x1 < figure.bbox.width


@pytest.mark.parametrize("low", [0, 1e-5, 0.01])
def test_no_bar_is_too_short_to_be_seen_but_that_of_no_error(figures, low):
    rebuilt([0.02, 0.03], [low, 1.1 * low])
    bars = figures[0].axes[0].patches
    assert all(bar.get_window_extent().height > 5 for bar in bars if bar.get_height())
