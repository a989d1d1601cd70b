"""What goes into a prompt: lengths are words here."""

import random

import pytest

from mcit.core.errors import DataError
from mcit.core.types import Turn
from mcit.memory.memory import Hit, Recalled
from mcit.memory.prompt import fitted


class Words:
    """Each turn costs its words and two more."""

    def prompt(self, turns, question):
        return sum(self.text(turn.text) + 2 for turn in turns) + self.text(question) + 2

    def text(self, text):
        return len(text.split())


def dialogue(count):
    return tuple(t for k in range(count) for t in (Turn("user", f"q{k}"), Turn("assistant", f"a{k}")))


def hit(turn, *, words=1, place=None):
    return Hit(turn if place is None else place, 0.9, turn, f"old{turn}", "said " * words)


def test_everything_fits():
    memory = Recalled(("Sum.",), (hit(5), hit(2)))
    turns, asked, shown = fitted(dialogue(3), "why", memory, said=20, budget=100, measure=Words())
    assert [turn.text for turn in turns[::2]] == ["old2", "old5", "q0", "q1", "q2"]
    assert asked.endswith("\n\nwhy") and "Sum." in asked and {h.turn for h in shown} == {2, 5}


def test_what_is_shown_as_a_turn_of_the_dialogue_is_not_shown_again():
    """The memory's turns 17 to 19 are the dialogue's three."""
    turns, _, shown = fitted(dialogue(3), "why", Recalled((), (hit(18), hit(4))), said=20, budget=100, measure=Words())
    assert [h.turn for h in shown] == [4] and len(turns) == 8


def test_when_room_is_scarce_the_oldest_turns_go_then_the_worst_hits():
    found = Recalled((), (hit(1), hit(2), hit(3)))
    turns, _, shown = fitted(dialogue(50), "why", found, said=60, budget=40, measure=Words())
    assert [h.turn for h in shown] == [1, 2] and turns[-1].text == "a49"  # half of 37 has room for two of six tokens
    assert Words().prompt(turns, "why") <= 40


def test_a_question_longer_than_the_budget_is_refused():
    with pytest.raises(DataError, match="alone takes 7 tokens of a prompt of 6") as refused:
        fitted((), "a b c d e", Recalled(), said=0, budget=6, measure=Words())
    assert refused.value.where == "--budget" and "7" in refused.value.fix


def test_a_summary_without_room_is_left_out():
    assert fitted((), "a b", Recalled(("S " * 50,)), said=9, budget=10, measure=Words()) == ((), "a b", ())


def test_no_prompt_is_ever_longer():
    draw = random.Random(0)
    for _ in range(300):
        said = draw.randint(0, 30)
        hits = tuple(hit(k, words=draw.randint(0, 9), place=k) for k in draw.sample(range(40), draw.randint(0, 6)))
        budget, summary = draw.randint(3, 80), ("S " * draw.randint(1, 30),) * draw.randint(0, 2)
        turns, asked, shown = fitted(
            dialogue(draw.randint(0, said)), "w", Recalled(summary, hits), said=40, budget=budget, measure=Words()
        )
        assert Words().prompt(turns, asked) <= budget
        assert [t.role for t in turns] == ["user", "assistant"] * (len(turns) // 2) and set(shown) <= set(hits)
