"""Lists of states."""

import pytest

from mcit.evals.scorers.mapqa import MapQa

LIST = {"question": "Which states are shown in red?", "answer": "ohio,texas,utah"}


def test_t13() -> None:
    """Oracle T13: two of three named; with a blank after the comma only the first part is equal."""
    assert MapQa().strict("texas,ohio", LIST) == pytest.approx(2 / 3)
    assert MapQa().strict("texas, ohio", LIST) == pytest.approx(1 / 3)
    assert MapQa().fixed("Texas, Ohio", LIST) == pytest.approx(2 / 3)


def test_one_state() -> None:
    one = {**LIST, "answer": "ohio"}
    assert [MapQa().fixed(text, one) for text in ("Ohio", "utah", "")] == [1, 0, 0]


def test_naming_everything_pays_only_in_strict() -> None:
    everything = "ohio,texas,utah,maine,iowa,idaho"
    assert MapQa().strict(everything, LIST) == 1
    assert MapQa().fixed(everything, LIST) == pytest.approx(3 / 6)


def test_other_questions_are_containment() -> None:
    gold = {"question": "What is the value of Ohio?", "answer": "10"}
    assert MapQa().strict("it is 100", gold) == 1
    assert MapQa().fixed("it is 100", gold) == 0
    assert MapQa().fixed("it is 10.", gold) == 1
    assert MapQa().strict("10 Unanswerable", gold) == 0
