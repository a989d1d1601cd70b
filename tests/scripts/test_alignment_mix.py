"""The base may not have seen what the tasks ask: no picture, object or sentence in common. And it is balanced."""

import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import alignment_mix
from alignment_mix import FIGURES, HINTS, mix

from mcit.data.sources import demo
from mcit.data.sources.emoji import PIXELS, emoji, picture_bytes

ROWS = 600
TASK_ROLES = ("naming", "lowvision", "kind-train", "kind-test")
EASY_VQA_QUESTIONS = (
    "is there a X shape in the image?",
    "is there a X?",
    "is a X shape present?",
    "does the image contain a X?",
    "does the image not contain a X?",
    "is no X present?",
    "is there not a X?",
    "what color is the X?",
    "what is the color of the X?",
    "what shape is in the image?",
    "what shape does the image contain?",
    "what shape is present?",
    "what is the X shape?",
)


@pytest.fixture(scope="module")
def examples():
    return list(mix(ROWS, 7))


_NAMES = sorted({item.name for item in emoji()} | {*FIGURES, *alignment_mix.COLOURS}, key=len, reverse=True)
_NAMED = re.compile(rf"\b({'|'.join(map(re.escape, _NAMES))})\b")


def _sentences(text):
    """Lower-case sentences with every object and colour replaced by X."""
    text = _NAMED.sub("X", re.sub(r"\ban (?=\w)", "a ", text.lower()))
    return {part.strip() for part in re.split(r"(?<=[.?])\s+", text) if len(part.strip()) > 3}


def test_no_source_picture_is_one_of_a_task():
    base = {hashlib.sha256(picture_bytes(item.short_name)).digest() for item in emoji("base")}
    tasks = {hashlib.sha256(picture_bytes(item.short_name)).digest() for role in TASK_ROLES for item in emoji(role)}
    assert len(base) >= 250 and len(tasks) >= 190 and not base & tasks


def test_no_object_of_a_task_is_shown_or_named(examples):
    forbidden = {item.name for role in TASK_ROLES for item in emoji(role)} | {*demo.SHAPES, demo.UNANSWERABLE, "teal"}
    forbidden |= {"animal", "food", "vehicle", "object"}
    shown = {name for example in examples for name, _ in example.objects}
    assert not shown & forbidden
    spoken = " ".join(text for e in examples for _, answer, style in e.questions for text in [answer] if style != "box")
    listed = {n.strip() for e in examples for q, _, s in e.questions if s == "letter" for n in _options(q)}
    assert not listed & forbidden
    for name in forbidden:
        assert not re.search(rf"\b{re.escape(name)}\b", spoken), name
    known = {item.name for item in emoji("base")}
    assert all(name in known or name.split()[-1] in FIGURES for name in shown)


def test_no_sentence_is_one_of_a_task_prompt(examples):
    prompts = [
        demo.KIND_PROMPT,
        demo.NAMING_PROMPT,
        demo.LOWVISION_PROMPT,
        demo.EDIBLE_PROMPT,
        demo.YES_NO_CUE,
        demo.WORD_CUE,
    ]
    asked = set().union(*(_sentences(text) for text in (*prompts, *EASY_VQA_QUESTIONS)))
    used = set().union(*(_sentences(question) for e in examples for question, _, _ in e.questions))
    assert len(used) > 20 and not asked & used


def test_every_question_says_how_to_answer(examples):
    for example in examples:
        assert len(example.questions) == alignment_mix.QUESTIONS
        for question, answer, style in example.questions:
            assert question.endswith(HINTS[style]) and answer


def test_the_same_seed_gives_the_same_examples_and_another_one_others(examples):
    again, other = list(mix(40, 7)), list(mix(40, 8))
    for one, two in zip(examples, again, strict=False):
        assert one.questions == two.questions and one.objects == two.objects
        assert one.image.tobytes() == two.image.tobytes()
    assert [e.questions for e in again] != [e.questions for e in other]


def test_shares_of_pictures_and_styles(examples):
    figures = sum(1 for e in examples if len(e.objects) == 1 and e.objects[0][0].split()[-1] in FIGURES)
    pairs = sum(1 for e in examples if len(e.objects) == 2)
    assert 0.12 < figures / ROWS < 0.23 and 0.32 < pairs / ROWS < 0.44
    styles = Counter(style for e in examples for _, _, style in e.questions)
    assert styles["box"] <= 0.08 * sum(styles.values())
    assert set(styles) == set(HINTS) and min(styles.values()) > 30


def test_answers_are_balanced(examples):
    """Four standard errors: yes among about 350 answers 50 +- 11 %; a letter among n options about 1 / n."""
    yes = [answer == "yes" for e in examples for _, answer, style in e.questions if style == "yes_no"]
    assert len(yes) > 200 and abs(sum(yes) / len(yes) - 0.5) < 0.11
    letters = [(len(_options(q)), a) for e in examples for q, a, s in e.questions if s == "letter"]
    for count in (2, 3, 4):
        given = Counter(a for n, a in letters if n == count)
        total = sum(given.values())
        assert total > 40 and set(given) == set("ABCD"[:count])
        assert max(given.values()) / total < 1 / count + 4 * ((1 / count) * (1 - 1 / count) / total) ** 0.5


def test_answers_are_true(examples):
    for example in examples:
        boxes = dict(example.objects)
        names = {word for name in boxes for word in (name, *([name.split()[-1]] if len(boxes) == 1 else []))}
        for question, answer, style in example.questions:
            if style == "letter":
                right = _options(question)["ABCD".index(answer)]
                assert right in boxes or any(name.startswith(f"{right} ") for name in boxes)
                assert sum(option in boxes for option in _options(question)) <= 1
            elif style == "name":
                assert answer in boxes
            elif style == "yes_no" and re.match("(Can you see|Does the picture show|Do you find) ", question):
                asked = re.search(r"(?:see|show|find) an? (.+?)(?: here| in this picture)?\?", question).group(1)
                assert (answer == "yes") == (asked in names), question
            elif style == "box":
                numbers = [float(part) * PIXELS for part in answer.strip("[]").split(",")]
                assert any(all(abs(a - b) < 2 for a, b in zip(numbers, box, strict=True)) for box in boxes.values())


def test_side_and_height_follow_from_the_boxes(examples):
    seen = Counter()
    for example in examples:
        centres = {name: ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for name, b in example.objects}
        for question, answer, _ in example.questions:
            if answer in ("above", "below"):
                one, other = sorted(centres, key=question.index)
                assert (answer == "above") == (centres[one][1] < centres[other][1]), question
            elif answer in ("left", "right"):
                mine = [name for name in centres if name in question or name.split()[-1] in question]
                name = max(mine, key=len)
                others = [x for other, (x, _) in centres.items() if other != name] or [PIXELS / 2]
                assert (answer == "left") == (centres[name][0] < others[0]), question
            else:
                continue
            seen[answer] += 1
    assert len(seen) == 4 and min(seen.values()) > 15


def test_boxes_lie_on_what_is_drawn(examples):
    """Outside the boxes there is ground alone."""
    for example in examples[:60]:
        plain = example.image.copy()
        corner = _ground(example)
        for _, box in example.objects:
            plain.paste(corner, (box[0], box[1], box[2] + 1, box[3] + 1))
            assert len(example.image.crop(box).getcolors(100_000)) > 1
        assert plain.getcolors() == [(PIXELS * PIXELS, corner)]


def _ground(example):
    last = PIXELS - 1
    for x, y in ((0, 0), (last, 0), (0, last), (last, last)):
        if all(not (b[0] <= x <= b[2] and b[1] <= y <= b[3]) for _, b in example.objects):
            return example.image.getpixel((x, y))
    raise ValueError("the boxes cover every corner")


def _options(question):
    listed = question[question.index("A. ") :]
    for hint in HINTS["letter"]:
        listed = listed.removesuffix(hint)
    return [part.strip() for part in re.split(r"\b[A-D]\. ", listed) if part.strip()]
