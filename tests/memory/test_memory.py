"""Remembering, recalling and forgetting with an encoder that counts words."""

import subprocess
import sys
from math import exp

import pytest

from mcit.memory.compact import extract
from mcit.memory.memory import Entry, Memory, MemoryConfig, pieces
from tests.fakes.memory import Bag


def memory(**config):
    return Memory(Bag(), extract, MemoryConfig(**config))


def told(held, count, *, first=0):
    for number in range(first, first + count):
        held.remember(f"what did name{number} draw", f"thing{number}")
    return held


def test_recalls_the_exchange_that_fits_and_changes_nothing_by_that():
    held = told(memory(), 20)
    before = (held.state(), [vars(entry).copy() for entry in held.entries])
    found = held.recall("what did name7 draw")
    assert found.hits[0].answer == "thing7" and found.hits[0].turn == 7 and len(found.hits) == 5
    assert found.summary and (held.state(), [vars(entry) for entry in held.entries]) == before


@pytest.mark.parametrize(("parts", "hits", "summary"), [("both", 5, 1), ("vector", 5, 0), ("compact", 0, 1)])
def test_parts(parts, hits, summary):
    found = told(memory(parts=parts), 20).recall("name3")
    assert (len(found.hits), len(found.summary)) == (hits, summary)
    assert memory(parts=parts).recall("x").hits == ()


def test_the_weight_by_hand_with_either_sign():
    for favours, fresh, stale in (("recalled", 0.5, 0.0), ("unrecalled", 0.0, 0.5)):
        held = memory(favours=favours)
        held.turns = 300
        assert held.weight(Entry(100, "q", "a", recalled=200)) == pytest.approx(exp(-0.4) + fresh)
        assert held.weight(Entry(100, "q", "a", recalled=199)) == pytest.approx(exp(-0.4) + stale)
        assert held.weight(Entry(100, "q", "a")) == pytest.approx(exp(-0.4) + stale)


def test_every_hundred_turns_one_in_two_hundred_is_dropped():
    """200 entries at turn 200: one goes; it is the oldest that was not recalled."""
    held = told(memory(), 199)
    assert len(held.entries) == 199  # at turn 100 half an entry, rounded down
    held.remember("q", "a", recalled=[0])
    assert len(held.entries) == len(held.vectors) == 199
    assert [entry.turn for entry in held.entries[:2]] == [0, 2]
    assert held.recall("what did name5 draw").hits[0].answer == "thing5"  # places moved together with vectors


def test_with_the_sign_of_the_formula_the_recalled_one_goes():
    held = told(memory(favours="unrecalled"), 199)
    held.remember("q", "a", recalled=[100])
    assert 100 not in [entry.turn for entry in held.entries] and held.entries[0].turn == 0


def test_a_capacity_holds_after_every_turn():
    held = memory(capacity=10)
    for number in range(30):
        told(held, 1, first=number)
        assert len(held.entries) == min(number + 1, 10)
    assert [entry.turn for entry in held.entries] == list(range(20, 30))


def test_long_texts_become_entries_that_hold_every_word():
    words = [f"w{k}" for k in range(30)]
    parts = pieces("ask", " ".join(words), 8)
    assert [question for question, _ in parts] == ["ask"] * 4
    assert " ".join(answer for _, answer in parts).split() == words
    assert pieces("a  b", "", 8) == [("a  b", "")]
    held = memory(piece=8)
    held.remember("ask", " ".join(words))
    assert len(held.entries) == 4 and held.turns == 1


def test_what_cannot_be_embedded_leaves_the_memory_as_it_was():
    held = told(memory(), 3)
    held.embed = lambda texts: (_ for _ in ()).throw(ValueError("no"))
    with pytest.raises(ValueError):
        held.remember("q", "a", recalled=[0])
    assert (held.turns, len(held.entries), len(held.vectors), held.entries[0].recalled) == (3, 3, 3, None)


def test_nothing_here_needs_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import mcit.memory.memory, mcit.memory.folder, mcit.memory.prompt, mcit.memory.retrieval"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
