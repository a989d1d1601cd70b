"""Texts to study and their foils, after the six splits of the released code of arXiv:2303.17557; the materials are ours.

====================  ==========================================  =======================================
generator             studied                                     foil
====================  ==========================================  =======================================
memory-sentences      example sentences of WordNet                other example sentences
memory-paraphrase     made-up sentences                           the same said in another way
memory-synonym        made-up sentences                           one word replaced by a synonym
memory-strings        random strings of words                     other random strings
memory-strings-real   random strings of words                     example sentences
memory-shuffled       example sentences, words and letters mixed  example sentences
====================  ==========================================  =======================================

``memory-unrelated`` are definitions of WordNet, to go on training with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mcit.core.errors import DataError
from mcit.core.files import digest_of, sha256_file
from mcit.core.seeds import seed_for
from mcit.data.sources.general import ASSETS, _bundle, _drawn

VERSION = digest_of([sha256_file(ASSETS / "rows.json")])
"""What the rows depend on beside this file."""
_STRING = 12
"""Words of a random string."""
_WHO = ("teacher", "gardener", "sailor", "baker", "doctor", "painter", "farmer", "pilot", "singer", "miller")
_DID = (  # the first ones are their own participles
    ("repaired", "fixed"), ("purchased", "bought"), ("discovered", "found"), ("concealed", "hid"),
    ("constructed", "built"), ("observed", "watched"), ("carried", "transported"), ("cleaned", "washed"),
)  # fmt: skip
_LOOKS = (
    ("small", "little"),
    ("large", "big"),
    ("old", "ancient"),
    ("quick", "fast"),
    ("quiet", "silent"),
    ("lovely", "pretty"),
)
_WHAT = (
    ("boat", "ship"),
    ("stone", "rock"),
    ("coat", "jacket"),
    ("house", "home"),
    ("path", "trail"),
    ("picture", "image"),
)
_WHERE = (
    "near the harbour",
    "behind the church",
    "in the valley",
    "at the station",
    "beside the lake",
    "under the bridge",
)
_WHEN = ("on Monday", "at noon", "last winter", "before dawn", "in April", "after the storm")


def _sentences(rows: int, seed: int, split: str) -> Iterator[tuple[str, str]]:
    every = _drawn(_bundle()["sentences"], 2 * rows, seed, "memory", split)
    yield from zip(every[:rows], every[rows:], strict=True)


def _made(rows: int, seed: int, split: str) -> Iterator[tuple[str, str, str]]:
    """A sentence, the same in other words, and the same with one synonym; no sentence twice."""
    draw, seen = random.Random(seed_for(seed, "memory", "made", split)), set[str]()
    most = len(_WHO) * len(_DID) * len(_LOOKS) * len(_WHAT) * len(_WHERE) * len(_WHEN)
    if rows > most // 2:
        raise DataError(f"{rows} rows are asked for, there are {most // 2}", where="memory", fix="lower rows:")
    while len(seen) < rows:
        who, did, looks, what, where, when = (
            _pick(options, draw) for options in (_WHO, _DID, _LOOKS, _WHAT, _WHERE, _WHEN)
        )
        sentence = f"The {who} {did[0]} the {looks[0]} {what[0]} {where} {when}."
        passive = f"{when[0].upper()}{when[1:]}, the {looks[0]} {what[0]} was {did[0]} by the {who} {where}."
        word = [did, looks, what][int(draw.random() * 3)]
        if sentence not in seen:
            seen.add(sentence)
            yield sentence, passive, sentence.replace(f" {word[0]} ", f" {word[1]} ", 1)


def _strings(rows: int, seed: int, split: str, which: str) -> list[str]:
    words = sorted(
        {w.strip(".,!?'\"").lower() for text in _bundle()["sentences"] for w in text.split() if w.isascii()} - {""}
    )
    draw = random.Random(seed_for(seed, "memory", which, split))
    return [" ".join(_pick(words, draw) for _ in range(_STRING)) for _ in range(rows)]


def _shuffled(text: str, draw: random.Random) -> str:
    """Letters of each word and then words in a drawn order."""
    words = ["".join(_mixed(list(word), draw)) for word in text.split()]
    return " ".join(_mixed(words, draw))


def _mixed(items: list[str], draw: random.Random) -> list[str]:
    return [items.pop(int(draw.random() * len(items))) for _ in range(len(items))]


def _pairs(kind: str, rows: int, seed: int, split: str) -> list[tuple[str, str]]:
    if kind == "sentences":
        return list(_sentences(rows, seed, split))
    if kind in ("paraphrase", "synonym"):
        return [(text, other if kind == "paraphrase" else near) for text, other, near in _made(rows, seed, split)]
    real = [text for text, _ in _sentences(rows, seed, split)]
    if kind == "shuffled":
        draw = random.Random(seed_for(seed, "memory", "shuffled", split))
        others = [foil for _, foil in _sentences(rows, seed, split)]
        return [(_shuffled(text, draw), foil) for text, foil in zip(real, others, strict=True)]
    studied = _strings(rows, seed, split, "studied")
    return list(zip(studied, real if kind == "strings-real" else _strings(rows, seed, split, "foils"), strict=True))


def _generator(kind: str) -> Callable[[str, int, int, Path], Iterator[dict[str, Any]]]:
    def made(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
        for number, (text, foil) in enumerate(_pairs(kind, rows, seed, split)):
            yield {"id": f"{kind}-{number}", "text": text, "meta": {"foil": foil}}

    return made


def unrelated(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Definitions of frequent words as plain texts."""
    for number, (word, meaning) in enumerate(_drawn(_bundle()["glosses"], rows, seed, "memory-unrelated", split)):
        yield {"id": f"unrelated-{number}", "text": f"{word[0].upper()}{word[1:]}: {meaning}."}


KINDS = ("sentences", "paraphrase", "synonym", "strings", "strings-real", "shuffled")
GENERATORS = {**{f"memory-{kind}": _generator(kind) for kind in KINDS}, "memory-unrelated": unrelated}


def _pick(items: Any, draw: random.Random) -> Any:
    return items[int(draw.random() * len(items))]
