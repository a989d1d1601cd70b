"""The bundled emoji pictures (Noto, Apache-2.0) and how they are put on a ground: 128 x 128 RGB, seeded throughout."""

from __future__ import annotations

import functools
import io
import json
import random
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

PIXELS = 128
ASSETS = Path(__file__).parent.parent.parent / "assets" / "demo"
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""

_TRIES = 80
_LEAST_GROUND = 190


@dataclass(frozen=True)
class Emoji:
    """One picture of the bundle."""

    short_name: str
    name: str
    """In plain English."""
    category: str
    subcategory: str
    role: str
    """The part of the demo it is kept for: ``base``, ``naming``, ``lowvision``, ``kind-train`` or ``kind-test``."""
    group: str
    """Super-category of the ``kind`` task, or empty."""

    @property
    def picture(self) -> Image.Image:
        """64 x 64 RGBA."""
        return _picture(self.short_name)


@functools.cache
def emoji(role: str = "") -> tuple[Emoji, ...]:
    """All emoji of a role, or of every role, in the bundle's order."""
    rows = json.loads((ASSETS / "emoji.json").read_text())
    return tuple(Emoji(**row) for row in rows if role in ("", row["role"]))


def picture_bytes(short_name: str) -> bytes:
    """The PNG file of an emoji as published."""
    with zipfile.ZipFile(ASSETS / "emoji.zip") as archive:
        return archive.read(f"{short_name}.png")


def ground(draw: random.Random) -> Image.Image:
    """An empty light picture."""
    return Image.new("RGB", (PIXELS, PIXELS), tuple(draw.randint(_LEAST_GROUND, 255) for _ in range(3)))


def single(item: Emoji, draw: random.Random, *, smallest: int = 64, largest: int = 120) -> tuple[Image.Image, Box]:
    """One emoji on a light ground at a drawn size (pixels), place, tilt up to 15 degrees, and side."""
    size = draw.randint(smallest, largest)
    left, top = draw.randint(0, PIXELS - size), draw.randint(0, PIXELS - size)
    canvas = ground(draw)
    box = (left, top, left + size, top + size)
    _paste(canvas, item.picture.rotate(draw.uniform(-15, 15), Image.Resampling.BICUBIC), box, draw)
    return canvas, box


def pair(
    items: Sequence[Emoji], draw: random.Random, *, smallest: int = 40, largest: int = 62
) -> tuple[Image.Image, tuple[Box, ...]]:
    """The given emoji (two, at these sizes) on one light ground without overlap."""
    canvas = ground(draw)
    boxes = _places(len(items), draw, smallest, largest)
    for item, box in zip(items, boxes, strict=True):
        _paste(canvas, item.picture, box, draw)
    return canvas, boxes


@functools.cache
def _picture(short_name: str) -> Image.Image:
    with Image.open(io.BytesIO(picture_bytes(short_name))) as image:
        return image.convert("RGBA")


def _paste(canvas: Image.Image, picture: Image.Image, box: Box, draw: random.Random) -> None:
    scaled = picture.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC)
    if draw.random() < 0.5:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas.paste(scaled, box[:2], scaled)


def _places(count: int, draw: random.Random, smallest: int, largest: int) -> tuple[Box, ...]:
    """Squares that do not overlap, drawn anew as a whole when one finds no room."""
    while True:
        boxes: list[Box] = []
        for _ in range(count * _TRIES):
            size = draw.randint(smallest, largest)
            left, top = draw.randint(0, PIXELS - size), draw.randint(0, PIXELS - size)
            box = (left, top, left + size, top + size)
            if all(apart(box, other) for other in boxes):
                boxes.append(box)
                if len(boxes) == count:
                    return tuple(boxes)


def apart(one: Box, other: Box) -> bool:
    """Whether two boxes share no pixel."""
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
