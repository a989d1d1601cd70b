"""The board: one error is the first, in whatever order ranks fail, and a rank that sees it ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcit.core.errors import DataError
from mcit.engine.board import PARENT, Board, explained, record_of


def test_one_error_is_the_first_and_a_cleared_board_is_empty(tmp_path):
    a, b = Board(tmp_path / "x", 0), Board(tmp_path / "x", 1)
    assert a.first() is None and a.wait_for_first(0.1) is None and a.posted() == []
    assert b.post(record_of(DataError("bad", where="f:1"), rank=1)) is True
    assert a.post(record_of(DataError("worse"), rank=0)) is False
    assert a.first()["rank"] == 1 and [r["rank"] for r in a.posted()] == [1, 0]
    a.sign_in()
    assert a.pids() == {0: os.getpid()}
    a.clear()
    assert a.first() is None and a.posted() == [] and a.pids() == {}


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def no_link(*_):
        raise OSError("links are not supported")

    monkeypatch.setattr(os, "link", no_link)
    a, b = Board(tmp_path, 0), Board(tmp_path, 1)
    assert (
        b.post(record_of(DataError("bad"), rank=1)) is True and a.post(record_of(DataError("worse"), rank=0)) is False
    )
    assert a.first()["rank"] == 1


def test_records_name_the_rank_unless_all_agree():
    error = DataError("bad", where="f:1", fix="mend")
    assert record_of(error, rank=2)["problems"][0]["where"] == "rank 2: f:1"
    assert record_of(error, rank=2, agreed=True)["problems"][0]["where"] == "f:1"
    found = record_of(KeyError("k"), rank=2, log=Path("logs/rank-002.log"))
    assert found["problems"] == [{"where": "rank 2", "what": "KeyError: 'k'", "fix": "traceback in logs/rank-002.log"}]
    assert found["unforeseen"] is True and found["exit"] == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:27273"), "echo"),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), "echo"),
        (RuntimeError("[gloo] Timed out waiting 5000ms for recv operation to complete"), "timeout"),
        (RuntimeError("shape mismatch"), ""),
        (DataError("connection to the row lost"), ""),
        (ZeroDivisionError("timed out"), ""),
    ],
)
def test_what_a_failed_collective_means(error, kind):
    told, found = explained(error, rank=1, timeout=5.0)
    assert found == kind
    if kind == "timeout":
        assert "engine.timeout = 5 s" in str(told)
    if not kind:
        assert told is error


WATCH = """
import sys, time
from pathlib import Path
from mcit.engine.board import Board
Board(Path(sys.argv[1]), 1).watch()
print("watching", flush=True)
time.sleep(60)
"""


def watching(tmp_path, **env):
    command = [sys.executable, "-c", WATCH, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})
    assert process.stdout.readline() == "watching\n"
    return process


def test_a_rank_that_hangs_ends_with_the_code_of_another_ranks_error(tmp_path):
    process = watching(tmp_path)
    Board(tmp_path, 0).post(record_of(DataError("bad"), rank=0))
    begin = time.monotonic()
    assert process.wait(timeout=20) == 4 and time.monotonic() - begin < 10


def test_a_rank_ends_when_the_command_that_started_it_is_gone(tmp_path):
    assert watching(tmp_path, **{PARENT: "1" if os.getppid() != 1 else "2"}).wait(timeout=20) == 1


def test_a_rank_does_not_end_for_its_own_error(tmp_path):
    process = watching(tmp_path)
    Board(tmp_path, 1).post(record_of(DataError("bad"), rank=1))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=6)
    process.kill()
    process.wait()
