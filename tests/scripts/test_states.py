"""What is taken from one call of a command is what a process of its own leaves, for every kill and error."""

import os
import signal
import sys
import types
import unittest.mock

import pytest

from scripts import faults
from scripts.inject.faultpoints import ERRORS, KILLS, Fault, Operations
from scripts.inject.samefiles import compared
from scripts.inject.states import States, can_move


def work(root):
    """Files and a log that stays open; an error is told there and in the exit code, one while clearing up is absorbed."""
    with open(root / "log", "ab", buffering=0) as log:  # an error here is told by nobody: exit 1
        try:
            (root / "d").mkdir()
            log.write(b"made d, ")
            with open(root / "d" / "x", "w") as file:
                file.write("abcdef")
                file.write("ghi")
                log.write(b"wrote, ")
                os.fsync(file.fileno())
            os.rename(root / "d", root / "e")
        except OSError as error:
            log.write(f"error {error.errno}, ".encode())
            print("told", file=sys.stderr, flush=True)
            return 4
        try:
            (root / "old").unlink()
        except OSError:
            log.write(b"old stays, ")
        return 0


def in_fork(root, log, **given):
    """The work in a fork, wrapped; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    handle = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 2)
    sys.stderr = open(2, "w", closefd=False)
    code = 1
    try:
        with Operations(root, **given):
            code = work(root)
    finally:
        os._exit(code)


def begun(home):
    home.mkdir()
    (home / "old").write_text("old")
    return home


@pytest.mark.skipif(not can_move(), reason="this user may have no mounts of its own")
def test_every_fault_leaves_what_it_leaves_in_a_process_of_its_own(tmp_path):
    home, note = begun(tmp_path / "home"), tmp_path / "note"
    assert in_fork(home, tmp_path / "log", note=note) == 0
    count = len(note.read_text().splitlines())
    assert count == 10
    home.rename(tmp_path / "undisturbed")
    every = [Fault(at, how) for at in range(1, count + 1) for how in (*KILLS, ERRORS[at % 3])]
    home = begun(tmp_path / "home")
    states = States(tmp_path / "states", home, every, lambda log, note, look: in_fork(home, log, note=note, look=look))
    assert compared(tmp_path / "undisturbed", home) == [], "the call itself is not disturbed"
    assert states.note.read_text() == note.read_text()
    ends = set()
    for fault in every:
        alone = begun(tmp_path / f"{fault.how}-{fault.at}")
        code = in_fork(alone, tmp_path / "log2", fault=fault)
        assert compared(alone, states.at(fault)) == [], fault
        if fault.how in ERRORS:
            assert states.ended(fault) == (code, "told\n" if code == 4 else ""), fault
            ends.add(code)
        else:
            assert code == -signal.SIGKILL
    assert ends == {0, 1, 4}
    assert states.digest(Fault(1, "after")) == states.digest(Fault(2, "before")) != states.digest(Fault(2, "after"))


def test_a_command_that_fails_by_itself_is_refused(tmp_path):
    (tmp_path / "home").mkdir()
    with pytest.raises(RuntimeError, match="failed with 3"):
        States(tmp_path / "states", tmp_path / "home", [], lambda log, note, look: 3)


@pytest.mark.skipif(not can_move(), reason="this user may have no mounts of its own")
def test_a_fault_behind_the_last_operation_is_not_taken_and_falls_on_the_last_one(tmp_path):
    home, log, note = begun(tmp_path / "home"), tmp_path / "log", tmp_path / "note"
    late = [Fault(11, "after"), Fault(12, "ENOSPC")]
    states = States(tmp_path / "states", home, late, lambda log, note, look: in_fork(home, log, note=note, look=look))
    assert not any(map(states.holds, late))
    before, scene = begun(tmp_path / "before"), types.SimpleNamespace(ranks=1, before=tmp_path / "before")
    hits = []

    def started(scene, home, log, *, note, fault, rank):
        hits.append(fault)
        return in_fork(home, log, note=note, fault=fault)

    with unittest.mock.patch.object(faults, "started", started):
        one = faults.Round("tiny", "run", "", 12, "after")
        assert faults.alone(scene, one, home, log, note) == -signal.SIGKILL
        assert hits == [Fault(12, "after"), Fault(10, "after")] and one.at == 12 and before.is_dir()
        assert len(faults.operations(note)) == 10
