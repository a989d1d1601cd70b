"""What a model is asked for, in our own words, and the JSON it must reply with.

=========================  ==================================================================================
question of the row        reply
=========================  ==================================================================================
one, ``yn``                ``{"distractor_option": …}``
one, ``mcq``               ``{"distractor_options": [3]}``
one, ``brief``/``detail``  ``{"explanation": …}``; for a class name ``{"gt_category", "explanation"}``
several                    list of ``{"question_index", "question", "correct_answer"}`` with one of the keys above
boxes                      list of ``{"target_index", "description"}``
=========================  ==================================================================================

These are the shapes of the published prompts (arXiv:2505.02486, released prompt files); the sentences are ours. A reply
to several questions echoes index and answer, so that one that drifted can be told. The published prompts for explanations
echo ``answer`` in place of ``correct_answer`` and ask for a list even of one question: both are read too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mcit.data.asd.diversify import Job
from mcit.data.asd.exchange import Exchange
from mcit.data.images import resolve_below

PROMPT_VERSION = 1
"""Goes up with every change of a sentence; part of each answer's provenance."""
WORDS = {"brief": 20, "detail": 50}
Shape = Literal["single", "list", "class", "targets"]

_SYSTEM = {
    "yn": "You help to build questions for training a vision-language model. You write wrong answers.",
    "mcq": "You help to build questions for training a vision-language model. You write wrong answers.",
    "brief": "You help to build questions for training a vision-language model. You write explanations.",
    "detail": "You help to build questions for training a vision-language model. You write explanations.",
}
_ONLY_JSON = "Reply with JSON only, exactly in this form:"


@dataclass(frozen=True)
class Prompt:
    """One message to a model."""

    system: str
    text: str
    images: tuple[str, ...]
    """Paths of the pictures, in order."""


def shape_of(job: Job, cells: str) -> Shape:
    """Which reply the job's prompt asks for."""
    explains = job.style in WORDS
    if explains and all(exchange.is_box for exchange in job.exchanges):
        return "targets"
    if len(job.exchanges) > 1:
        return "list"
    return "class" if explains and cells == "classes" else "single"


def prompt_for(job: Job, shape: Shape, *, limits: Mapping[str, tuple[int, int]], refused: Sequence[str] = ()) -> Prompt:
    """The prompt of a job; `refused` are the reasons against the last reply, if there was one.

    Raises DataError for a picture outside its root.
    """
    parts = [
        _task(job, shape, limits),
        _inputs(job, shape),
        f"{_ONLY_JSON}\n{json.dumps(_example(job, shape), ensure_ascii=False, indent=1)}",
    ]
    if refused:
        parts.append(f"An earlier reply was refused: {'; '.join(refused)}. Avoid this.")
    images = tuple(str(resolve_below(job.row.root, image, where=job.row.where)) for image in job.row.images)
    return Prompt(_SYSTEM[job.style], "\n\n".join(parts), images)


def ocr_tokens(exchange: Exchange) -> str:
    """Tokens of a ``Reference OCR token:`` line of the question; empty if there is none."""
    for line in exchange.question.split("\n"):
        if line.startswith("Reference OCR token:"):
            return line.removeprefix("Reference OCR token:").strip()
    return ""


def _task(job: Job, shape: Shape, limits: Mapping[str, tuple[int, int]]) -> str:
    look = "Look at the image and at" if job.row.images else "Look at"
    if job.style in WORDS:
        low, high = limits[job.style]
        length = f"about {WORDS[job.style]} words (never fewer than {low} or more than {high})"
        if shape == "targets":
            return (
                f"The image holds the regions listed below. A region is [x1, y1, x2, y2]: left, top, right and bottom edge "
                f"as shares of width and height. Describe what is shown in each, in {length} each."
            )
        if shape == "class":
            return (
                f"{look} the class name below. Explain in {length} by which visible features one can tell that this is "
                f"the class. Name the class."
            )
        return (
            f"{look} the question and its correct answer below. Explain in {length} why the answer is correct. Name the "
            f"answer itself. Say only what the question, the answer and the image support."
        )
    count = "one wrong answer" if job.style == "yn" else "three wrong answers"
    text = (
        f"{look} the question and its correct answer below. Write {count} to it: of the same kind and length as the "
        f"correct one and plausible, yet clearly wrong for this image. No wrong answer may repeat, contain or be part of "
        f"the correct answer or another wrong one."
    )
    if any(ocr_tokens(exchange) for exchange in job.exchanges):
        text += " Take the wrong answers from the words read in the image (the reference OCR tokens), where they suit."
    return text


def _inputs(job: Job, shape: Shape) -> str:
    if shape == "targets":
        return "\n".join(f"Region {number}: {e.answer}" for number, e in enumerate(job.exchanges, start=1))
    if shape == "class":
        return f"Class: {job.exchanges[0].answer}"
    if shape == "single":
        return f"Question: {job.exchanges[0].asked}\nCorrect answer: {job.exchanges[0].answer}"
    return "\n".join(
        f"Question {number}: {e.asked}\nCorrect answer {number}: {e.answer}"
        for number, e in enumerate(job.exchanges, start=1)
    )


def _example(job: Job, shape: Shape) -> object:
    if shape == "targets":
        return [{"target_index": k, "description": "..."} for k, _ in enumerate(job.exchanges, start=1)]
    forms: dict[str, dict[str, object]] = {
        "yn": {"distractor_option": "..."},
        "mcq": {"distractor_options": ["...", "...", "..."]},
    }
    wanted = forms.get(job.style, {"explanation": "..."})
    if shape == "class":
        return {"gt_category": job.exchanges[0].answer, **wanted}
    if shape == "single":
        return wanted
    return [
        {"question_index": k, "question": e.question, "correct_answer": e.answer, **wanted}
        for k, e in enumerate(job.exchanges, start=1)
    ]
