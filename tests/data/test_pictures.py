"""A picture of any format becomes the digit MNIST would have made of it; a bad file is refused before it is decoded."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoencoders.data.pictures import read_picture, to_digit
from autoencoders.runtime.errors import UsageError


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


def through(picture, path, **options):
    """The digit that a picture becomes by way of a file."""
    picture.save(path, **options)
    return to_digit(read_picture(path))


@pytest.fixture
def digit():
    return to_digit(Image.fromarray(on_paper(stroke())))


@pytest.fixture
def png(tmp_path):
    return tmp_path / "picture.png"


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


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I", "F", "CMYK"])
def test_the_mode_of_the_file_does_not_matter(digit, tmp_path, mode):
    grey = on_paper(stroke())
    if mode in ("I;16", "I", "F"):
        picture = Image.fromarray({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode](grey * 257.0))
        assert picture.mode == mode
    else:
        picture = Image.fromarray(grey).convert(mode, dither=Image.Dither.NONE)
    assert correlation(through(picture, tmp_path / "picture.tiff"), digit) > 0.99


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "webp", "tiff", "ppm"])
def test_every_format_is_read(digit, tmp_path, kind):
    assert correlation(through(Image.fromarray(on_paper(stroke())), tmp_path / f"picture.{kind}"), digit) > 0.99


def test_a_16_bit_picture_is_scaled_not_cut_off(png):
    faint = on_paper(stroke()).astype(np.uint16) * 4 + 3000  # 12 bits: all of it above the 255 of a byte
    Image.fromarray(faint).save(png)
    levels = np.asarray(read_picture(png))
    assert levels.max() == 255 and levels.min() < 220


@pytest.mark.parametrize(("mode", "kind"), [("I;16", "png"), ("I;16", "tiff"), ("I;16B", "tiff"), ("I;16", "ppm")])
def test_with_kept_levels_a_16_bit_picture_equals_its_8_bit_copy_dark_or_bright(tmp_path, mode, kind):
    levels = np.arange(200, dtype=np.uint16).reshape(10, 20)
    data = (levels * 257).astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    Image.frombytes(mode, (20, 10), data).save(tmp_path / f"picture.{kind}")
    found = read_picture(tmp_path / f"picture.{kind}", keep_levels=True)
    np.testing.assert_array_equal(np.asarray(found.convert("L")), levels)


@pytest.mark.parametrize("ink", [0, 255])
def test_with_kept_levels_a_transparent_picture_is_laid_on_white(png, ink):
    alpha = np.linspace(0, 255, 28 * 28).astype(np.uint8).reshape(28, 28)
    grey = np.full_like(alpha, ink)
    Image.fromarray(np.dstack((grey, grey, grey, alpha))).save(png)
    found = np.asarray(read_picture(png, keep_levels=True).convert("L"), int)
    np.testing.assert_allclose(found, 255 - alpha if ink == 0 else 255, atol=1)


@pytest.mark.parametrize("ink", [0, 255])
def test_black_and_white_ink_show_on_a_transparent_background(digit, png, ink):
    alpha = 255 - on_paper(stroke(), paper=255, pen=0)
    grey = np.full_like(alpha, ink)
    assert correlation(through(Image.fromarray(np.dstack((grey, grey, grey, alpha))), png), digit) > 0.99


def test_a_picture_turned_by_its_exif_is_turned_back(digit, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    turned = Image.fromarray(on_paper(stroke())).transpose(Image.Transpose.ROTATE_90)
    assert correlation(through(turned, tmp_path / "picture.jpg", exif=exif), digit) > 0.99


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
    except UsageError as error:  # the one dark pixel may vanish when the picture shrinks
        assert "blank" in str(error)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_picture_is_refused(level):
    with pytest.raises(UsageError, match="blank"):
        to_digit(Image.fromarray(np.full((50, 40), level, np.uint8)))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, *more):
    """A PNG that states these sizes and has a little data, whatever it would need."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def whole(kind):
    buffer = io.BytesIO()
    Image.fromarray(on_paper(stroke())).save(buffer, kind)
    return buffer.getvalue()


BAD = {
    "empty": b"",
    "text": b"not a picture at all\n",
    "no width": png_of(0, 0),
    "bomb": png_of(100_000, 100_000),
    "just too large": png_of(8000, 8000),
    "text bomb": png_of(28, 28, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n",
    "ppm without pixels": b"P5 0 0 255\n",
    **{f"cut {kind}": whole(kind)[: len(whole(kind)) * 2 // 3] for kind in ("PNG", "JPEG", "BMP", "WEBP", "TIFF")},
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_usage_error_that_names_it(tmp_path, name):
    path = tmp_path / "picture"
    path.write_bytes(BAD[name])
    with pytest.raises(UsageError, match=f"^{path}: ") as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)


def test_libtiff_prints_no_complaints_on_stderr(tmp_path, capfd):
    path = tmp_path / "picture.tiff"
    Image.fromarray(on_paper(stroke())).save(path, compression="tiff_lzw")
    path.write_bytes(path.read_bytes()[:8] + bytes(200) + path.read_bytes()[208:])
    with pytest.raises(UsageError):
        read_picture(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["bomb", "just too large"])
def test_an_enormous_picture_is_refused_by_its_header(png, monkeypatch, name):
    png.write_bytes(BAD[name])
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(UsageError, match="give one of"):
        read_picture(png)


@pytest.mark.parametrize("path", ["missing.png", ".", "/dev/zero"])
def test_only_files_are_read(path):
    with pytest.raises(UsageError, match=path):
        read_picture(Path(path))
