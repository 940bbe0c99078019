import io

import numpy as np
import pytest
from PIL import Image

from ae_figures import image_rows, loss_curve, variance_curve

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


DRAWINGS = {
    "curve": lambda: variance_curve(CUMULATIVE, 0.95, 29, "MNIST"),
    "loss": lambda: loss_curve(BATCHES, HISTORY, "MNIST, symmetric: test loss 0.25", "loss"),
    "rows": lambda: image_rows(rows(), "MNIST, symmetric: test MSE 0.0142"),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())
def test_a_picture_is_a_png_as_sharp_as_a_slide_needs_without_empty_margins(draw):
    picture = decode(draw())
    height, width = picture.shape
    assert width >= 800 and height >= 350
    ink = np.argwhere(picture < 200)
    (top, left), (bottom, right) = ink.min(axis=0), ink.max(axis=0)
    assert max(top, height - 1 - bottom) < 0.1 * height and max(left, width - 1 - right) < 0.1 * width
    assert picture.std() > 10


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
