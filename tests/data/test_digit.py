"""A picture becomes the digit that MNIST would have made of it."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from autoencoders.data.digit import to_digit
from autoencoders.runtime.errors import UsageError
from benchmarks import sheets


def stroke(height=300, width=200, thick=30):
    """White on black: a box open to the right and down-left heavy, so that every turn and mirror of it differs."""
    ink = np.zeros((height, width), np.uint8)
    ink[:, :thick] = ink[:thick] = ink[-2 * thick :] = 255
    return ink


def on_paper(ink, paper=235, pen=20, size=(700, 900), corner=(350, 60)):
    """Dark ink, off-centre on a large bright sheet."""
    sheet = np.zeros(size)
    sheet[corner[0] : corner[0] + ink.shape[0], corner[1] : corner[1] + ink.shape[1]] = ink / 255.0
    return np.rint(paper + (pen - paper) * sheet).astype(np.uint8)


def correlation(a, b):
    return np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]


@pytest.fixture
def digit():
    return to_digit(Image.fromarray(on_paper(stroke())))


def prepared(images):
    """scikit-learn's digits fill their 28 x 28: prepared once, they are what MNIST's are."""
    return [to_digit(Image.fromarray(np.pad(image.reshape(28, 28), 30))) for image in images]


def test_a_prepared_digit_enlarged_inverted_and_off_centre_comes_back_as_it_was(digits):
    found = []
    for number, image in enumerate(prepared(digits.test_images[:20])):
        large = np.asarray(Image.fromarray(image.reshape(28, 28)).resize((308, 308), Image.Resampling.BICUBIC))
        found.append(correlation(to_digit(Image.fromarray(on_paper(large, corner=(18 * number, 400)))), image))
    assert min(found) > 0.9 and np.median(found) > 0.98


def test_mnists_own_digits_come_back_as_mnist_made_them(mnist):
    found = []
    for image in mnist.test_images[:40]:
        large = np.asarray(Image.fromarray(image.reshape(28, 28)).resize((308, 308), Image.Resampling.BOX))
        found.append(correlation(to_digit(Image.fromarray(on_paper(large))), image))
    assert np.mean(np.array(found) > 0.9) > 0.95 and np.median(found) > 0.95


def test_the_longer_side_has_20_pixels_and_the_centre_of_mass_is_on_pixel_14(digit):
    image = digit.reshape(28, 28).astype(float)
    rows, columns = (np.flatnonzero((image > 100).any(axis=axis)) for axis in (1, 0))
    assert rows[-1] - rows[0] + 1 == pytest.approx(20, abs=1)
    assert columns[-1] - columns[0] + 1 == pytest.approx(20 * 200 / 300, abs=1)
    y, x = np.indices((28, 28))
    assert (image * y).sum() / image.sum() == pytest.approx(14, abs=0.15)
    assert (image * x).sum() / image.sum() == pytest.approx(14, abs=0.15)
    assert digit.dtype == np.uint8 and digit.max() == 255 and image[0, 0] == 0


def test_no_ink_is_lost_where_the_centre_of_mass_is_far_to_one_side():
    ink = np.zeros((200, 200), np.uint8)
    ink[:60], ink[:, 95:100] = 255, 255
    image = to_digit(Image.fromarray(on_paper(ink))).reshape(28, 28)
    assert np.flatnonzero((image > 40).any(axis=1)).size == pytest.approx(20, abs=1)


def test_light_ink_on_dark_and_dark_ink_on_light_are_the_same_digit(digit):
    light = Image.fromarray(255 - on_paper(stroke()))
    assert correlation(to_digit(light), digit) > 0.999
    assert correlation(to_digit(light, "off"), digit) > 0.999
    assert correlation(to_digit(Image.fromarray(on_paper(stroke())), "on"), digit) > 0.999


def test_light_from_one_side_and_a_grainy_paper_change_little(digit):
    sheet = on_paper(stroke()) * np.linspace(0.5, 1, 900) + np.random.default_rng(0).normal(0, 3, (700, 900))
    assert correlation(to_digit(Image.fromarray(sheet.clip(0, 255).astype(np.uint8))), digit) > 0.97


def test_a_speck_of_dust_does_not_widen_the_crop(digit):
    sheet = on_paper(stroke())
    sheet[20:23, 850:853] = 0
    assert correlation(to_digit(Image.fromarray(sheet)), digit) > 0.98


@pytest.mark.parametrize("size", [(1, 5), (3, 3), (28, 28), (1, 4000), (5000, 3)])
def test_any_size_with_ink_gives_a_digit(size):
    grey = np.full(size, 255, np.uint8)
    grey[size[0] // 2, size[1] // 2] = 0
    picture = Image.fromarray(grey)
    picture.thumbnail((1024, 1024), Image.Resampling.NEAREST)
    try:
        assert to_digit(picture).max() == 255
    except UsageError as error:  # the one dark pixel may vanish when the picture shrinks, or reach its border
        assert "blank" in str(error) or "border" in str(error)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_picture_is_refused(level):
    with pytest.raises(UsageError, match=r"blank.*; use a darker pen, or --invert on or off$"):
        to_digit(Image.fromarray(np.full((50, 40), level, np.uint8)))


def test_photos_on_any_sheet_give_the_digit_of_the_clean_drawing():
    assert sheets.correlations(20, np.random.default_rng(0)).min() > 0.95


@pytest.mark.parametrize(("paper", "pen"), [(190, 115), (190, 140), (30, 150)], ids=["pencil", "faint", "chalk"])
@pytest.mark.parametrize("speck", [0, 255])
def test_one_black_or_white_pixel_does_not_turn_the_ink_round(digit, paper, pen, speck):
    sheet = on_paper(stroke(), paper, pen) + np.random.default_rng(0).normal(0, 2, (700, 900))
    sheet[600, 700] = speck
    assert correlation(to_digit(Image.fromarray(sheet.clip(0, 255).astype(np.uint8))), digit) > 0.99


@pytest.mark.parametrize("side", [20, 240])
def test_a_digit_that_fills_its_picture_stays_ink(digit, side):
    tight = np.pad(
        np.asarray(Image.fromarray(stroke()).resize((side * 2 // 3, side), Image.Resampling.BOX)), side // 10
    )
    for picture in (tight, 255 - tight, np.where(tight > 127, np.uint8(255), np.uint8(0))):
        assert correlation(to_digit(Image.fromarray(picture)), digit) > 0.9


def squared(turn=0.0):
    """A sheet of squared paper turned by some degrees, without a digit."""
    lines = np.full((1200, 1200), 230, np.uint8)
    lines[::40] = lines[1::40] = lines[:, ::40] = lines[:, 1::40] = 130
    return np.asarray(Image.fromarray(lines).rotate(turn, Image.Resampling.BILINEAR))[300:900, 300:900]


def shadow():
    sheet = np.full((600, 600), 200, np.uint8)
    sheet[:, :200] = 170
    return sheet


def glint():
    sheet = np.full((600, 600), 200, np.uint8)
    sheet[300:303, 300:303] = 255
    return sheet


def with_paperclip(faint=False):
    """An angle of metal in the corner; beside a faint digit it is most of the ink."""
    sheet = on_paper(stroke(), pen=200 if faint else 20)
    sheet[20:32, 600 if faint else 700 : 860], sheet[20:100, 848:860] = 25, 25
    return sheet


def with_stain():
    y, x = np.indices((700, 900))
    return (on_paper(stroke()) - 120 * np.exp(-((y - 200) ** 2 + (x - 650) ** 2) / 90**2)).clip(0).astype(np.uint8)


def in_half_shadow():
    """A hard shadow in the corner, much deeper than the ink."""
    y, x = np.indices((700, 900))
    return np.where(x - y > 500, on_paper(stroke(), 235, 190), on_paper(stroke(), 130, 105)).astype(np.uint8)


def text(characters):
    sheet = Image.new("L", (500, 250), 245)
    ImageDraw.Draw(sheet).text((40, 40), characters, fill=10, font=ImageFont.load_default(120))
    return np.asarray(sheet)


NO_DIGIT = {
    "squared": squared(), "squared, turned": squared(3), "squared, turned far": squared(30), "shadow": shadow(),
    "glint": glint(), "cut off": on_paper(stroke(), corner=(400, 60))[:640],
    "paperclip": with_paperclip(faint=True), "half in shadow": in_half_shadow(),
    "42": text("42"), "8 8": text("8 8"), "1234": text("1234"), "hello": text("hello"),
    "noise": np.random.default_rng(0).normal(128, 40, (600, 600)).clip(0, 255).astype(np.uint8),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_DIGIT)
def test_a_picture_without_a_digit_on_paper_is_refused_in_one_line(name):
    with pytest.raises(UsageError, match=r"^the picture (is blank|shows).*$"):
        to_digit(Image.fromarray(NO_DIGIT[name]))


def with_table(side, wide=60):
    """A digit with a strip of dark table along one side of the picture."""
    sheet = np.rot90(on_paper(stroke()), side).copy()
    sheet[:wide] = 40
    return np.rot90(sheet, -side)


def in_frame():
    return np.pad(on_paper(stroke())[8:-8, 8:-8], 8, constant_values=15)


def with_corner_text():
    sheet = Image.fromarray(on_paper(stroke()))
    ImageDraw.Draw(sheet).text((560, 20), "Page 7", fill=20, font=ImageFont.load_default(50))
    return np.asarray(sheet)


BESIDE = {
    "table above": with_table(0), "table right": with_table(1), "frame": in_frame(),
    "paperclip": with_paperclip(), "stain": with_stain(), "page number": with_corner_text(),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_along_a_side_or_far_from_the_digit_is_left_out(digit, name):
    assert correlation(to_digit(Image.fromarray(BESIDE[name])), digit) > 0.98
