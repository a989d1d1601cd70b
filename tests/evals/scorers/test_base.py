"""What every scorer file must keep to."""

import pytest

from mcit.core import lookup
from mcit.core.errors import DataError
from mcit.evals.scorers.base import Scorer, references, refuses

NAMES = lookup.known("evals.scorers")


def test_the_files_are_found() -> None:
    assert {"exact", "vqa", "choice", "contains", "name", "grounding", "gqa", "fin", "mapqa", "medical"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_gold_answer_is_right_in_fixed_mode(name: str) -> None:
    scorer = lookup.class_of("evals.scorers", name, base=Scorer)()
    golds = {
        "choice": ("B", {"answer": "B", "choices": ["x", "y"]}),
        "coin_choice": ("B", {"answer": "B", "choices": ["x", "y"]}),
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


def test_constants_are_the_two_hundred_most_frequent_answers() -> None:
    """Every constant is scored against every row: without a bound that would be quadratic in the rows of a task."""

    class Any(Scorer):
        pass

    golds = [{"answer": str(i)} for i in range(205)] + [{"answer": "204"}]
    found = Any().constants(golds)
    assert len(found) == 200
    assert found[:2] == ["204", "0"]


class Two(Scorer):
    """Strict always a quarter, fixed always a half."""

    def strict(self, prediction, gold):
        return 0.25

    def fixed(self, prediction, gold):
        return 0.5


def test_mode_chooses_the_rule_and_lenient_is_right_or_the_better_of_both() -> None:
    gold = {"answer": "red"}
    assert [Two().score("x", gold, mode=mode) for mode in ("strict", "fixed")] == [0.25, 0.5]
    assert Two().lenient("blue", gold) == 0.5
    assert Two().lenient("it is red", gold) == 1.0


def test_versions_are_those_that_stored_scores_name() -> None:
    """Raise one together with its rule and only then: another number makes every stored score be made again."""
    versions = {name: lookup.class_of("evals.scorers", name, base=Scorer).version for name in NAMES}
    third = {"choice", "contains", "exact"}
    assert versions == {name: 3 if name in third else 2 for name in NAMES}


def test_refusal_is_the_published_word_in_upper_case() -> None:
    assert [refuses(text) for text in ("Unanswerable", "it is Unanswerable.", "unanswerable", "red", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_row_without_an_answer_is_refused() -> None:
    exact = lookup.class_of("evals.scorers", "exact", base=Scorer)()
    with pytest.raises(DataError, match="no gold answer"):
        exact.strict("x", {"answer": "", "question": "What?"})
