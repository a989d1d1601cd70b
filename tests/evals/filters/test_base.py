"""What a filter does when it overrides nothing."""

from mcit.core import lookup
from mcit.core.types import Row, Turn
from mcit.evals.filters.base import Filter, edits_scores

ROW = Row("r", (), (Turn("user", "q"), Turn("assistant", "a")), "t", "f:1")


def test_the_base_changes_nothing() -> None:
    scores = object()
    assert Filter().logits(0, scores, None) is scores
    assert Filter().text(" a\nb ", ROW) == " a\nb "


def test_only_overridden_hooks_cost() -> None:
    class Ban(Filter):
        def logits(self, step, scores_BV, ctx):
            return scores_BV

    assert edits_scores(Ban())
    assert not edits_scores(Filter())


def test_shipped_filters_load() -> None:
    for name in lookup.known("evals.filters"):
        assert issubclass(lookup.class_of("evals.filters", name, base=Filter), Filter)
