"""Rows on disk by place: the same rows in any order, whole or not at all, and memory that does not grow with them."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mcit.core.errors import StateError
from mcit.data.rowfile import INDEX, RowWriter, StoredRows, index_path, read_index, write_index
from tests.fakes.rows import row


def some(count):
    return [
        row(f"<image>\nq{k} " + "x" * (k % 7), f"ä{k}", images=("a.png",), id=f"r{k}", root="/r") for k in range(count)
    ]


def stored(path, rows):
    with RowWriter(path) as out:
        for one in rows:
            out.add(one, root="0")
        write_index(path, out.finish())
    return StoredRows(path, read_index(path), roots={"0": "/r"})


def test_rows_come_back_by_place(tmp_path):
    given = some(1_000)
    rows = stored(tmp_path / "a.jsonl", given)
    assert len(rows) == 1_000 and list(rows) == given and rows[-1] == given[-1] and rows[777] == given[777]
    assert list(rows[10:20:3]) == given[10:20:3] and list(rows[:0]) == []
    picked = rows.pick([5, 3, 999, 3])
    assert list(picked) == [given[k] for k in (5, 3, 999, 3)] and picked[2] == given[999]
    assert [line.decode() for line in rows[:2].lines()] == (tmp_path / "a.jsonl").read_text().split("\n")[:2]
    with pytest.raises(IndexError):
        rows[1_000]


def test_lengths_need_no_row(tmp_path):
    given = some(20)
    rows = stored(tmp_path / "a.jsonl", given)
    (tmp_path / "a.jsonl").unlink()
    assert rows.lengths.tolist() == [2_000 + sum(len(t.text) for t in r.turns) for r in given]


def test_padding_is_told_to_every_row(tmp_path):
    rows = stored(tmp_path / "a.jsonl", some(2))
    wider = StoredRows(rows.path, rows.table, roots={"0": "/other"}, pad_images=True)
    assert wider[1].encoding.pad_image and wider[1].root == "/other"


def test_threads_read_at_once(tmp_path):
    given = some(2_000)
    rows = stored(tmp_path / "a.jsonl", given)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(rows.__getitem__, range(2_000))) == given


def test_what_cannot_be_stored_leaves_no_trace(tmp_path):
    with RowWriter(tmp_path / "a.jsonl") as out:
        for bad in (row("q", "\ud800"), row("q", "a", meta={"n": float("inf")})):
            with pytest.raises(ValueError):
                out.add(bad, root="0")
        out.add(row("q", "a"), root="0")
        assert len(out.finish()) == 1
    assert (tmp_path / "a.jsonl").read_text().count("\n") == 1


def test_damage_is_named(tmp_path):
    rows = stored(tmp_path / "a.jsonl", some(3))
    (tmp_path / "a.jsonl").write_bytes(b"x" * 10)
    with pytest.raises(StateError, match="shorter than its index"):
        rows[2]
    for content in (b"", b"\x93NUMPY nonsense", b"not an index"):
        index_path(tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(StateError, match="cannot be read"):
            read_index(tmp_path / "a.jsonl")
    np.save(index_path(tmp_path / "a.jsonl"), np.zeros(3))
    with pytest.raises(StateError, match="no index"):
        read_index(tmp_path / "a.jsonl")
    index_path(tmp_path / "a.jsonl").unlink()
    with pytest.raises(StateError, match="cannot be read") as caught:
        read_index(tmp_path / "a.jsonl")
    assert caught.value.fix


def test_memory_holds_the_index_alone(tmp_path):
    """40,000 rows of 5 kB are 200 MB of text; reading them all in a random order takes less than 30 MB more than none."""
    code = """
import random, sys
from pathlib import Path
import torch
from mcit.engine.peak import begin_peak, peak_bytes
from mcit.data.rowfile import RowWriter, StoredRows
from tests.fakes.rows import row
with RowWriter(Path(sys.argv[1])) as out:
    for k in range(40_000):
        out.add(row(f"q{k}" + "x" * 5_000, "a"), root="0")
    rows = StoredRows(out.path, out.finish(), roots={"0": "/r"})
begin_peak(torch.device("cpu"))
before = peak_bytes(torch.device("cpu"))
for k in random.Random(0).sample(range(40_000), 40_000):
    rows[k]
print((peak_bytes(torch.device("cpu")) - before) / 2**20, out.path.stat().st_size / 1e6)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jsonl")], capture_output=True, text=True)
    grown, size = map(float, done.stdout.split())
    assert grown < 30 and size > 200, done.stderr


def test_rows_that_outlive_the_modules_close_their_file(tmp_path):
    """At exit Python empties modules, `os` among them, before the last rows go."""
    stored(tmp_path / "a.jsonl", some(1))
    code = "import os, sys; from mcit.data.rowfile import _File; os.rows = _File(sys.argv[1]); os.rows.read(0, 1)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jsonl")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_index_is_small():
    assert INDEX.itemsize == 20
