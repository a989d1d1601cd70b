"""What every scorer file must keep to."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcit.core import lookup
from mcit.core.errors import DataError
from mcit.evals.scorers.base import MODES, Scorer, references

NAMES = lookup.known("evals.scorers")
GOLD = {"answer": "B", "answers": ["B", "b"], "choices": ["x", "y"], "box": [0, 0, 1, 1], "question": "Which states?"}


def test_the_files_are_found() -> None:
    assert {"exact", "vqa", "choice", "contains", "name", "grounding", "gqa", "fin", "mapqa", "medical"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(max_size=30))
@settings(max_examples=50, deadline=None)
def test_scores_are_shares_and_never_fail(name: str, text: str) -> None:
    scorer = lookup.class_of("evals.scorers", name, base=Scorer)()
    values = [scorer.score(text, GOLD, mode=mode) for mode in MODES]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert scorer.lenient(text, GOLD) >= max(values)


@pytest.mark.parametrize("name", NAMES)
def test_the_gold_answer_is_right_in_fixed_mode(name: str) -> None:
    scorer = lookup.class_of("evals.scorers", name, base=Scorer)()
    golds = {
        "choice": ("B", {"answer": "B", "choices": ["x", "y"]}),
        "grounding": ("[0.10, 0.20, 0.35, 0.49]", {"answer": "[0.10, 0.20, 0.35, 0.49]"}),
    }
    text, gold = golds.get(name, ("red car", {"answer": "red car"}))
    assert scorer.fixed(text, gold) == 1.0
    assert isinstance(scorer.version, int)


def test_constants_are_the_frequent_answers() -> None:
    class Any(Scorer):
        pass

    golds = [{"answer": "x"}, {"answer": "y"}, {"answer": "y"}, {"answer": "z", "answers": ["q", "q", "q"]}]
    assert Any().constants(golds) == ["q", "y", "x"]
    assert references(golds[3]) == ["q", "q", "q"]


def test_a_row_without_an_answer_is_refused() -> None:
    exact = lookup.class_of("evals.scorers", "exact", base=Scorer)()
    with pytest.raises(DataError, match="no gold answer"):
        exact.strict("x", {"answer": "", "question": "What?"})
