"""Pictures: every mode becomes RGB, every damage names its row, padding and boxes as the reference has them.

T14: 640 x 480 sits at y = 80 of a 640 x 640 canvas, 640 x 481 at floor(159 / 2) = 79.
T9: x 100, y 50, w 200, h 100 in 640 x 480: (100/640, (50+80)/640, 300/640, (150+80)/640).
"""

import os
import struct
import zlib

import numpy
import pytest
from PIL import Image

from mcit.core.errors import DataError
from mcit.data.images import PAD_COLOUR, load_images, open_image, pad_box, pad_to_square, resolve_below, to_rgb
from tests.fakes.rows import picture, row


def pixel(image):
    """The first pixel."""
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("LA", (40, 255), (40, 40, 40)),
        ("LA", (40, 0), (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 90, (90, 90, 90)),
        ("I", 200, (200, 200, 200)),
        ("F", 1.0, (255, 255, 255)),
        ("F", 0.4, (102, 102, 102)),
        ("F", 130.0, (130, 130, 130)),
    ],
)
def test_modes(mode, colour, expected):
    image = to_rgb(Image.new(mode, (4, 3), colour))
    assert image.mode == "RGB" and image.size == (4, 3)
    assert all(abs(a - b) <= 1 for a, b in zip(pixel(image), expected, strict=True))


def test_numbers_without_a_scale_are_stretched():
    """From -100 to 100: 0 is in the middle."""
    image = to_rgb(Image.fromarray(numpy.array([[-100, 0, 100]], dtype=numpy.int32)))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 127, 255]


def test_modes_through_files(tmp_path):
    Image.fromarray(numpy.full((3, 3), 257 * 60, dtype=numpy.uint16)).save(tmp_path / "deep.png")
    assert pixel(open_image(tmp_path / "deep.png", where="f:1:a")) == (60, 60, 60)
    palette = Image.new("RGB", (3, 3), (200, 10, 10)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "p.gif")
    assert pixel(open_image(tmp_path / "p.gif", where="f:1:a"))[0] > 190
    clear = Image.new("P", (3, 3), 0)
    clear.putpalette([9, 9, 9])
    clear.save(tmp_path / "t.png", transparency=0)
    assert pixel(open_image(tmp_path / "t.png", where="f:1:a")) == (255, 255, 255)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    assert pixel(open_image(tmp_path / "c.jpg", where="f:1:a"))[0] > 200


def test_exif_rotation_is_undone(tmp_path):
    """Orientation 6: the stored left column is the top row, so 40 x 20 is shown as 20 x 40."""
    image = Image.new("RGB", (40, 20), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "r.png", exif=exif)
    shown = open_image(tmp_path / "r.png", where="f:1:a")
    assert shown.size == (20, 40)
    assert shown.getpixel((10, 5)) == (255, 0, 0) and shown.getpixel((10, 35)) == (0, 0, 255)


def _bomb(path):
    """A PNG header that claims 40000 x 40000 pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))


def _large(path):
    """More pixels than allowed, fewer than Pillow refuses by itself."""
    Image.new("1", (10_000, 9_500)).save(path)


def _cut(path):
    rng = numpy.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (60, 60, 3), dtype=numpy.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


@pytest.mark.parametrize(
    ("name", "make", "match"),
    [
        ("gone.png", lambda p: None, "does not exist"),
        ("zero.png", lambda p: p.write_bytes(b""), r"empty \(0 bytes\)"),
        ("text.png", lambda p: p.write_text("hello"), "not a picture"),
        ("cut.png", _cut, "damaged or cut off"),
        ("cut.jpg", _cut, "damaged or cut off"),
        ("bomb.png", _bomb, "decompression bomb"),
        ("large.png", _large, "10000 x 9500 pixels"),
        ("folder.png", lambda p: p.mkdir(), "not a file"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damage_names_the_row(tmp_path, name, make, match):
    make(tmp_path / name)
    with pytest.raises(DataError, match=match) as caught:
        load_images(row("<image>", "a", images=(name,), root=tmp_path))
    assert caught.value.where == "f.json:1:r1" and caught.value.fix and name in caught.value.what


def test_paths_stay_below_their_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    picture(root / "sub")
    picture(outside, "b.png")
    os.symlink(outside / "b.png", root / "link.png")
    os.symlink(outside, root / "linked")
    os.symlink(root / "sub" / "a.png", root / "inside.png")
    for good in ("sub/a.png", "inside.png", "./sub/a.png", "missing.png"):
        assert resolve_below(root, good, where="w") == root / good
    for bad in ("../outside/b.png", "sub/../../outside/b.png", str(outside / "b.png"), "link.png", "linked/b.png", ""):
        with pytest.raises(DataError, match="root") as caught:
            resolve_below(root, bad, where="f:1:r")
        assert caught.value.where == "f:1:r" and caught.value.fix
    link = tmp_path / "root-link"
    os.symlink(root, link)
    assert resolve_below(link, "sub/a.png", where="w").is_file()  # the root itself may be a link
    assert load_images(row("<image>", "a", images=("sub/a.png",), root=root))[0].size == (40, 30)


def test_t14_padding():
    wide = pad_to_square(Image.new("RGB", (640, 480), (1, 2, 3)))
    assert wide.size == (640, 640) and PAD_COLOUR == (122, 116, 104)
    assert wide.getpixel((0, 79)) == PAD_COLOUR and wide.getpixel((0, 80)) == (1, 2, 3)
    assert wide.getpixel((0, 559)) == (1, 2, 3) and wide.getpixel((0, 560)) == PAD_COLOUR
    odd = pad_to_square(Image.new("RGB", (640, 481), (1, 2, 3)))
    assert odd.getpixel((5, 78)) == PAD_COLOUR and odd.getpixel((5, 79)) == (1, 2, 3)
    tall = pad_to_square(Image.new("RGB", (2, 6), (1, 2, 3)), colour=(9, 9, 9))
    assert [tall.getpixel((x, 0))[0] for x in range(6)] == [9, 9, 1, 1, 9, 9]
    square = Image.new("RGB", (7, 7))
    assert pad_to_square(square) is square


def test_t9_padded_box():
    assert pad_box((100, 50, 200, 100), width=640, height=480) == (0.15625, 0.203125, 0.46875, 0.359375)
    # the same box and picture on their side
    assert pad_box((50, 100, 100, 200), width=480, height=640) == (0.203125, 0.15625, 0.359375, 0.46875)
    assert pad_box((0, 0, 10, 10), width=10, height=10) == (0, 0, 1, 1)


def test_pad_on_loading(tmp_path):
    one = row("<image>", "a", images=(picture(tmp_path),), root=tmp_path)
    assert [i.size for i in load_images(one, pad=True)] == [(40, 40)]
    assert load_images(row("q", "a")) == []
