"""General samples: what a base model knows before any task, for methods that replay it. No row belongs to a task.

``general-text`` (plain sentences), ``general-words`` (definitions) and ``general-quiz`` come from the bundle in
mcit/assets/general: WordNet 3.0 (WordNet licence) and the quiz of bsdgames (BSD). ``general-dialogue`` reads the package
chatterbot-corpus (BSD) from the package index, downloaded when it is first used. ``general-sums`` are made up,
``general-pictures`` shows emoji that are in no task, and ``general-tiny`` and ``general-tiny-pictures`` serve tests.
"""

from __future__ import annotations

import functools
import json
import random
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from PIL import Image

from mcit.core.errors import DataError
from mcit.core.fetch import PackagePin, fetch_package
from mcit.core.files import digest_of, sha256_file
from mcit.core.seeds import seed_for
from mcit.data.sources.emoji import emoji, single

T = TypeVar("T")
ASSETS = Path(__file__).parent.parent.parent / "assets" / "general"
DIALOGUE = PackagePin(
    name="chatterbot-corpus",
    version="1.3.3",
    filename="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
    sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    size_bytes=345706,
    licence="BSD",
)
TOPICS = ("science", "history", "sports", "trivia", "food", "computers", "health", "literature", "money")
"""Of English; the others speak of the robot itself, of opinions, or of people."""
QUIZ = {"capitals": 90, "states": 30, "elements": 30, "opposites": 25, "groups": 15, "young": 10}
"""Rows of each kind in 200."""
SEES = ("Give the name of this object.", "Which object do you see?", "Tell me what this picture shows.")
_ASKS = re.compile(r"^(what|who|when|where|which|how many|how much|in what|in which)\b", re.IGNORECASE)
_PERSONAL = re.compile(
    r"\b(i|i'm|i've|me|my|you|your|robot\w*|bot|lol|conspir\w*|illuminati|sex\w*|kill\w*|drunk)\b", re.IGNORECASE
)

VERSION = digest_of(
    [DIALOGUE.sha256, sha256_file(ASSETS / "rows.json"), sha256_file(Path(__file__).with_name("emoji.py"))]
)
"""What the rows depend on beside this file."""


def text(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Example sentences of frequent words, as plain texts without a conversation."""
    for number, sentence in enumerate(_drawn(_bundle()["sentences"], rows, seed, "text", split)):
        yield {"id": f"text-{number}", "text": sentence}


def words(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """What does a frequent word mean?"""
    for number, (word, meaning) in enumerate(_drawn(_bundle()["glosses"], rows, seed, "words", split)):
        yield _asked(f"word-{number}", f"What does '{word}' mean?", meaning)


def quiz(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Capitals, symbols, opposites and names of animals, in the shares of `QUIZ`."""
    number = 0
    for kind, share in QUIZ.items():
        known = [row for row in _bundle()["quiz"] if row[2] == kind]
        for question, answer, _ in _drawn(known, round(rows * share / sum(QUIZ.values())), seed, "quiz", split, kind):
            yield _asked(f"quiz-{number}", question, answer)
            number += 1


def dialogue(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Factual questions and answers of chatterbot-corpus; a question is asked once."""
    for number, (question, answer) in enumerate(_drawn(_dialogue(), rows, seed, "dialogue", split)):
        yield _asked(f"dialogue-{number}", question, answer)


def sums(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Additions and subtractions below 100."""
    draw = random.Random(seed_for(seed, "general", "sums", split))
    for number in range(rows):
        a, b = sorted((int(draw.random() * 90) + 10, int(draw.random() * 90) + 10), reverse=True)
        sign, value = ("+", a + b) if draw.random() < 0.5 else ("-", a - b)
        yield _asked(f"sum-{number}", f"What is {a} {sign} {b}?", str(value))


def pictures(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Name an emoji that no task of the demo shows, in the words the embedded base was aligned with."""
    for number, item in enumerate(_drawn(emoji("base"), rows, seed, "pictures", split)):
        draw = random.Random(seed_for(seed, "general", "picture", split, number))
        name = f"general-{number:04d}.png"
        single(item, draw)[0].save(image_dir / name)
        yield _asked(f"picture-{number}", SEES[number % len(SEES)], item.name, image=name)


def tiny(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Made-up sentences, every second one as a question and its answer."""
    draw = random.Random(seed_for(seed, "general", "tiny", split))
    for number in range(rows):
        who, where = (
            _pick(options, draw) for options in (("ant", "cat", "crow", "fox", "hen"), ("here", "away", "up"))
        )
        if number % 2:
            yield _asked(f"tiny-{number}", f"Where is the {who} of house {number}?", where)
        else:
            yield {"id": f"tiny-{number}", "text": f"The {who} of house {number} is {where}."}


def tiny_pictures(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Is the picture darker at the top or at the bottom? 32 x 32."""
    draw = random.Random(seed_for(seed, "general", "tiny-pictures", split))
    for number in range(rows):
        top = draw.random() < 0.5
        image = Image.new("RGB", (32, 32), (200 + int(draw.random() * 50),) * 3)
        image.paste((20, 20, 40), (0, 0 if top else 16, 32, 16 if top else 32))
        name = f"general-{number:04d}.png"
        image.save(image_dir / name)
        yield _asked(f"tiny-picture-{number}", "Which half is dark?", "top" if top else "bottom", image=name)


GENERATORS = {
    "general-text": text,
    "general-words": words,
    "general-quiz": quiz,
    "general-dialogue": dialogue,
    "general-sums": sums,
    "general-pictures": pictures,
    "general-tiny": tiny,
    "general-tiny-pictures": tiny_pictures,
}


@functools.cache
def _bundle() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = json.loads((ASSETS / "rows.json").read_text())
    return found


def _dialogue() -> list[tuple[str, str]]:
    """Question and first answer of each pair that asks for a fact and speaks of nobody present."""
    found: dict[str, str] = {}
    with zipfile.ZipFile(fetch_package(DIALOGUE)) as archive:
        for topic in TOPICS:
            content = yaml.safe_load(archive.read(f"chatterbot_corpus/data/english/{topic}.yml"))
            for turns in content["conversations"]:
                question, answer = (" ".join(str(turn).split()) for turn in turns[:2]) if len(turns) > 1 else ("", "")
                if not _ASKS.match(question) or _PERSONAL.search(f"{question} {answer}") or len(answer) > 250:
                    continue
                question = question.rstrip(" ?.!") + "?"
                if question.isascii() and answer.isascii() and answer:
                    found.setdefault(_sentence(question), _sentence(answer))
    return sorted(found.items())


def _sentence(words: str) -> str:
    """Starts with a capital; a text in capitals throughout is put in small letters first."""
    words = words.lower() if words.isupper() else words
    return words[0].upper() + words[1:]


def _drawn(items: Sequence[T], count: int, *seed: Any) -> list[T]:
    """So many of the items in a drawn order. Raises DataError when there are fewer."""
    if count > len(items):
        raise DataError(
            f"{count} rows are asked for, there are {len(items)}", where=f"general-{seed[1]}", fix="lower rows:"
        )
    draw = random.Random(seed_for(seed[0], "general", *seed[1:]))
    left = list(items)
    return [left.pop(int(draw.random() * len(left))) for _ in range(count)]


def _pick(items: Sequence[str], draw: random.Random) -> str:
    return items[int(draw.random() * len(items))]


def _asked(identity: str, question: str, answer: str, *, image: str = "") -> dict[str, Any]:
    shown = {"image": image} if image else {}
    value = f"<image>\n{question}" if image else question
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]
    return {"id": identity, **shown, "conversations": turns, "style": "phrase"}
