"""scripts/memory_study.py: the dialogue it makes up, what it counts as shown, and what it measures again."""

import json
import random

import pytest

from mcit.core.types import Turn
from mcit.memory.compact import extract
from mcit.memory.memory import Memory, MemoryConfig
from scripts import memory_study as study
from tests.fakes.memory import Bag

ASIDES = [("Can you eat a pear?", "yes"), ("Can you eat a shoe?", "no")]


class Words:
    """Lengths in words."""

    def prompt(self, turns: tuple[Turn, ...], question: str) -> int:
        return sum(len(turn.text.split()) for turn in turns) + len(question.split())

    def text(self, text: str) -> int:
        return len(text.split())


def test_a_dialogue_is_the_seed_s_and_each_of_its_facts_is_said_once():
    said, facts = study.dialogue(["pear", "shoe"], ASIDES, turns=200, seed=1)
    assert (
        (said, facts)
        == study.dialogue(["pear", "shoe"], ASIDES, turns=200, seed=1)
        != study.dialogue(["pear", "shoe"], ASIDES, turns=200, seed=2)
    )
    assert len(said) == 200 and 90 < len(facts) < 150 and len({fact.name for fact in facts}) == len(facts)
    assert all(said[fact.turn] == (fact.question, fact.said) for fact in facts)
    assert len(set(study.names(4000, random.Random(0)))) == 4000


def test_an_old_fact_is_shown_with_a_memory_and_not_without():
    said, facts = study.dialogue(["pear", "shoe"], ASIDES, turns=100, seed=0)
    memory = Memory(Bag(), extract, MemoryConfig(parts="vector", hits=1))
    for question, answer in said:
        memory.remember(question, answer)
    for fact, old in ((facts[0], True), (facts[-1], False)):
        for held in (None, memory):
            history = study.Asked(said, held, budget=60)
            turns, asked = history.before((), fact.question, Words())
            assert history.shows(fact) == (held is not None or not old) and Words().prompt(turns, asked) <= 60


def test_a_share_by_hand():
    """Wilson's interval of 1 of 2 at 95 %: 0.0945 to 0.9055."""
    one = study.share([True, False])
    assert one["share"] == 0.5 and [round(x, 4) for x in one["interval"]] == [0.0945, 0.9055]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("recall", ["--facts x", "--turns 9", "--questions 9", "--hits 9", "--budget 9"]),
        ("retrieval", ["--facts x", "--chunks 9", "--questions 9"]),
        ("latency", ["--questions 9"]),
    ],
)
def test_a_result_is_named_by_all_it_depends_on(kind, more):
    names = [
        study.named("part", study.arguments([kind, "--json", "x.json", *option.split()]))
        for option in ("", "--model x", "--set a=1", "--set a=2", "--encoder x", "--layer 1", "--seed 9", *more)
    ]
    assert len(set(names)) == len(names) and all(name.startswith("part, model ") for name in names)


def test_what_was_measured_under_the_same_settings_is_not_measured_again(tmp_path, monkeypatch):
    """With another number of questions it is."""
    made = []
    monkeypatch.setattr(
        study, "measured", lambda args: [(study.named("9 entries", args), lambda: made.append(args.questions))]
    )
    for questions in ("5", "5", "6"):
        assert study.main(["latency", "--questions", questions, "--json", str(tmp_path / "l.json")]) == 0
    assert made == [5, 6] and len(json.loads((tmp_path / "l.json").read_text())) == 2
