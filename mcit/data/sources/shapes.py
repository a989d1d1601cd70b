"""Coloured shapes on plain grounds, drawn on the spot: three tasks with three answer styles, for the tiny config.

Each generator yields LLaVA rows with ``style`` and ``meta`` and writes its 32 x 32 pictures into the given folder. A
picture's name and content depend on (split, seed, number) alone; grounds differ between train and test, so that no
test picture is ever seen in training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mcit.core.seeds import seed_for

PIXELS = 32
COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 60, 220), "yellow": (240, 210, 40)}
SHAPES = ("circle", "square", "triangle")
_GROUNDS = {"train": 40, "validation": 130, "test": 215}
LETTER_CUE = "Answer with the option's letter from the given choices directly."
SHORT_CUE = "Answer the question using a single word or phrase."


def letter(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Which shape is it? Three options in a drawn order; the answer is a letter."""
    for number, draw, name, shape, _colour in _pictures("letter", split, rows, seed, image_dir):
        options = list(SHAPES)
        _shuffle(options, draw)
        lines = [f"{'ABC'[k]}. {option}" for k, option in enumerate(options)]
        question = "\n".join(["Which shape is shown?", *lines, LETTER_CUE])
        answer = "ABC"[options.index(shape)]
        yield _row(f"letter-{number}", name, question, answer, "letter", {"choices": options, "class": shape})


def yesno(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Is the shape of that colour? Half of the answers are yes."""
    for number, draw, name, shape, colour in _pictures("yesno", split, rows, seed, image_dir):
        others = [c for c in COLOURS if c != colour]
        truth = number % 2 == 0
        asked = colour if truth else others[int(draw.random() * len(others))]
        question = f"Is the {shape} {asked}?\n{SHORT_CUE}"
        yield _row(f"yesno-{number}", name, question, "yes" if truth else "no", "yes_no", {"class": colour})


def word(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """What colour is the shape? The answer is one word."""
    for number, _draw, name, shape, colour in _pictures("word", split, rows, seed, image_dir):
        question = f"What colour is the {shape}?\n{SHORT_CUE}"
        yield _row(f"word-{number}", name, question, colour, "word", {"class": colour, "answers": [colour]})


GENERATORS = {"shapes-letter": letter, "shapes-yesno": yesno, "shapes-word": word}


def _pictures(
    task: str, split: str, rows: int, seed: int, image_dir: Path
) -> Iterator[tuple[int, random.Random, str, str, str]]:
    for number in range(rows):
        draw = random.Random(seed_for(seed, "shapes", task, split, number))
        shape, colour = SHAPES[number % 3], list(COLOURS)[int(draw.random() * len(COLOURS))]
        name = f"{task}-{number:05d}.png"
        _picture(shape, colour, split, draw).save(image_dir / name)
        yield number, draw, name, shape, colour


def _picture(shape: str, colour: str, split: str, draw: random.Random) -> Image.Image:
    grey = _GROUNDS.get(split, 90)
    image = Image.new("RGB", (PIXELS, PIXELS), tuple(grey + int(draw.random() * 25) for _ in range(3)))
    size = 14 + int(draw.random() * 13)
    x, y = (int(draw.random() * (PIXELS - size)) for _ in range(2))
    pen = ImageDraw.Draw(image)
    box = (x, y, x + size, y + size)
    if shape == "circle":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        pen.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=COLOURS[colour])
    return image


def _row(identity: str, image: str, question: str, answer: str, style: str, meta: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": identity,
        "image": image,
        "conversations": [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}],
        "style": style,
        "meta": meta,
    }


def _shuffle(items: list[str], draw: random.Random) -> None:
    for last in range(len(items) - 1, 0, -1):
        pick = int(draw.random() * (last + 1))
        items[last], items[pick] = items[pick], items[last]
