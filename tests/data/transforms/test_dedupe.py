"""Repetitions go, first ones stay."""

from mcit.data.transforms.dedupe import Dedupe
from tests.fakes.rows import row


def kept(rows, **settings):
    """Ids that stay."""
    return [r.id for r in Dedupe(Dedupe.Config(**settings)).apply(rows, seed=0)]


def test_what_counts_as_equal():
    rows = [
        row("<image>\nq", "a", images=("1.png",), id="a"),
        row("<image>  q", "a", images=("1.png",), id="b"),
        row("<image>\nq", "other", images=("1.png",), id="c"),
        row("<image>\nq", "a", images=("2.png",), id="d"),
        row("<image>\nq", "a", images=("1.png",), id="e", root="/elsewhere"),
    ]
    assert kept(rows) == ["a", "c", "d", "e"]
    assert kept(rows, answers=False) == ["a", "d", "e"]
