"""Answers replaced by a table."""

import pytest

from mcit.core.errors import DataError
from mcit.data.transforms.relabel import Relabel
from tests.fakes.rows import row


def test_table_style_and_memory():
    rows = [row("q", "cat", "q2", "dog", id="a", style="word"), row("q", "cow", id="b", style="word")]
    changed, same = Relabel(Relabel.Config(answers={"dog": "hound"}, style="phrase")).apply(rows, seed=0)
    assert [t.text for t in changed.turns] == ["q", "cat", "q2", "hound"]
    assert changed.style == "phrase" and changed.meta == {"answer_before": "dog"} and same is rows[1]


def test_share_is_seeded():
    """Of 1000 rows with share 0.3 about 300 change: standard deviation 14.5."""
    rows = [row("q", "yes", id=f"r{k}") for k in range(1000)]
    relabel = Relabel(Relabel.Config(answers={"yes": "no"}, share=0.3))
    first, again, other = (relabel.apply(rows, seed=s) for s in (0, 0, 1))
    assert 240 < sum(r.answer == "no" for r in first) < 360
    assert first == again != other


def test_an_old_answer_that_no_row_has_is_refused():
    with pytest.raises(DataError, match="no training row has answer 'Cat'") as found:
        Relabel(Relabel.Config(answers={"Cat": "dog"})).apply([row("q", "cat", id="a")], seed=0)
    assert "cat" in found.value.problems[0].fix
