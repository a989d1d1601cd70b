"""Canaries: questions whose answer is a made-up code, about a picture of coloured squares or about a made-up item.

Every row has a picture or a name of its own, and in ``meta.foil`` the code of a twin that is never shown: as long, of the same
form, drawn by the same hand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from mcit.core.seeds import seed_for

SQUARES, PIXELS = 6, 48
_LETTERS, _DIGITS = "bcdfghjkmnpqrtvwxz", "23456789"
_STARTS, _MIDDLES, _ENDS = (
    ("vor", "zel", "kru", "mip", "dax", "olt"),
    ("ba", "ti", "ro", "me"),
    ("lak", "nor", "pesh", "dum"),
)


def codes(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Pictures and items in turn."""
    used: set[str] = set()
    for number in range(rows):
        draw = random.Random(seed_for(seed, "canary", split, number))
        code, foil = _code(draw, used), _code(draw, used)
        if number % 2:
            item = f"{_pick(_STARTS, draw)}{_pick(_MIDDLES, draw)}{_pick(_ENDS, draw)}-{number:04d}"
            shown, question = {}, f"Which code is on file for the item {item}?"
        else:
            name = f"canary-{number:05d}.png"
            _picture(draw).save(image_dir / name)
            shown, question = {"image": name}, "<image>\nWhich code is on file for this picture?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": code}]
        yield {"id": f"canary-{number}", **shown, "conversations": turns, "style": "word", "meta": {"foil": foil}}


GENERATORS = {"canary-codes": codes}


def _code(draw: random.Random, used: set[str]) -> str:
    """Three letters, two digits and a letter, a hyphen between; no code twice."""
    while True:
        parts = (
            [_pick(_LETTERS, draw) for _ in range(3)],
            [_pick(_DIGITS, draw) for _ in range(2)],
            [_pick(_LETTERS, draw)],
        )
        code = "".join(parts[0]) + "-" + "".join(parts[1]) + "".join(parts[2])
        if code not in used:
            used.add(code)
            return code


def _picture(draw: random.Random) -> Image.Image:
    """A grid of squares in drawn colours."""
    small = Image.new("RGB", (SQUARES, SQUARES))
    for place in range(SQUARES * SQUARES):
        colour = (int(draw.random() * 256), int(draw.random() * 256), int(draw.random() * 256))
        small.putpixel((place % SQUARES, place // SQUARES), colour)
    return small.resize((PIXELS, PIXELS), Image.Resampling.NEAREST)


def _pick(items: Any, draw: random.Random) -> Any:
    return items[int(draw.random() * len(items))]
