"""Rows of a split while they are read."""

import numpy as np
import pytest

from mcit.data.gathered import Gathered, picture_key, questions
from tests.fakes.rows import row


def made(tmp_path, rows):
    found = Gathered(tmp_path / "rows" / "train.jsonl", {"/r": "0", "/s": "1"})
    for one in rows:
        found.add(one)
    found.close()
    return found


ROWS = [
    row("<image>\nOne?", "a", "Two?", "b", images=("a.png",), root="/r", id="1", style="word"),
    row("<image> <image>  One?", "a", images=("b.png", "a.png"), root="/s", id="2", style="phrase"),
    row("Text?", "yes", root="/r", id="1", style="word"),
]


def test_rows_and_the_numbers_of_each(tmp_path):
    found = made(tmp_path, ROWS)
    assert list(found.all) == ROWS and found.ids[0] == found.ids[2] != found.ids[1]
    assert found.ask_rows.tolist() == [0, 0, 1, 2] and found.asks[0] == found.asks[2]
    assert found.picture_rows.tolist() == [0, 1, 1] and found.pictures[0] != found.pictures[2]  # another root
    assert found.pictures[1] == picture_key(ROWS[1], "b.png")
    assert questions(ROWS[1]) == ["One?"]


def test_dropped_rows_leave_the_counts(tmp_path):
    found = made(tmp_path, ROWS)
    assert found.rows is found.all and found.tally.rows == 3
    found.drop(0, ROWS[0])
    assert list(found.rows) == ROWS[1:] and found.tally.rows == 2 and len(found) == 3
    assert found.places(found.rows).tolist() == [1, 2]
    assert found.styles(found.rows) == {"phrase": 1, "word": 1} and found.styles(found.all) == {"word": 2, "phrase": 1}


def test_a_row_that_cannot_be_stored_leaves_no_number(tmp_path):
    found = Gathered(tmp_path / "a.jsonl", {"": "0"})
    with pytest.raises(ValueError):
        found.add(row("q", "\udce9"))
    found.add(row("q", "a"))
    found.close()
    assert len(found.all) == len(found.ids) == 1 and found.alive.dtype == np.bool_
