"""Kills and errors at file operations, by a process that is not killed but stopped by `Killed`."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.inject.faultpoints import ERRORS, Fault, Killed, Operations

INJECT = Path(__file__).parents[2] / "scripts" / "inject"


def die():
    raise Killed


def work(root):
    (root / "d").mkdir()
    with open(root / "d" / "x", "w") as file:
        file.write("abcdef")
    os.replace(root / "d" / "x", root / "d" / "y")
    (root / "d" / "y").read_text()
    shutil.copyfile(root / "d" / "y", root / "z")
    shutil.rmtree(root / "d")


DONE = [
    "mkdir d", "create d/x", "write d/x", "rename d/y", "create z", "write z", "unlink d/y", "rmdir d",
]  # fmt: skip


def test_every_change_counts_and_reading_does_not(tmp_path):
    with Operations(tmp_path) as operations:
        work(tmp_path)
    assert list(dict.fromkeys(operations.seen)) == DONE and not operations.fired  # a copy may be several writes
    before = len(operations.seen)
    (tmp_path / "after").write_text("1")
    assert len(operations.seen) == before, "outside the block nothing is wrapped"


def test_other_folders_and_other_kinds_do_not_count(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "inner").mkdir()
    with Operations(tmp_path / "in") as operations:
        work(tmp_path / "inner")
    assert operations.seen == []
    with Operations(tmp_path / "in", kinds={"rename"}) as operations:
        work(tmp_path / "in")
    assert operations.seen == ["rename d/y"]


@pytest.mark.parametrize(("how", "left"), [("before", ""), ("inside", "abc"), ("after", "abcdef")])
def test_a_kill_leaves_what_was_on_disk_and_nothing_happens_afterwards(tmp_path, how, left):
    with pytest.raises(Killed), Operations(tmp_path, Fault(3, how), kill=die) as operations:
        try:
            work(tmp_path)
        finally:
            with pytest.raises(Killed):
                (tmp_path / "d" / "x").unlink()
    assert operations.fired and (tmp_path / "d" / "x").read_text() == left
    assert operations.seen == DONE[:3]


def test_after_an_operation_that_fails_the_process_dies_too(tmp_path):
    with pytest.raises(Killed), Operations(tmp_path, Fault(1, "after"), kill=die):
        (tmp_path / "missing" / "d").mkdir(parents=True)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("how", ERRORS)
def test_an_error_comes_once_and_a_write_is_half_done(tmp_path, how):
    with Operations(tmp_path, Fault(3, how)) as operations:
        with pytest.raises(OSError) as error:
            work(tmp_path)
        (tmp_path / "d" / "x").unlink()
    assert error.value.errno == getattr(errno, how) and error.value.filename == str(tmp_path / "d" / "x")
    assert operations.fired and operations.seen[-1] == "unlink d/x"


def test_handles_and_folders_by_handle_are_known_by_name(tmp_path):
    with Operations(tmp_path) as operations:
        handle = os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT)
        with os.fdopen(handle, "wb") as file:
            file.write(b"1")
            file.truncate(0)
            os.fsync(handle)
        folder = os.open(tmp_path, os.O_RDONLY)
        os.unlink("x", dir_fd=folder)
        os.close(folder)
    assert operations.seen == ["create x", "write x", "truncate x", "fsync x", "unlink x"]


@pytest.mark.parametrize(("rank", "killed"), [(None, True), ("1", True), ("0", False)])
def test_a_process_is_wrapped_from_outside_and_of_several_ranks_only_one(tmp_path, rank, killed):
    code = f"open({str(tmp_path / 'x')!r}, 'w').write('abc'); print('done')"
    setting = {"root": str(tmp_path), "at": 2, "how": "before", **({} if rank is None else {"rank": 1})}
    env = {**os.environ, "PYTHONPATH": str(INJECT), "FAULTPOINTS": json.dumps(setting)}
    env |= {} if rank is None else {"RANK": rank}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode == -signal.SIGKILL) == killed and ("done" in done.stdout) != killed
    assert (tmp_path / "x").read_text() == ("" if killed else "abc")


def test_the_note_lists_what_was_done(tmp_path):
    (tmp_path / "in").mkdir()
    with Operations(tmp_path / "in", note=tmp_path / "note") as operations:
        work(tmp_path / "in")
    assert (tmp_path / "note").read_text().splitlines() == operations.seen
