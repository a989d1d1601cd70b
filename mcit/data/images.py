"""Pictures: found below their root, opened whole, converted to 8-bit RGB, padded to a square on request.

A picture that cannot be used is a DataError that names its row; nothing is replaced by a blank image.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from PIL import Image, ImageOps, UnidentifiedImageError

from mcit.core.errors import DataError
from mcit.core.types import Row
from mcit.data.augment import changed

PAD_COLOUR = (122, 116, 104)
"""int(255 * mean) of the CLIP normalisation: the padding becomes zero after it."""
MAX_PIXELS = 89_478_485
"""A picture that claims more is refused before it is decoded (Pillow's own limit for a warning)."""

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # each is either harmless or an error here

# What Pillow's decoders raise on damaged files, apart from OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def resolve_below(root: Path | str, relative: str, *, where: str) -> Path:
    """The file `relative` below `root`.

    Raises DataError for an empty or absolute path, one with ``..``, or a link that leads out of `root`.
    """
    fix = "give a path relative to the image root of the source, without '..'"
    path = Path(relative)
    if not relative or "\0" in relative or path.is_absolute() or ".." in path.parts:
        raise DataError(f"image path {relative!r} leaves its root", where=where, fix=fix)
    base = Path(root)
    full = base / path
    try:
        inside = full.resolve().is_relative_to(base.resolve())
    except (OSError, RuntimeError) as error:
        raise DataError(f"image path {relative!r} cannot be followed ({error})", where=where, fix=fix) from None
    if not inside:
        raise DataError(
            f"image path {relative!r} is a link out of its root {base}",
            where=where,
            fix="copy the file below the root, or name the folder it is in as the image root",
        )
    return full


def open_image(path: Path | str, *, where: str) -> Image.Image:
    """Decode one picture completely as upright 8-bit RGB; transparency becomes white.

    Raises DataError for a file that is missing, empty, cut off, not a picture or unreasonably large.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError:
        raise DataError(f"image {path} does not exist", where=where, fix="restore it, or remove the row") from None
    if not path.is_file():
        raise DataError(f"image {path} is not a file", where=where, fix="name a picture file")
    if size == 0:
        raise DataError(f"image {path} is empty (0 bytes)", where=where, fix="fetch it again, or remove the row")
    try:
        with Image.open(path) as image:
            _check_size(image, path, where)
            image.load()
            return to_rgb(image)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise _bomb(path, "far more", where) from None
    except UnidentifiedImageError:
        raise DataError(
            f"image {path} is not a picture that Pillow can read", where=where, fix="replace it, or remove the row"
        ) from None
    except _DAMAGED as error:
        raise DataError(
            f"image {path} is damaged or cut off ({error})", where=where, fix="fetch it again, or remove the row"
        ) from None


def load_images(row: Row, *, pad: bool = False) -> list[Image.Image]:
    """The pictures of a row in order, as RGB, with the changes of its view; padded to squares when `pad` is set.

    Raises DataError naming the row.
    """
    images = [open_image(resolve_below(row.root, path, where=row.where), where=row.where) for path in row.images]
    images = [changed(image, row.encoding.changes, where=row.where) for image in images]
    return [pad_to_square(image) for image in images] if pad else images


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB of any Pillow mode: CMYK, palette, grey, 16-bit, float, with or without alpha."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _eight_bit(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        if image.mode in ("La", "RGBa"):  # premultiplied alpha converts only to its plain form
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def pad_to_square(image: Image.Image, *, colour: tuple[int, int, int] = PAD_COLOUR) -> Image.Image:
    """Centre on a square canvas of the longer side; an odd difference puts the smaller half first."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def pad_box(box_xywh: Sequence[float], *, width: int, height: int) -> tuple[float, float, float, float]:
    """Corners (x1, y1, x2, y2) in the padded square, 0 to 1, of a pixel box (x, y, w, h) in the picture."""
    x, y, w, h = box_xywh
    side = max(width, height)
    dx, dy = (side - width) / 2, (side - height) / 2
    return ((x + dx) / side, (y + dy) / side, (x + w + dx) / side, (y + h + dy) / side)


def _check_size(image: Image.Image, path: Path, where: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _bomb(path, f"{image.width} x {image.height}", where)


def _bomb(path: Path, claim: str, where: str) -> DataError:
    return DataError(
        f"image {path} claims {claim} pixels, the limit is {MAX_PIXELS:,} (decompression bomb?)",
        where=where,
        fix="scale the picture down, or remove the row",
    )


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey to 8 bits: by 257 where values pass 255, by 255 for floats up to 1."""
    values = image.convert("F") if image.mode == "F" else image.convert("I")
    low, high = cast("tuple[float, float]", values.getextrema())
    if image.mode == "F" and 0 <= low and high <= 1:
        return values.point(lambda v: v * 255 + 0).convert("L")
    if high > 65535 or low < 0:  # no fixed scale: stretch what is there
        span = (high - low) or 1
        return values.point(lambda v: v * (255 / span) + (-low * 255 / span)).convert("L")
    deep = image.mode.startswith("I;16") or high > 255
    return values.point(lambda v: v * (1 / 257 if deep else 1) + 0).convert("L")
