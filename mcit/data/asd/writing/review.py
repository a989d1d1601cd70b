"""Whether a model's reply can be used, and every reason why not.

The paper's own filter is not published; this one is ours. It looks at form, and at content as far as rules can: it
does not see the picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcit.data.asd.assemble import Content
from mcit.data.asd.cells import NEEDED
from mcit.data.asd.cues import words
from mcit.data.asd.diversify import Job
from mcit.data.asd.exchange import Exchange
from mcit.data.asd.writing.prompts import Shape
from mcit.data.asd.writing.repair import read_lenient

Normalise = Callable[[str], str]
"""The answer normaliser of the VQA benchmarks, handed in by the caller."""
_LEAKS = re.compile(
    r"ground[ -]truth|(?:provided|given|gold) answer|\bsorry\b|apologi[sz]e|\bas an ai\b|"
    r"\bi (?:cannot|can't|am unable)\b",
    re.IGNORECASE,
)
_ECHOES = ("correct_answer", "answer")
"""Keys under which the right answer is echoed: that of the published distractor prompts, and of those for explanations."""


@dataclass(frozen=True)
class Review:
    """Contents for each question of the row, or reasons (never both)."""

    content: tuple[Content, ...]
    reasons: tuple[str, ...]


def review(
    job: Job, shape: Shape, reply: str, *, normalise: Normalise, limits: Mapping[str, tuple[int, int]]
) -> Review:
    """Judge a reply; all reasons of all questions together, each once."""
    try:
        value = read_lenient(reply)
    except ValueError as error:
        return Review((), (f"unparsable JSON ({error})",))
    items, reasons = _aligned(value, shape, len(job.exchanges))
    contents: list[Content] = []
    for item, exchange in zip(items, job.exchanges, strict=False):
        content, found = _item(item, job, exchange, shape, normalise, limits)
        contents.append(content)
        reasons += found
    if reasons:
        return Review((), tuple(dict.fromkeys(reasons)))
    return Review(tuple(contents), ())


def _aligned(value: Any, shape: Shape, count: int) -> tuple[list[Mapping[str, Any]], list[str]]:
    """One object per question, in the questions' order."""
    if shape in ("single", "class"):
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        return ([value], []) if isinstance(value, dict) else ([], ["not a JSON object"])
    if isinstance(value, dict) and count == 1:
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return [], ["not a JSON list of objects"]
    if len(value) != count:
        return [], [f"{len(value)} items for {count} questions"]
    key = "target_index" if shape == "targets" else "question_index"
    by_index = {str(item.get(key)): item for item in value}
    if set(by_index) != {str(k) for k in range(1, count + 1)}:
        return [], [f"'{key}' does not run from 1 to {count}"]
    return [by_index[str(k)] for k in range(1, count + 1)], []


def _item(
    item: Mapping[str, Any],
    job: Job,
    exchange: Exchange,
    shape: Shape,
    normalise: Normalise,
    limits: Mapping[str, tuple[int, int]],
) -> tuple[Content, list[str]]:
    reasons = _echo_problems(item, exchange, shape, normalise)
    if job.style in NEEDED:
        content, found = _wrong(item, job, exchange, normalise)
    else:
        key = "description" if shape == "targets" else "explanation"
        content, found = _explained(item.get(key), key, job.style, exchange, normalise, limits)
    return content, reasons + found


def _echo_problems(item: Mapping[str, Any], exchange: Exchange, shape: Shape, normalise: Normalise) -> list[str]:
    """An answer that is echoed must be the row's; a list and a class must echo it, one question alone need not."""
    keys = ("gt_category",) if shape == "class" else _ECHOES if shape in ("list", "single") else ()
    given = [key for key in keys if key in item] or list(keys[:1] if shape != "single" else ())
    gold = normalise(exchange.answer)
    return [f"'{key}' is not the row's answer" for key in given if normalise(str(item.get(key, ""))) != gold]


def _wrong(item: Mapping[str, Any], job: Job, exchange: Exchange, normalise: Normalise) -> tuple[Content, list[str]]:
    """Distractors: as many as needed, unlike the answer, every accepted answer and each other."""
    key = "distractor_option" if job.style == "yn" else "distractor_options"
    value = item.get(key)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        return Content(), [f"'{key}' is missing or empty"]
    texts = [text.strip() for text in texts]
    reasons = []
    if len(texts) != NEEDED[job.style]:
        reasons.append(f"{len(texts)} distractors, {NEEDED[job.style]} wanted")
    gold, plain = normalise(exchange.answer), [normalise(text) for text in texts]
    accepted = {normalise(str(answer)) for answer in _accepted(job)} - {gold}
    for number, text in enumerate(plain):
        if text == gold:
            reasons.append("a distractor is the answer")
        elif text in accepted:
            reasons.append("a distractor is an accepted answer")
        elif not text or _part(text, gold) or _part(gold, text):
            reasons.append("a distractor contains the answer or is part of it")
        if text in plain[:number]:
            reasons.append("a distractor is repeated")
    if any(_LEAKS.search(text) for text in texts):
        reasons.append("speaks of the task or apologises")
    return Content(distractors=tuple(texts)), reasons


def _explained(
    value: Any,
    key: str,
    style: str,
    exchange: Exchange,
    normalise: Normalise,
    limits: Mapping[str, tuple[int, int]],
) -> tuple[Content, list[str]]:
    """Text of the right length that names the answer and does not speak of the task."""
    if not isinstance(value, str) or not value.strip():
        return Content(), [f"'{key}' is missing or empty"]
    text = " ".join(value.split())
    low, high = limits[style]
    reasons = []
    if words(text) < low:
        reasons.append(f"fewer than {low} words")
    if words(text) > high:
        reasons.append(f"more than {high} words")
    opposite = {"yes": "no", "no": "yes"}.get(exchange.answer.strip().removesuffix(".").lower())
    if opposite and _words(text.lower())[:1] == [opposite]:
        reasons.append("contradicts the answer")
    if not exchange.is_box and not _part(normalise(exchange.answer), normalise(text)):
        reasons.append("does not name the answer")
    if _LEAKS.search(text):
        reasons.append("speaks of the task or apologises")
    return Content(text=text), reasons


def _accepted(job: Job) -> Sequence[Any]:
    """Answers that annotators gave, where the row knows them."""
    found = job.row.meta.get("answers", [])
    return found if isinstance(found, list) and len(job.exchanges) == 1 else []


def _part(one: str, other: str) -> bool:
    """Whether the words of `one` stand in `other`, in order and together."""
    return bool(one) and f" {' '.join(_words(one))} " in f" {' '.join(_words(other))} "


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s.,;:!?\"'()]+", text)
