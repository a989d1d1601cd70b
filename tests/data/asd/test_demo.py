"""Rules and templates of the bundled tasks: true to the metadata, within the limits of the quality filter, varied."""

import functools
import random
import re
import tempfile
from pathlib import Path

import pytest

from mcit.data.asd.cells import Corpus
from mcit.data.asd.cues import LIMITS
from mcit.data.asd.demo import DEMO_CELLS
from mcit.data.asd.diversify import Job
from mcit.data.asd.exchange import exchanges_of
from mcit.data.asd.writing.review import review
from mcit.data.recipe import find_generator
from mcit.data.sources.emoji import emoji
from mcit.evals.normalise import normalise
from tests.fakes.rows import read_values

NATIVE = {
    "kind": "mcq",
    "edible": "yn",
    "naming": "short",
    "lowvision": "short",
    "shapes-letter": "mcq",
    "shapes-yesno": "yn",
    "shapes-word": "short",
}


@functools.cache
def corpus(task):
    with tempfile.TemporaryDirectory() as folder:
        values = list(find_generator(task)("train", 96, 1, Path(folder)))
    rows, _ = read_values(values, task=task, label=task)
    return Corpus(rows, [exchanges_of(r, native=NATIVE[task]) for r in rows])


def written(task, style):
    """(row, exchange, content) for every row."""
    found = corpus(task)
    for number, (row, parts) in enumerate(zip(found.rows, found.exchanges, strict=True)):
        yield row, parts[0], DEMO_CELLS[task][style](row, parts[0], found, random.Random(number))


@pytest.mark.parametrize("task", NATIVE)
def test_every_foreign_style_has_a_rule_for_every_row(task):
    assert set(DEMO_CELLS[task]) == {"yn", "mcq", "short", "brief", "detail"} - {NATIVE[task]}
    for style in DEMO_CELLS[task]:
        assert all(content is not None for _, _, content in written(task, style))


@pytest.mark.parametrize("style", ["brief", "detail"])
@pytest.mark.parametrize("task", NATIVE)
def test_explanations_pass_the_quality_filter(task, style):
    """The filter that a model's explanations go through: length, the answer named, no talk of the task."""
    texts = set()
    for row, part, content in written(task, style):
        job = Job(0, row, style, (part,), None)
        reply = '{"explanation": "' + content.text.replace('"', "'") + '"}'
        assert review(job, "single", reply, normalise=normalise, limits=LIMITS).reasons == (), content.text
        assert re.fullmatch(r"[A-Z].*\.", content.text) and "  " not in content.text
        texts.add(content.text)
    assert len(texts) >= (3 if task.startswith("shapes") else 20)


@pytest.mark.parametrize("task", ["naming", "lowvision", "shapes-word"])
def test_wrong_answers_are_other_answers_of_the_task(task):
    answers = {r.answer for r in corpus(task).rows}
    for style, count in (("yn", 1), ("mcq", 3)):
        for _, part, content in written(task, style):
            assert len(set(content.distractors)) == count and set(content.distractors) <= answers - {part.answer}


def test_edible_options_need_object_and_verdict():
    """One wrong option has the right verdict with another object, two have the opposite verdict."""
    truth = {r.meta["object"]: r.answer for r in corpus("edible").rows}
    for row, _, content in written("edible", "mcq"):
        options = (content.answer, *content.distractors)
        verdicts = [text.split(", this shows ")[0] for text in options]
        assert verdicts.count(row.answer) == 2 and len(set(options)) == 4
        things = [text.split(", this shows ")[1].removeprefix("an ").removeprefix("a ") for text in options]
        assert things[0] == row.meta["object"]
        assert all(truth[thing] == verdict for thing, verdict in zip(things, verdicts, strict=True))


def test_edible_asks_for_the_thing_and_never_for_its_kind():
    for row, _, content in written("edible", "short"):
        assert content.text == row.meta["object"]
        assert ("cannot" in content.question) == (row.answer == "no")
    spoken = " ".join(c.text for style in ("brief", "detail") for _, _, c in written("edible", style))
    assert not re.search(r"\b(animal|vehicle)\b", spoken)  # the words that another task answers with


def test_no_proposal_gives_the_answer_away_in_lowvision():
    """Half of the rows are unanswerable, so about half of the wrong proposals for visible ones must be too."""
    wrong = [c.distractors[0] for row, _, c in written("lowvision", "yn") if row.meta["visible"]]
    share = wrong.count("unanswerable") / len(wrong)
    assert len(wrong) == 48 and 0.28 < share < 0.76  # 0.52 expected, standard deviation 0.07


def test_shapes_yes_no_is_turned_into_a_question_for_the_colour():
    for row, _, content in written("shapes-yesno", "short"):
        assert content.text == row.meta["class"] and content.question.startswith("Which colour is the ")
    for row, _, content in written("shapes-yesno", "mcq"):
        assert {content.answer, *content.distractors} == {"red", "green", "blue", "yellow"}
        assert content.answer == row.meta["class"]


def test_another_form_of_question_is_left_alone():
    found = corpus("shapes-yesno")
    odd = exchanges_of(found.rows[0], native="yn")[0].__class__("Red?", "yes")
    for style in DEMO_CELLS["shapes-yesno"]:
        assert DEMO_CELLS["shapes-yesno"][style](found.rows[0], odd, found, random.Random(0)) is None


def test_articles_of_every_object():
    """Names that end in s are listed as several, except for these."""
    from mcit.data.asd.demo import _NO_ARTICLE, _SEVERAL

    names = {item.name for role in ("kind-train", "naming", "lowvision") for item in emoji(role)}
    plural = {name for name in names if name.endswith("s")}
    assert plural - _SEVERAL <= {"bus", "minibus", "octopus", "cactus", "dress"}
    assert _SEVERAL < _NO_ARTICLE


def test_words_of_the_tasks_own_test_objects_do_not_appear():
    """Objects kept for the test of kind and edible are named nowhere in their training rows."""
    held = {item.name for item in emoji("kind-test")}
    spoken = " ".join(
        text
        for task in ("kind", "edible")
        for style in DEMO_CELLS[task]
        for _, _, c in written(task, style)
        for text in (c.text, c.answer, *c.distractors)
    )
    assert not [name for name in held if re.search(rf"\b{re.escape(name)}\b", spoken)]
