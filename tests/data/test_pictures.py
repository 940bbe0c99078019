"""A picture of any format is read as the same digit; a bad file is refused before it is decoded."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_digit import correlation, on_paper, stroke

from autoencoders.data.digit import to_digit
from autoencoders.data.pictures import read_picture
from autoencoders.runtime.errors import UsageError


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
