"""Soft accuracy against several references."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcit.evals.scorers.vqa import Vqa


@pytest.mark.parametrize(("k", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_t5_ten_references(k: int, expected: float) -> None:
    """Oracle T5. k = 1: the nine that leave another one out see one match, 9 x 1/3 / 10 = 0.3; k = 2: the eight
    others see two, the two see one: (8 x 2/3 + 2 x 1/3) / 10 = 0.6; k = 3: (7 x 1 + 3 x 2/3) / 10 = 0.9; k = 4: 1."""
    gold = {"answer": "x", "answers": ["cat"] * k + [f"w{i}" for i in range(10 - k)]}
    assert Vqa().strict("cat", gold) == pytest.approx(expected, abs=1e-12)


def test_t5_number_words() -> None:
    """Oracle T5: "Two" with references 2, 2, two and seven times 3 has three matches: 0.9."""
    gold = {"answer": "2", "answers": ["2", "2", "two", *["3"] * 7]}
    assert Vqa().strict("Two", gold) == pytest.approx(0.9)
    assert Vqa().fixed("Two", gold) == pytest.approx(0.9)


def test_modes_differ_in_the_normaliser_only() -> None:
    gold = {"answer": "I'm", "answers": ["i'm"] * 10}
    assert Vqa().strict("Im", gold) == 0.0
    assert Vqa().fixed("Im", gold) == 1.0


def test_fewer_references() -> None:
    """One: equality. Two, one of them equal: leaving it out 0, leaving the other out 1: mean 0.5."""
    assert Vqa().strict("cat", {"answer": "cat"}) == 1.0
    assert Vqa().strict("cat", {"answers": ["cat", "dog"], "answer": "cat"}) == 0.5
    assert Vqa().strict("cat", {"answers": ["cat", "cat"], "answer": "cat"}) == 1.0


@given(st.lists(st.sampled_from(["cat", "dog", "bird"]), min_size=2, max_size=10))
@settings(max_examples=100, deadline=None)
def test_equals_the_plain_definition_and_ignores_order(answers: list[str]) -> None:
    needed = min(3, len(answers) - 1)
    plain = sum(
        min(1.0, sum(a == "cat" for a in others) / needed)
        for others in itertools.combinations(answers, len(answers) - 1)
    ) / len(answers)
    score = Vqa().strict("cat", {"answers": answers, "answer": ""})
    assert score == pytest.approx(plain)
    assert score == Vqa().strict("cat", {"answers": answers[::-1], "answer": ""})
