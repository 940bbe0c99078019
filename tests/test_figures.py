"""What a picture shows: the numbers and images it was given, labelled, nothing cut off."""

import io
import itertools

import numpy as np
import pytest
from conftest import run_script
from matplotlib.offsetbox import AnnotationBbox
from PIL import Image

from autoencoders import figures as draw

HISTORY = [
    {"epoch": 1, "train_loss": 0.50, "test_loss": 0.40},
    {"epoch": 2, "train_loss": 0.30, "test_loss": 0.35},
    {"epoch": 3, "train_loss": 0.20, "test_loss": 0.25},
]
BATCHES = np.linspace(0.6, 0.15, 30).tolist()
CUMULATIVE = 1 - 0.9 ** np.arange(1, 101)  # 29 components for 95%
IMAGES = np.random.default_rng(0).random((4, 784))
FEATURES = np.random.default_rng(0).standard_normal((30, 784))
LABELS = np.arange(4)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def texts(figure):
    """Every piece of text of a figure."""
    return " | ".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


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


# Each picture, and texts that it must show besides its title.
DRAWINGS = {
    "variance": (lambda: draw.variance_curve(CUMULATIVE, 0.95, 29, "$et"), ("k = 29", "95%", "number of components")),
    "loss": (lambda: draw.loss_curve(BATCHES, HISTORY, "$et: test loss 0.25", "nats"), ("nats", "epoch", "test")),
    "rows": (lambda: draw.image_rows({"original": IMAGES, "new": IMAGES}, "$et: MSE 0.1", ["first"]), ("new", "first")),
    "sparse": (lambda: draw.sparse_rows({"original": IMAGES}, FEATURES[:4, :30], "$et, sparse", ["r = 0.9"] * 4),
               ("original", "r = 0.9", "active", "activation")),
    "own": (lambda: draw.images_in_a_row({"a photo": np.zeros((20, 40, 3)), "seen": IMAGES[0].reshape(28, 28)}, "$et"),
            ("a photo", "seen")),
    "grid": (lambda: draw.image_grid(np.repeat(IMAGES, 3, axis=0), "$et, vae: 12 images", 4), ()),
    "features": (lambda: draw.feature_grid(FEATURES, np.repeat([1, 0.0123, 0], 10), "$et: 30 features"),
                 ("100%", "1.23%", "0%", "weight")),
    "rates": (lambda: draw.firing_rate_histogram(np.linspace(0, 0.1, 60).reshape(2, 30), 1000, "$et: features"),
              ("autoencoder 1: 1 dead", "autoencoder 2: 0 dead", "mean 5.00%", "firing rate")),
    "curves": (lambda: draw.epoch_curves({"MSE": np.ones((3, 2))}, "$et", ["one", "two"]), ("MSE", "one", "two")),
    "losses": (lambda: draw.epoch_curves({name: np.ones((3, 1)) for name in "abcd"}, "$et", ["one"], "loss"),
               (*"abcd", "one", "loss")),
    "search": (lambda: draw.search(np.array([5e5, 1e6]), np.array([0.02, 0.01]), np.array([0.001, 0.001]),
                                   ["500", "1000"], ["code 154"] * 2, "$et: 2 candidates", "MSE"),
               ("500", "1000", "code 154", "Pareto front", "MSE")),
    "latent": (lambda: draw.latent_map(IMAGES, np.array([[0, 0], [1, 1]]), IMAGES[:, :2], LABELS, "$et, vae"),
               ("code 1", "label")),
    "map": (lambda: code_map(LABELS), ("PCA", "label")),
    "evaluation": (lambda: evaluation([0.02, 0.03], [0.01, 0.02]), ("symmetric", "PCA, 154", "worst", "MSE 0.0512")),
    "outliers": (lambda: outliers(np.linspace(0.01, 0.04, 100)), ("inliers (100)", "0.028", "lowest", "MSE 0.0512")),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_sharp_labelled_and_fills_its_file(name, figures):
    drawing, expected = DRAWINGS[name]
    picture = pixels(drawing())
    height, width = picture.shape
    assert width >= 800 and height >= 350 and picture.std() > 10
    ink = np.argwhere(picture < 200)
    (top, left), (bottom, right) = ink.min(axis=0), ink.max(axis=0)
    assert min(top, left, height - 1 - bottom, width - 1 - right) > 0  # nothing is cut off at the edge
    assert max(top, height - 1 - bottom) < 0.1 * height
    assert figures[0]._suptitle.get_text().startswith("$et")  # no text is mathematical markup
    assert all(text in texts(figures[0]) for text in expected)


def test_the_same_numbers_draw_the_same_bytes():
    drawing = DRAWINGS["variance"][0]
    assert drawing() == drawing()


def test_pictures_do_not_depend_on_the_backend_that_a_notebook_names():
    code = "from autoencoders import figures; figures.image_grid(__import__('numpy').zeros((1, 4)), 'title')"
    assert run_script("-c", code, MPLBACKEND="module://matplotlib_inline.backend_inline").returncode == 0


def test_a_row_shows_the_given_images_in_order_with_fixed_grey_levels(figures):
    draw.image_rows({"bright": IMAGES, "dim": 0.25 * IMAGES}, "title")
    for axes, images in zip(figures[0].axes, (IMAGES, 0.25 * IMAGES), strict=True):
        shown = np.array([image.get_array() for image in axes.images])
        np.testing.assert_array_equal(shown.reshape(4, -1), images)
        assert all(image.norm(0.25) == 0.25 for image in axes.images)  # not stretched to the range of the image


@pytest.mark.parametrize("side", [6, 28, 64])
def test_a_caption_stands_under_the_middle_of_its_image(side, figures):
    draw.image_rows({"row": np.zeros((4, side**2))}, "title", ["a", "b", "c", "d"])
    axes = figures[0].axes[0]
    extents = np.array([image.get_extent()[:2] for image in axes.images])
    np.testing.assert_allclose(axes.get_xticks(), extents.mean(axis=1))
    assert np.all(extents[1:, 0] > extents[:-1, 1])  # a gap between neighbours


@pytest.mark.parametrize("count", [1, 10])
def test_a_long_title_fits_above_however_few_images(count, figures):
    title = f"{40 * 'a'} without 3, symmetric: test MSE 0.0142, PCA 0.0123 (pixels in [-1, 1])"
    draw.image_rows({"original": IMAGES[[0] * count]}, title)
    draw.sparse_rows({"original": IMAGES[[0] * count]}, np.ones((count, 9)), title, [])
    for figure in figures:
        figure.draw_without_rendering()
        box = figure._suptitle.get_window_extent()
        assert box.x0 > 0 and box.x1 < figure.bbox.width
        assert all(box.y0 > axes.get_window_extent().y1 for axes in figure.axes)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_loss_curve_shows_every_batch_and_both_averages(epochs, figures):
    draw.loss_curve(BATCHES, HISTORY[:epochs], "title", "loss")
    axes = figures[0].axes[0]
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert drawn == [BATCHES, [0.5, 0.3, 0.2][:epochs], [0.4, 0.35, 0.25][:epochs]]
    low, high = axes.get_ylim()
    assert low <= 0.25 and high >= 0.5 and all(tick == int(tick) for tick in axes.get_xticks())


def test_the_variance_curve_passes_through_the_chosen_number_of_components(figures):
    draw.variance_curve(CUMULATIVE, 0.95, 29, "MNIST")
    curve, horizontal, vertical, _ = figures[0].axes[0].lines
    assert dict(zip(curve.get_xdata(), curve.get_ydata()))[29] == CUMULATIVE[28]
    assert set(horizontal.get_ydata()) == {0.95} and set(vertical.get_xdata()) == {29}


def test_the_pareto_front_names_the_candidates_that_no_other_beats_in_both(figures):
    size, error = np.array([5, 1, 3, 3, 9]), np.array([0.2, 0.9, 0.5, 0.4, 0.3])
    draw.search(size, error, error / 10, list("abcde"), ["one", "two"] * 2 + ["one"], "title", "MSE")
    axes = figures[0].axes[0]
    front = next(line for line in axes.lines if line.get_label() == "Pareto front")
    assert list(zip(front.get_xdata(), front.get_ydata())) == [(1, 0.9), (3, 0.4), (3, 0.4), (5, 0.2), (9, 0.2)]
    assert sorted((text.get_text(), *text.xy) for text in axes.texts) == [("a", 5, 0.2), ("b", 1, 0.9), ("d", 3, 0.4)]


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


@pytest.mark.parametrize("count", [10, 14, 100])
def test_on_a_map_every_label_has_a_colour_of_its_own_and_a_place_on_the_bar(count, figures):
    code_map(np.arange(count))
    panel, bar = figures[0].axes
    dots = panel.collections[0].get_facecolors()
    assert len(np.unique(dots, axis=0)) == count
    np.testing.assert_allclose([box.patch.get_edgecolor() for box in panel.findobj(AnnotationBbox)], dots)
    assert bar.get_ylim() == (-0.5, count - 0.5) and all(tick == int(tick) for tick in bar.get_yticks())
