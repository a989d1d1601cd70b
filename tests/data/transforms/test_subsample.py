"""Choices of rows are seeded, ordered and exact."""

import pytest

from mcit.core.config import parse
from mcit.data.transforms.subsample import Subsample
from tests.fakes.rows import row

ROWS = [row("q", "a", id=f"r{k}", style="x" if k < 30 else "y") for k in range(40)]


def kept(seed=0, **settings):
    """Ids that stay."""
    return [r.id for r in Subsample(Subsample.Config(**settings)).apply(ROWS, seed=seed)]


def test_number_and_share():
    assert len(kept(rows=7)) == 7 and len(kept(share=0.25)) == 10 and len(kept(rows=100)) == 40
    assert kept(rows=7) == kept(rows=7) != kept(seed=1, rows=7)
    assert kept(rows=7) == sorted(kept(rows=7), key=lambda i: int(i[1:]))
    assert set(kept(rows=7)) < set(kept(rows=12))  # a smaller choice is part of a larger one


def test_by_style():
    ids = [int(i[1:]) for i in kept(share=0.5, by_style=True)]
    assert sum(i < 30 for i in ids) == 15 and sum(i >= 30 for i in ids) == 5
    assert len(kept(rows=4, by_style=True)) == 8


@pytest.mark.parametrize("settings", [{}, {"rows": 1, "share": 0.5}, {"share": 0}, {"rows": 0}])
def test_settings_that_cannot_be(settings):
    assert parse(Subsample.Config, settings)[1]
