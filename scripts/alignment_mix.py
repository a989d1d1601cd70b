"""Pictures and questions the embedded base learns from before any task: emoji of role ``base`` and own figures.

Nothing here may share a picture, an object's name or a sentence with the tasks of the demo; a test compares them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from mcit.core.seeds import seed_for
from mcit.data.sources.emoji import PIXELS, Box, Emoji, emoji, ground, pair, single

QUESTIONS = 3
SHARES = {"single": 0.45, "pair": 0.38}
"""Of the pictures; the rest are figures."""
BOX_SHARE = 0.15
"""Of the pictures that may ask for a box; below 8 % of all questions."""

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 150, 40),
    "blue": (30, 60, 220),
    "yellow": (240, 220, 20),
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "brown": (120, 70, 20),
    "orange": (250, 140, 0),
    "purple": (130, 30, 160),
    "pink": (250, 130, 180),
}
FIGURES = ("star", "diamond", "cross", "ring", "arrow", "heart")

NAME = ("Give the name of this object.", "Which object do you see?", "Tell me what this picture shows.")
CAPTION = ("Describe the picture.", "Write a short caption.", "Say what the photo contains.")
LETTER = ("Choose the right name.", "Pick what you see here.", "Select the matching name.")
COLOUR_LETTER = ("Choose the right colour.", "Pick the colour you see.")
COLOUR = ("Say which colour the {0} has.", "Name the colour of the {0}.", "In which colour is the {0} drawn?")
FIGURE = ("Which figure is drawn?", "Name the figure.")
PRESENT = ("Can you see {0} here?", "Does the picture show {0}?", "Do you find {0} in this picture?")
COLOURED = ("Has the {0} the colour {1}?", "Would you call the {0} {1}?")
SIDE = ("Which side is the {0} on?", "Where does the {0} stand, left or right?")
HEIGHT = ("Is the {0} above or below the {1}?", "Say how high the {0} is compared with the {1}.")
RELATED = ("Which thing is {1} the {0}?", "Name the thing {1} the {0}.")
BOX = ("Locate the {0}.", "Give the place of the {0}.")

HINTS = {
    "name": ("Reply with its name.", "Only the name."),
    "caption": ("Reply with a sentence.", "One short sentence."),
    "letter": ("Reply with one letter.", "Only the letter."),
    "word": ("Reply with a single word.", "One word only."),
    "yes_no": ("Reply yes or no.", "Say yes or no."),
    "box": ("Reply with a box.", "Box as four numbers."),
}

Question = tuple[str, str, str]
"""Question, answer, style (name, caption, letter, word, yes_no or box)."""


@dataclass(frozen=True)
class Example:
    """A picture with its questions and where its objects are."""

    image: Image.Image
    """128 x 128 RGB."""
    questions: tuple[Question, ...]
    objects: tuple[tuple[str, Box], ...]
    """Name and box in pixels."""


def mix(rows: int, seed: int) -> Iterator[Example]:
    """`rows` examples; each depends on the seed and its own number alone, except for the order of objects."""
    pool = emoji("base")
    names = sorted({item.name for item in pool})
    order: list[Emoji] = []
    shuffles = random.Random(seed_for(seed, "alignment", "order"))
    for number in range(rows):
        draw = random.Random(seed_for(seed, "alignment", number))
        if len(order) < 2:
            order = [*shuffles.sample(pool, len(pool)), *order]
        kind = draw.random()
        if kind < SHARES["single"]:
            yield _single(order.pop(), names, draw)
        elif kind < sum(SHARES.values()):
            yield _pair((order.pop(), order.pop()), names, draw)
        else:
            yield _figure(draw)


# ---- the three kinds of picture -------------------------------------------------------------------------------------
def _single(item: Emoji, names: Sequence[str], draw: random.Random) -> Example:
    image, box = single(item, draw)
    makers: list[Callable[[], Question]] = [
        lambda: _ask("caption", CAPTION, f"A picture of {_a(item.name)}.", draw),
        lambda: _letter(LETTER, item.name, names, draw),
        lambda: _present([item.name], names, draw),
    ]
    if abs(_centre(box)[0] - PIXELS / 2) > PIXELS / 16:
        makers.append(lambda: _side(item.name, box, draw))
    first = _ask("name", NAME, item.name, draw)
    rest = [make() for make in draw.sample(makers, QUESTIONS - 1)]
    return Example(image, _with_box([first, *rest], [(item.name, box)], draw), ((item.name, box),))


def _pair(items: tuple[Emoji, Emoji], names: Sequence[str], draw: random.Random) -> Example:
    while items[0].name == items[1].name:
        items = (items[0], draw.choice(emoji("base")))
    image, boxes = pair(items, draw)
    objects = tuple((item.name, box) for item, box in zip(items, boxes, strict=True))
    (one, _), (other, _) = objects
    relation = _relation(*boxes)
    pick = draw.randrange(2)
    makers: list[Callable[[], Question]] = [
        lambda: _ask("caption", CAPTION, f"There is {_a(one)} {relation} {_a(other)}.", draw),
        lambda: _ask("name", [form.format(other, relation) for form in RELATED], one, draw),
        lambda: _present([one, other], names, draw),
        lambda: _letter(LETTER, objects[pick][0], [n for n in names if n != objects[1 - pick][0]], draw),
        lambda: _between(objects, draw),
    ]
    chosen = [make() for make in draw.sample(makers, QUESTIONS)]
    return Example(image, _with_box(chosen, objects, draw), objects)


def _figure(draw: random.Random) -> Example:
    shape, colour = draw.choice(FIGURES), draw.choice(list(COLOURS))
    image, box = _drawn(shape, colour, draw)
    makers: list[Callable[[], Question]] = [
        lambda: _ask("word", FIGURE, shape, draw),
        lambda: _ask("caption", CAPTION, f"A picture of {_a(colour)} {shape}.", draw),
        lambda: _letter(COLOUR_LETTER, colour, list(COLOURS), draw),
        lambda: _present([shape], FIGURES, draw),
        lambda: _coloured(shape, colour, draw),
    ]
    if abs(_centre(box)[0] - PIXELS / 2) > PIXELS / 16:
        makers.append(lambda: _side(shape, box, draw))
    first = _ask("word", [form.format(shape) for form in COLOUR], colour, draw)
    rest = [make() for make in draw.sample(makers, QUESTIONS - 1)]
    return Example(image, _with_box([first, *rest], [(shape, box)], draw), ((f"{colour} {shape}", box),))


# ---- questions ------------------------------------------------------------------------------------------------------
def _ask(style: str, forms: Sequence[str], answer: str, draw: random.Random) -> Question:
    return f"{draw.choice(forms)} {draw.choice(HINTS[style])}", answer, style


def _letter(forms: Sequence[str], answer: str, names: Sequence[str], draw: random.Random) -> Question:
    """Two to four options; each place is equally likely to be right."""
    count = draw.choice((2, 2, 3, 4))
    options = draw.sample([name for name in names if name != answer], count - 1)
    options.insert(draw.randrange(count), answer)
    listed = " ".join(f"{'ABCD'[k]}. {option}" for k, option in enumerate(options))
    asked = f"{draw.choice(forms)} {listed} {draw.choice(HINTS['letter'])}"
    return asked, "ABCD"[options.index(answer)], "letter"


def _present(shown: Sequence[str], names: Sequence[str], draw: random.Random) -> Question:
    truth = draw.random() < 0.5
    asked = draw.choice(shown if truth else [name for name in names if name not in shown])
    return _ask("yes_no", [form.format(_a(asked)) for form in PRESENT], "yes" if truth else "no", draw)


def _coloured(shape: str, colour: str, draw: random.Random) -> Question:
    truth = draw.random() < 0.5
    asked = colour if truth else draw.choice([other for other in COLOURS if other != colour])
    return _ask("yes_no", [form.format(shape, asked) for form in COLOURED], "yes" if truth else "no", draw)


def _side(name: str, box: Box, draw: random.Random) -> Question:
    answer = "left" if _centre(box)[0] < PIXELS / 2 else "right"
    return _ask("word", [form.format(name) for form in SIDE], answer, draw)


def _between(objects: Sequence[tuple[str, Box]], draw: random.Random) -> Question:
    """Left or right, above or below: whatever tells the two apart."""
    (one, first), (other, second) = draw.sample(list(objects), 2)
    relation = _relation(first, second)
    if relation in ("above", "below"):
        return _ask("word", [form.format(one, other) for form in HEIGHT], relation, draw)
    return _ask("word", [form.format(one) for form in SIDE], "left" if "left" in relation else "right", draw)


def _with_box(chosen: list[Question], objects: Sequence[tuple[str, Box]], draw: random.Random) -> tuple[Question, ...]:
    """Now and then the last question asks for a box instead."""
    if draw.random() < BOX_SHARE:
        name, box = draw.choice(objects)
        numbers = ", ".join(f"{min(v / PIXELS, 0.99):.2f}" for v in box)
        chosen[-1] = _ask("box", [form.format(name) for form in BOX], f"[{numbers}]", draw)
    return tuple(chosen)


def _relation(one: Box, other: Box) -> str:
    (x, y), (u, v) = _centre(one), _centre(other)
    if abs(x - u) >= abs(y - v):
        return "to the left of" if x < u else "to the right of"
    return "above" if y < v else "below"


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


# ---- figures --------------------------------------------------------------------------------------------------------
def _drawn(shape: str, colour: str, draw: random.Random) -> tuple[Image.Image, Box]:
    canvas = ground(draw)
    shade = [min(255, max(0, part + draw.randint(-20, 20))) for part in COLOURS[colour]]
    size = draw.randint(34, 90)
    left, top = draw.randint(0, PIXELS - size - 1), draw.randint(0, PIXELS - size - 1)
    fill = (shade[0], shade[1], shade[2])
    pen = ImageDraw.Draw(canvas)
    if shape == "ring":
        pen.ellipse((left, top, left + size, top + size), outline=fill, width=max(5, size // 6))
    else:
        for part in _outlines(shape):
            pen.polygon([(left + x * size, top + y * size) for x, y in part], fill=fill)
    return canvas, (left, top, left + size, top + size)


def _outlines(shape: str) -> list[list[tuple[float, float]]]:
    """Polygons in the unit square."""
    third, turns = 1 / 3, 24
    if shape == "star":
        reach = [0.5 if k % 2 == 0 else 0.21 for k in range(10)]
        angles = [k * math.pi / 5 for k in range(10)]
        return [[(0.5 + r * math.sin(a), 0.5 - r * math.cos(a)) for r, a in zip(reach, angles, strict=True)]]
    if shape == "diamond":
        return [[(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)]]
    if shape == "cross":
        upright = [(third, 0.0), (2 * third, 0.0), (2 * third, 1.0), (third, 1.0)]
        return [upright, [(y, x) for x, y in upright]]
    if shape == "arrow":
        return [[(0, 0.35), (0.5, 0.35), (0.5, 0), (1, 0.5), (0.5, 1), (0.5, 0.65), (0, 0.65)]]
    angles = [2 * math.pi * k / turns for k in range(turns)]
    heart = [(math.sin(a) ** 3, 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a)) for a in angles]
    return [[(0.5 + x / 2, (12 - y) / 29) for x, y in heart]]
