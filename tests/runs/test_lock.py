import os
import signal
import socket
import subprocess
import sys

import pytest

from mcit.core.errors import StateError
from mcit.runs.lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from mcit.runs.lock import RunLock
with RunLock(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_named_and_its_death_releases_the_lock(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    try:
        assert child.stdout.readline() == "held\n"
        lock = RunLock(tmp_path / "lock")
        for _ in range(2):  # the first refused attempt must not wipe out who holds it
            with (
                pytest.raises(StateError, match=f"process {child.pid} on {socket.gethostname()}") as error,
                lock.held(),
            ):
                pass
        assert error.value.exit_code == 5
        assert lock.holder() == {"pid": child.pid, "host": socket.gethostname()}
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.3)  # asking who holds it does not harm the holder
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert lock.holder() is None
        with lock.held():
            assert lock.holder()["pid"] == os.getpid()
        assert lock.holder() is None
    finally:
        child.kill()
        child.stdout.close()
        child.wait()


def test_two_objects_of_one_process_exclude_each_other_and_one_may_enter_twice(tmp_path):
    first, second = RunLock(tmp_path / "lock"), RunLock(tmp_path / "lock")
    with first.held(), first.held():
        with pytest.raises(StateError, match=f"process {os.getpid()}"), second.held():
            pass
    with second.held():
        pass


def test_leaving_the_inner_block_keeps_the_lock(tmp_path):
    first = RunLock(tmp_path / "lock")
    with first.held():
        with first.held():
            pass
        assert first.holder()["pid"] == os.getpid()
        with pytest.raises(StateError), RunLock(tmp_path / "lock").held():
            pass


def test_damaged_record_of_the_holder_is_no_error(tmp_path):
    lock = RunLock(tmp_path / "lock")
    (tmp_path / "lock.json").write_text('{"pid')
    assert lock.holder() is None
    with RunLock(tmp_path / "lock").held():
        (tmp_path / "lock.json").write_text("[]")
        with pytest.raises(StateError, match="another process"), lock.held():
            pass


def test_a_folder_that_cannot_be_written_is_explained(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / "lock"))

    lock = RunLock(tmp_path / "lock")
    monkeypatch.setattr(lock._lock, "acquire", refuse)
    with pytest.raises(StateError, match="permission denied"), lock.held():
        pass
