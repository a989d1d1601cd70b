"""What makes two rows the same; pairs over recipes are in tests/plan/test_forgetting.py."""

from dataclasses import replace

import pytest

from mcit.core.types import Row, Turn
from mcit.data.overlap import asked, overlapping, pictures_of


@pytest.fixture
def shown(tmp_path):
    """A row about a picture."""
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "again.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")
    turns = (Turn("user", "what  is it?"), Turn("assistant", "red"))
    return Row("1", ("a.png",), turns, "t", "t.json:1", root=str(tmp_path))


def test_rows_of_equal_pictures_and_questions(shown):
    spaced = replace(shown, id="2", source="u.json:9", turns=(Turn("user", "what is it?"), Turn("assistant", "blue")))
    again = replace(spaced, images=("again.png",))
    other = replace(spaced, images=("b.png",))
    placed = replace(shown, turns=(Turn("user", "where?"), Turn("assistant", "here")))
    assert asked(shown) == asked(spaced) == ("what is it?",) and pictures_of(shown) == pictures_of(again)
    rows = [spaced, again, other, placed]
    assert [row for row, _ in overlapping(rows, [shown])] == [spaced, again, placed]
    assert overlapping([shown], rows) == [(shown, spaced)], "one for each of the first rows"
