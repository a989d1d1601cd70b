"""Rows that every family is asked about: text alone, one picture, two pictures, two turns; pictures of unlike shape."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from mcit.core.types import Row, Turn

SIZES = [(40, 30), (17, 60), (64, 20)]
ONE_TURN_ONLY = {"paligemma"}
"""Families without conversations."""


def pictures(folder: Path) -> Path:
    """Three files of noise, wide, tall and very wide, named 0.png to 2.png."""
    noise = random.Random(0)
    for i, (width, height) in enumerate(SIZES):
        Image.frombytes("RGB", (width, height), noise.randbytes(width * height * 3)).save(folder / f"{i}.png")
    return folder


def conversation(folder: Path, *texts: str, images: tuple[int, ...] = (), name: str = "r") -> Row:
    """A row of alternating turns."""
    turns = tuple(Turn("assistant" if k % 2 else "user", text) for k, text in enumerate(texts))
    return Row(name, tuple(f"{i}.png" for i in images), turns, "t", "f.json:1", root=str(folder))


def rows(folder: Path, family: str) -> list[Row]:
    """Rows of unlike length; each stands for a kind of row."""
    found = [
        conversation(folder, "Is it red?", "yes", name="text"),
        conversation(folder, "<image>\nWhat is shown here? Answer in words.", "two words", images=(0,), name="image"),
        conversation(folder, "<image>\n<image>\nWhich is red?", "B", images=(1, 2), name="images"),
        conversation(folder, "<image>\nIs it?", "naïve 5 😀", images=(2,), name="other"),
    ]
    if family not in ONE_TURN_ONLY:
        found.append(conversation(folder, "<image>\nIs it?", "yes", "And blue?", "no", images=(1,), name="turns"))
    return found
