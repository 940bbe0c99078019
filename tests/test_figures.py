"""What a picture shows: the numbers and images it was given, labelled, nothing cut off."""

import io

import numpy as np
import pytest
from conftest import run_script
from PIL import Image

from autoencoders import figures as draw

TRAIN, TEST = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.35, 0.25])
BATCHES = np.linspace(0.6, 0.15, 30)
IMAGES = np.random.default_rng(0).random((4, 784))
FEATURES = np.random.default_rng(0).standard_normal((30, 784))
LABELS = np.arange(4)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def texts(figure):
    """Every piece of text of a figure."""
    return " | ".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


# Each picture, and texts that it must show besides its title.
DRAWINGS = {
    "loss": (lambda: draw.loss_curve(BATCHES, TRAIN, TEST, "$et: test MSE 0.25", "MSE", 0.1234),
             ("MSE", "epoch", "test", "PCA, same code size: 0.1234")),
    "rows": (lambda: draw.image_rows({"original": IMAGES, "PCA": IMAGES, "new": IMAGES}, "$et: MSE 0.1",
                                     {"PCA": ["second"], "new": ["first"]}), ("new", "first", "PCA", "second")),
    "sparse": (lambda: draw.sparse_rows({"original": IMAGES}, FEATURES[:4, :30], "$et", {"original": ["r = 0.9"] * 4}),
               ("original", "r = 0.9", "active", "activation")),
    "own": (lambda: draw.images_in_a_row({"a photo": np.zeros((20, 40, 3)), "seen": IMAGES[0].reshape(28, 28)}, "$et"),
            ("a photo", "seen")),
    "grid": (lambda: draw.image_grid(np.repeat(IMAGES, 3, axis=0), "$et, vae: 12 images", 4), ()),
    "features": (lambda: draw.feature_grid(FEATURES, np.repeat([1, 0.0123, 0], 10), "$et: 30 features"),
                 ("100%", "1.23%", "0%", "weight")),
    "rates": (lambda: draw.firing_rate_histogram(np.linspace(0, 0.1, 60).reshape(2, 30), 1000, "$et: features"),
              ("autoencoder 1: 1 dead, mean rate 2.46%", "autoencoder 2: 0 dead", "firing rate", "number of features")),
    "curves": (lambda: draw.epoch_curves({"MSE": np.ones((3, 2))}, "$et", ["one", "two"]), ("MSE", "one", "two")),
    "losses": (lambda: draw.epoch_curves({name: np.ones((3, 1)) for name in "abcd"}, "$et", ["one"], "loss"),
               (*"abcd", "one", "loss")),
    "latent": (lambda: draw.latent_map(IMAGES, np.array([[0, 0], [1, 1]]), IMAGES[:, :2], LABELS, "$et, vae"),
               ("code 1", "label")),
}  # fmt: skip


def check_picture(png, figure, expected):
    """A picture is sharp, labelled and fills its file."""
    picture = pixels(png)
    height, width = picture.shape
    assert width >= 800 and height >= 350 and picture.std() > 10
    ink = np.argwhere(picture < 200)
    (top, left), (bottom, right) = ink.min(axis=0), ink.max(axis=0)
    assert min(top, left, height - 1 - bottom, width - 1 - right) > 0  # nothing is cut off at the edge
    assert max(top, height - 1 - bottom) < 0.1 * height
    assert figure._suptitle.get_text().startswith("$et")  # no text is mathematical markup
    assert all(text in texts(figure) for text in expected)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_sharp_labelled_and_fills_its_file(name, figures):
    drawing, expected = DRAWINGS[name]
    png = drawing()
    check_picture(png, figures[0], expected)


def test_the_same_numbers_draw_the_same_bytes():
    drawing = DRAWINGS["loss"][0]
    assert drawing() == drawing()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "QtAgg", "Agg"])
def test_pictures_do_not_depend_on_the_backend_that_the_environment_names(backend):
    code = "from autoencoders.evaluation import plots; from autoencoders import figures; "
    code += "figures.image_grid(__import__('numpy').zeros((1, 4)), 'title')"
    kept = "; import os; assert os.environ['MPLBACKEND'] == " + repr(backend)
    assert run_script("-c", code + kept, MPLBACKEND=backend).returncode == 0


def test_a_row_shows_the_given_images_in_order_with_fixed_grey_levels(figures):
    draw.image_rows({"bright": IMAGES, "dim": 0.25 * IMAGES}, "title")
    for axes, images in zip(figures[0].axes, (IMAGES, 0.25 * IMAGES), strict=True):
        shown = np.array([image.get_array() for image in axes.images])
        np.testing.assert_array_equal(shown.reshape(4, -1), images)
        assert all(image.norm(0.25) == 0.25 for image in axes.images)  # not stretched to the range of the image


@pytest.mark.parametrize("side", [6, 28, 64])
def test_a_caption_stands_under_the_middle_of_its_image(side, figures):
    draw.image_rows({"row": np.zeros((4, side**2))}, "title", {"row": ["a", "b", "c", "d"]})
    axes = figures[0].axes[0]
    extents = np.array([image.get_extent()[:2] for image in axes.images])
    np.testing.assert_allclose(axes.get_xticks(), extents.mean(axis=1))
    assert np.all(extents[1:, 0] > extents[:-1, 1])  # a gap between neighbours


@pytest.mark.parametrize("count", [1, 10])
def test_a_long_title_fits_above_however_few_images(count, figures):
    title = f"{40 * 'a'} without 3, symmetric: test MSE 0.0142, PCA 0.0123 (pixels in [0, 1])"
    draw.image_rows({"original": IMAGES[[0] * count]}, title)
    draw.sparse_rows({"original": IMAGES[[0] * count]}, np.ones((count, 9)), title, {})
    for figure in figures:
        figure.draw_without_rendering()
        box = figure._suptitle.get_window_extent()
        assert box.x0 > 0 and box.x1 < figure.bbox.width
        assert all(box.y0 > axes.get_window_extent().y1 for axes in figure.axes)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_loss_curve_shows_every_batch_both_averages_and_pca_on_a_logarithmic_axis(epochs, figures):
    draw.loss_curve(BATCHES, TRAIN[:epochs], TEST[:epochs], "title", "loss", 0.01)
    axes = figures[0].axes[0]
    batches, test, pca = axes.lines
    assert list(batches.get_ydata()) == list(BATCHES) and list(test.get_ydata()) == list(TEST[:epochs])
    assert set(pca.get_ydata()) == {0.01} and pca.get_linestyle() == "--"
    (average,) = axes.patches  # level through its epoch, so that no slanted line crosses what no loss was
    values, edges, _ = average.get_data()
    assert list(values) == list(TRAIN[:epochs]) and list(edges) == list(range(epochs + 1))
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log" and low < 0.01 and high > 0.6
    assert all(tick == int(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize("lowest", [0.0, -0.1])
def test_a_loss_without_a_logarithm_is_drawn_on_a_linear_axis(lowest, figures):
    draw.loss_curve(BATCHES, TRAIN, np.array([0.4, 0.3, lowest]), "title", "nats")
    axes = figures[0].axes[0]
    assert axes.get_yscale() == "linear" and axes.get_ylim()[0] < lowest
    assert len(axes.lines) == 2  # no PCA, because its error is not in nats


def test_the_places_that_a_sheet_has_left_are_white(figures):
    picture = pixels(draw.image_grid(np.ones((3, 16)), "title", columns=2))
    (image,) = figures[0].axes[0].images
    assert np.isnan(np.ma.filled(image.get_array(), np.nan)[-4:, -4:]).all()
    sheet = image.get_window_extent()
    assert picture[-int(sheet.y0) - 20, int(sheet.x1) - 20] == 255


def test_the_scale_of_activations_has_no_negative_half_without_negative_ones(figures):
    for codes in (FEATURES[:4, :30], abs(FEATURES[:4, :30])):
        draw.sparse_rows({"original": IMAGES}, codes, "title", {})
    signed, positive = (figure.axes[1].images[0] for figure in figures)
    assert signed.norm.vmin == -signed.norm.vmax and positive.norm.vmin == 0


def test_both_panels_of_a_latent_map_show_the_same_range_in_square_tiles(figures):
    codes, ends = np.array([[0, 0], [1, 3], [0.5, 1], [9, 9]]), np.array([[0, 0], [1, 3]])
    draw.latent_map(IMAGES, ends, codes, LABELS, "title")
    left, right, bar = figures[0].axes
    assert left.get_xlim() == right.get_xlim() == (0, 1) and left.get_ylim() == right.get_ylim() == (0, 3)
    box = left.get_window_extent()
    assert box.width == pytest.approx(box.height, rel=0.01)
    assert "75%" in right.get_title() and list(bar.get_yticks()) == [0, 1, 2, 3]


def test_the_firing_rates_of_each_autoencoder_have_a_panel_up_to_ten(figures):
    for count in (1, 5, 12):
        draw.firing_rate_histogram(np.full((count, 9), 0.1), 100, "title")
    assert [len(figure.axes) for figure in figures] == [1, 5, 10]
    assert all(tick.get_text().endswith("%") for tick in figures[0].axes[0].get_xticklabels())


def test_pictures_do_not_depend_on_a_matplotlibrc_that_asks_for_latex(tmp_path):
    (tmp_path / "rc").write_text("text.usetex: True\n")
    code = "from autoencoders import figures; figures.image_grid(__import__('numpy').zeros((1, 4)), 'title')"
    assert run_script("-c", code, MATPLOTLIBRC=str(tmp_path / "rc")).returncode == 0
