"""General samples: what they are, that they repeat, and that they are in no task."""

import re

import pytest
from PIL import Image

from mcit.core.errors import DataError
from mcit.core.fetch import NeedsDownload, is_cached, without_network
from mcit.data.recipe import find_generator, find_recipe, load_recipe, recipe_digest
from mcit.data.sources import demo, general
from mcit.data.sources.emoji import emoji
from mcit.data.sources.general import ASSETS, GENERATORS, QUIZ

OFFLINE = [name for name in GENERATORS if name != "general-dialogue"]


def rows(name, count, tmp_path, *, seed=1, split="train"):
    return list(find_generator(name)(split, count, seed, tmp_path))


@pytest.mark.parametrize("name", OFFLINE)
def test_rows_repeat_and_depend_on_the_seed(name, tmp_path):
    first = rows(name, 20, tmp_path)
    assert rows(name, 20, tmp_path) == first and rows(name, 20, tmp_path, seed=2) != first
    assert len({row["id"] for row in first}) == len(first)


def test_plain_texts_are_sentences_without_a_conversation(tmp_path):
    found = rows("general-text", 150, tmp_path)
    assert all(set(row) == {"id", "text"} and row["text"][0].isupper() and row["text"].endswith(".") for row in found)
    assert len({row["text"] for row in found}) == 150


def test_quiz_has_the_stated_shares(tmp_path):
    """200 rows: 90 capitals, 30 states, 30 elements, 25 opposites, 15 groups, 10 young animals; half of it halves them."""
    found = [row["conversations"] for row in rows("general-quiz", 200, tmp_path)]
    assert len(found) == sum(QUIZ.values()) == 200
    assert sum("capital of the US" in q["value"] for q, _ in found) == 30
    assert sum("symbol" in q["value"] for q, _ in found) == 30
    assert len(rows("general-quiz", 100, tmp_path)) == 100
    known = {q["value"]: a["value"] for q, a in found}
    answers = {"What is the capital of Kenya?": "Nairobi", "What is the chemical symbol of iron?": "Fe"}
    assert all(known.get(question, answer) == answer for question, answer in answers.items())


def test_sums_are_right(tmp_path):
    for row in rows("general-sums", 50, tmp_path):
        question, answer = (turn["value"] for turn in row["conversations"])
        a, sign, b = re.fullmatch(r"What is (\d+) ([+-]) (\d+)\?", question).groups()
        assert int(answer) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) and int(answer) >= 0


def test_nothing_is_shared_with_the_tasks_of_the_demo(tmp_path):
    """Pictures show objects of role base only; no question is worded as a task's."""
    found = rows("general-pictures", 100, tmp_path)
    names = {row["conversations"][1]["value"] for row in found}
    tasks = {item.name for role in ("naming", "lowvision", "kind-train", "kind-test") for item in emoji(role)}
    assert len(names) > 90 and names <= {item.name for item in emoji("base")} and not names & tasks
    assert Image.open(tmp_path / found[0]["image"]).size == (128, 128)
    asked = {row["conversations"][0]["value"].removeprefix("<image>\n") for row in found}
    prompts = {demo.KIND_PROMPT, demo.NAMING_PROMPT, demo.LOWVISION_PROMPT, demo.EDIBLE_PROMPT}
    assert asked == set(general.SEES) and not asked & prompts


def test_more_rows_than_there_are_is_refused(tmp_path):
    with pytest.raises(DataError, match="600 rows are asked for, there are 500"):
        rows("general-words", 600, tmp_path)


def test_the_bundle_states_its_licences():
    assert "Princeton" in (ASSETS / "LICENSE-wordnet.txt").read_text()
    assert "Regents of the University of California" in (ASSETS / "LICENSE-bsdgames.txt").read_text()


def test_the_dialogue_is_downloaded_only_when_it_is_used(tmp_path):
    """The recipe is read, and its digest made, without the package; a plan says that it has to be fetched."""
    recipe = load_recipe(find_recipe("general/default"))
    assert sum(source.rows for source in recipe.sources) == 1080 and recipe_digest(recipe)
    assert not is_cached(general.DIALOGUE)
    with without_network(), pytest.raises(NeedsDownload, match="chatterbot-corpus 1.3.3"):
        rows("general-dialogue", 5, tmp_path)


def test_dialogue_keeps_facts(tmp_path, monkeypatch):
    """From a package of the same layout: a fact is kept once, with its first answer; persons and robots are left out."""
    import zipfile

    wheel = tmp_path / "fake.whl"
    pairs = [
        ("what is chemistry", "the science of mixing chemicals."),
        ("What is chemistry?", "Another."),
        ("WHO WROTE HAMLET", "SHAKESPEARE"),
        ("what do you eat", "electricity"),
        ("I like wine", "Good."),
        ("what is a robot", "a machine"),
    ]
    with zipfile.ZipFile(wheel, "w") as archive:
        for topic in general.TOPICS:
            lines = [f"- - {question!r}\n  - {answer!r}\n" for question, answer in pairs]
            archive.writestr(f"chatterbot_corpus/data/english/{topic}.yml", "conversations:\n" + "".join(lines))
    monkeypatch.setattr(general, "fetch_package", lambda pin: wheel)
    found = {tuple(t["value"] for t in row["conversations"]) for row in rows("general-dialogue", 2, tmp_path)}
    assert found == {("What is chemistry?", "The science of mixing chemicals."), ("Who wrote hamlet?", "Shakespeare")}
