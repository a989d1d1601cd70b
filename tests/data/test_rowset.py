"""Sequences of rows that need not be in memory behave as lists do."""

import pytest

from mcit.data.rowset import Chosen, Joined, image_keys, image_name, joined, lengths, longest, pick, row_length
from tests.data.test_rowfile import some, stored
from tests.fakes.rows import row


@pytest.fixture
def parts(tmp_path):
    given = some(11)
    return given, [stored(tmp_path / "a.jsonl", given[:4]), given[4:5], [], stored(tmp_path / "b.jsonl", given[5:])]


def test_joined_rows_are_one_sequence(parts):
    given, pieces = parts
    rows = joined(pieces)
    assert len(rows) == 11 and list(rows) == given and [rows[k] for k in range(-11, 11)] == [*given, *given]
    assert list(rows[2:9:2]) == given[2:9:2] and list(rows[:None]) == given and rows[:] is rows
    assert list(rows[2:9][1:3]) == given[3:5]
    with pytest.raises(IndexError):
        rows[11]
    assert joined([pieces[0]]) is pieces[0] and len(joined([])) == 0 and list(Joined([])) == []


def test_pick_reads_later(parts):
    given, pieces = parts
    for rows in (joined(pieces), given, pieces[3]):
        chosen = pick(rows, [3, 0, 3])
        assert list(chosen) == [rows[3], rows[0], rows[3]] and chosen[1] == rows[0]
    assert isinstance(pick(given, range(2)), Chosen)


def test_lengths_and_the_longest(parts):
    given, pieces = parts
    rows = joined(pieces)
    assert lengths(rows).tolist() == [row_length(r) for r in given] == lengths(given).tolist()
    assert longest(rows, 3) == sorted(given, key=row_length, reverse=True)[:3] == longest(given, 3)
    assert lengths(joined([])).tolist() == [] and longest([], 2) == []


def test_row_length():
    assert row_length(row("abc", "de")) == 5
    assert row_length(row("<image> <image>", "x", images=("a", "b"))) == 15 + 1 + 4000


def test_rows_of_one_picture_have_one_key(tmp_path):
    """In memory and stored alike; texts that look like keys of a line change nothing; a text row is like no other."""
    text = '"images": ["a.png"], "meta": {}, "root": "9", "source": '
    given = [
        row(f"<image>\n{text}", "x", images=("a.png",), id='"images": [', root="/r", meta={"root": "q", "images": []}),
        row("q", text, id="t"),
        row("<image> <image>", "x", images=("a.png", "b.png"), id="two", root="/r"),
        row("<image>\nq", "x", images=("a.png",), id="again", root="/r"),
        row("p", "x", id="u"),
        row("<image>\nq", "x", images=('a], "meta": ,b.png',), id="odd", root="/r"),
    ]
    for rows in (
        given,
        stored(tmp_path / "a.jsonl", given),
        joined([given[:2], stored(tmp_path / "b.jsonl", given[2:])]),
    ):
        keys = image_keys(rows).tolist()
        assert len(set(keys)) == (5 if len(getattr(rows, "parts", [])) < 2 else 6)
        assert keys[1] != keys[4] and keys[2] != keys[3] != keys[5]
    assert image_keys(given)[0] == image_keys(given)[3] and image_keys([]).tolist() == []
    assert image_name(given[0]) == image_name(given[3]) and not image_name(given[1])
