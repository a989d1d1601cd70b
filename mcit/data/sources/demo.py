"""The tasks of the demo: short questions with a letter, a name, yes or no, one word or a phrase as the answer.

``kind`` and ``edible`` split train and test by object (no test emoji is ever trained on). ``naming`` and ``lowvision`` split by
picture: the same drawings at other sizes, places, tilts and grounds. ``easyvqa`` and ``easyvqa-word`` keep the
published split of the easy-vqa package. Of its yes/no questions only the plain ones are asked: the published set
answers four of five negated ones ("is there not ...") with yes and four of five plain ones with no, so that a model
could score 80 % without looking; here both answers are equally frequent for shapes and for colours. ``easyvqa-ten`` asks
ten published questions of every kind about each picture.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageEnhance, ImageFilter

from mcit.core.errors import DataError
from mcit.core.fetch import PackagePin, fetch_package
from mcit.core.files import digest_of, sha256_file
from mcit.core.seeds import seed_for
from mcit.data.sources.emoji import ASSETS, PIXELS, Emoji, emoji, single

T = TypeVar("T")

EASY_VQA = PackagePin(
    name="easy-vqa",
    version="1.0",
    filename="easy_vqa-1.0-py3-none-any.whl",
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    size_bytes=3215672,
    licence="MIT",
)

KINDS = ("animal", "food", "vehicle", "object")
UNANSWERABLE = "unanswerable"
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")

KIND_PROMPT = (
    "What kind of thing is this? "
    + " ".join(f"{letter}. {kind}" for letter, kind in zip("ABCD", KINDS, strict=True))
    + " Answer with the letter."
)
NAMING_PROMPT = "What is the object in the image? Answer with its name."
GROUPS = {"Animals & Nature": "animal", "Food & Drink": "food", "Travel & Places": "travel", "Objects": "object"}
GROUP_PROMPT = "Which of animal, food, travel or object is this? Answer with one word."
LOWVISION_PROMPT = "What is this? If it cannot be seen say unanswerable."
YES_NO_CUE = "Answer yes or no."
WORD_CUE = "Answer with one word."
TEN = 10
"""Questions of a picture in ``easyvqa-ten``."""
EDIBLE_PROMPT = f"Can you eat this? {YES_NO_CUE}"

VERSION = digest_of(
    [EASY_VQA.sha256, *(sha256_file(path) for path in (Path(__file__).with_name("emoji.py"), ASSETS / "emoji.json"))]
    + [sha256_file(ASSETS / "emoji.zip")]
)
"""What the rows depend on beside this file."""


def kind(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Animal, food, vehicle or object? The options keep their order; each kind is equally frequent."""
    pool = emoji("kind-test" if split == "test" else "kind-train")
    turns = {
        group: _endless([e for e in pool if e.group == group], _draw(seed, "kind", split, group)) for group in KINDS
    }
    for number, draw in _numbers("kind", split, rows, seed):
        group = KINDS[number % len(KINDS)]
        item = next(turns[group])
        name = _save(single(item, draw)[0], image_dir, "kind", number)
        meta = {"choices": list(KINDS), "class": group, "object": item.name}
        yield _row(f"kind-{split}-{number}", name, KIND_PROMPT, "ABCD"[KINDS.index(group)], "letter", meta)


def edible(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Can it be eaten? Half of the pictures show food, half one of the other kinds; test objects are never trained on."""
    pool = emoji("kind-test" if split == "test" else "kind-train")
    food = _endless([e for e in pool if e.group == "food"], _draw(seed, "edible", split, "food"))
    other = _endless([e for e in pool if e.group != "food"], _draw(seed, "edible", split, "other"))
    answers = _endless((True, False), _draw(seed, "edible", split, "answers"))
    for number, draw in _numbers("edible", split, rows, seed):
        yes = next(answers)
        item = next(food if yes else other)
        name = _save(single(item, draw)[0], image_dir, "edible", number)
        meta = {"class": item.group, "object": item.name, "choices": ["yes", "no"]}
        yield _row(f"edible-{split}-{number}", name, EDIBLE_PROMPT, "yes" if yes else "no", "yes_no", meta)


def naming(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Which of thirty objects is it?"""
    turns = _endless(emoji("naming"), _draw(seed, "naming", split, "order"))
    for number, draw in _numbers("naming", split, rows, seed):
        item = next(turns)
        name = _save(single(item, draw)[0], image_dir, "naming", number)
        yield _row(f"naming-{split}-{number}", name, NAMING_PROMPT, item.name, "name", _named(item))


def naming_kinds(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """What kind of thing is it? The pictures of ``naming`` of the same split and seed, asked another question."""
    for row in naming(split, rows, seed, image_dir):
        meta = row["meta"]
        answer = GROUPS[meta["category"]]
        identity = row["id"].replace("naming", "naming-kinds")
        yield _row(identity, row["image"], GROUP_PROMPT, answer, "word", {**meta, "class": answer, "answers": [answer]})


def lowvision(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """What is it, if it can be seen at all? Every second picture is blurred or darkened beyond recognition."""
    turns = _endless(emoji("lowvision"), _draw(seed, "lowvision", split, "order"))
    hidden = _endless((True, False), _draw(seed, "lowvision", split, "hidden"))
    for number, draw in _numbers("lowvision", split, rows, seed):
        item, lost = next(turns), next(hidden)
        picture, _box = single(item, draw, smallest=80)
        name = _save((_spoiled if lost else _strained)(picture, draw), image_dir, "lowvision", number)
        answer = UNANSWERABLE if lost else item.name
        meta = {**_named(item), "answers": [answer], "visible": not lost}
        yield _row(f"lowvision-{split}-{number}", name, LOWVISION_PROMPT, answer, "phrase", meta)


def easyvqa(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Is there such a shape or colour? Equally often yes and no, for shapes and for colours."""
    groups = [(about, answer) for about in ("shape", "color") for answer in ("yes", "no")]
    yield from _easy("easyvqa", split, rows, seed, image_dir, groups, YES_NO_CUE, "yes_no")


def easyvqa_word(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Which colour or shape? Half of the questions are about colours; the answers of each half are equally frequent."""
    groups = [("word", (SHAPES, COLOURS)[turn % 2][turn // 2 % (3, 8)[turn % 2]]) for turn in range(48)]
    yield from _easy("easyvqa-word", split, rows, seed, image_dir, groups, WORD_CUE, "word")


def easyvqa_ten(split: str, rows: int, seed: int, image_dir: Path) -> Iterator[dict[str, Any]]:
    """Ten questions about each picture, word for word and of every kind: for measuring speed, not balanced."""
    by_image: dict[int, list[tuple[str, str]]] = {}
    with _published(split) as (archive, folder, questions):
        for question, answer, image in questions:
            by_image.setdefault(image, []).append((question, answer))
        draw = _draw(seed, "easyvqa-ten", split)
        images = sorted(image for image, asked in by_image.items() if len(asked) >= TEN)
        draw.shuffle(images)
        if rows > TEN * len(images):
            what = f"has no more than {TEN * len(images)} rows, ten a picture"
            raise DataError(what, where=f"easyvqa-ten[{split}]", fix="ask for fewer rows")
        for number in range(rows):
            image = images[number // TEN]
            if number % TEN == 0:
                name, asked = _picture(archive, folder, image, image_dir), draw.sample(by_image[image], TEN)
            question, answer = asked[number % TEN]
            style = "yes_no" if answer in ("yes", "no") else "word"
            meta = {"class": answer, "about": _about(question), "answers": [answer]}
            yield _row(f"easyvqa-ten-{split}-{number}", name, question, answer, style, meta)


GENERATORS: dict[str, Callable[[str, int, int, Path], Iterator[dict[str, Any]]]] = {
    "kind": kind,
    "edible": edible,
    "naming": naming,
    "naming-kinds": naming_kinds,
    "lowvision": lowvision,
    "easyvqa": easyvqa,
    "easyvqa-word": easyvqa_word,
    "easyvqa-ten": easyvqa_ten,
}


# ---- easy-vqa -------------------------------------------------------------------------------------------------------
def _easy(
    task: str,
    split: str,
    rows: int,
    seed: int,
    image_dir: Path,
    groups: Sequence[tuple[str, str]],
    cue: str,
    style: str,
) -> Iterator[dict[str, Any]]:
    """Published questions, taken from the groups (what about, answer) in turn; none is asked twice."""
    with _published(split) as (archive, folder, questions):
        pools: dict[tuple[str, str], list[tuple[str, int]]] = {group: [] for group in groups}
        for question, answer, image in questions:
            pools.get((_about(question), answer), []).append((question, image))
        for (about, answer), pool in pools.items():
            _draw(seed, task, split, about, answer).shuffle(pool)
        for number in range(rows):
            about, answer = groups[number % len(groups)]
            if not pools[about, answer]:
                raise DataError(
                    f"has no more than {number} balanced rows", where=f"{task}[{split}]", fix="ask for fewer rows"
                )
            question, image = pools[about, answer].pop()
            name = _picture(archive, folder, image, image_dir)
            meta = {"class": answer, "about": _subject(about, answer), "answers": [answer]}
            yield _row(f"{task}-{split}-{number}", name, f"{question} {cue}", answer, style, meta)


@contextlib.contextmanager
def _published(split: str) -> Iterator[tuple[zipfile.ZipFile, str, list[tuple[str, str, int]]]]:
    """The package, its folder of a split, and the questions in it: text, answer, picture; each once."""
    wheel = fetch_package(EASY_VQA, announce=lambda line: print(line, file=sys.stderr))
    folder = f"easy_vqa/data/{'test' if split == 'test' else 'train'}"
    with zipfile.ZipFile(wheel) as archive:
        found = json.loads(archive.read(f"{folder}/questions.json"))
        yield archive, folder, list(dict.fromkeys((q, a, int(image)) for q, a, image in found))


def _picture(archive: zipfile.ZipFile, folder: str, image: int, image_dir: Path) -> str:
    """The name of a published picture, stored enlarged."""
    name = f"easyvqa-{image}.png"
    if not (image_dir / name).exists():
        with Image.open(io.BytesIO(archive.read(f"{folder}/images/{image}.png"))) as picture:
            enlarged = picture.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        enlarged.save(image_dir / name)
    return name


def _about(question: str) -> str:
    """``shape`` or ``color`` for a plain yes/no question, ``negated`` for one with a negation, ``word`` for others."""
    words = re.findall(r"[a-z]+", question.lower())
    if words[0] not in ("is", "does"):
        return "word"
    if "not" in words or "no" in words:
        return "negated"
    return "shape" if any(shape in words for shape in SHAPES) else "color"


def _subject(about: str, answer: str) -> str:
    if about != "word":
        return about
    return "shape" if answer in SHAPES else "color"


# ---- pictures and rows ----------------------------------------------------------------------------------------------
def _spoiled(picture: Image.Image, draw: random.Random) -> Image.Image:
    """Beyond recognition."""
    if draw.random() < 0.5:
        return picture.filter(ImageFilter.GaussianBlur(draw.uniform(13, 20)))
    return ImageEnhance.Brightness(picture).enhance(draw.uniform(0.01, 0.03))


def _strained(picture: Image.Image, draw: random.Random) -> Image.Image:
    """Still to be recognised: a little blurred, a little dark, or as it is."""
    how = draw.random()
    if how < 0.4:
        return picture.filter(ImageFilter.GaussianBlur(draw.uniform(0.5, 2)))
    if how < 0.7:
        return ImageEnhance.Brightness(picture).enhance(draw.uniform(0.4, 0.8))
    return picture


def _save(picture: Image.Image, image_dir: Path, task: str, number: int) -> str:
    name = f"{task}-{number:05d}.png"
    picture.save(image_dir / name)
    return name


def _named(item: Emoji) -> dict[str, Any]:
    return {"class": item.name, "category": item.category, "answers": [item.name]}


def _row(identity: str, image: str, question: str, answer: str, style: str, meta: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": identity,
        "image": image,
        "conversations": [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}],
        "style": style,
        "meta": meta,
    }


def _draw(seed: int, *purpose: str | int) -> random.Random:
    return random.Random(seed_for(seed, "demo", *purpose))


def _numbers(task: str, split: str, rows: int, seed: int) -> Iterator[tuple[int, random.Random]]:
    for number in range(rows):
        yield number, _draw(seed, task, split, number)


def _endless(items: Sequence[T], draw: random.Random) -> Iterator[T]:
    """Every item once in a drawn order, then all of them again in another."""
    while True:
        yield from draw.sample(items, len(items))
