import hashlib
import os
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mcit.core import hashes
from mcit.core.hashes import reading_all, sha256_files


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """A cache of its own; files of this second are kept, and every call is a new process."""
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_SETTLED_S", -3600.0)
    return tmp_path / "cache" / "digests" / "files.sqlite"


@pytest.fixture
def reads(monkeypatch):
    """Files that are really read."""
    done, real = [], hashes.sha256_file
    monkeypatch.setattr(hashes, "sha256_file", lambda path: (done.append(os.path.basename(path)), real(path))[1])
    return done


def changed_behind(path, at=-1):
    """Another content with size and time of the last write kept."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[at] ^= 1
    time.sleep(0.02)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def hashed(*paths):
    hashes._sha256.cache_clear()
    return list(sha256_files(paths))


def files(folder, count):
    for k in range(count):
        (folder / f"f{k}").write_bytes(b"content %d" % k)
    return [folder / f"f{k}" for k in range(count)]


def test_order_values_and_what_is_no_file(tmp_path):
    paths = files(tmp_path, 1100)  # more than are looked at together
    expected = [hashlib.sha256(b"content %d" % k).hexdigest() for k in range(1100)]
    assert hashed(*paths) == expected == hashed(*paths)
    os.mkfifo(tmp_path / "pipe")
    assert hashed(tmp_path / "gone", paths[0], tmp_path, tmp_path / "pipe") == [None, expected[0], None, None]
    assert hashed(Path("/dev/zero")) == [None]


def test_a_file_is_read_once_until_it_changes(tmp_path, reads):
    path = files(tmp_path, 1)[0]
    first = hashed(path)
    assert hashed(path) == first and reads == ["f0"]
    changed_behind(path)
    assert hashed(path) != first and reads == ["f0", "f0"]
    other = tmp_path / "other"
    other.write_bytes(b"CONTENT 0")
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, path)
    assert hashed(path) == [hashlib.sha256(b"CONTENT 0").hexdigest()]


def test_in_reading_all_every_process_reads_and_only_once(tmp_path, reads):
    path = files(tmp_path, 1)[0]
    hashed(path)
    with reading_all():
        hashed(path), list(sha256_files([path]))
    assert reads == ["f0", "f0"]
    with reading_all(False):
        hashed(path)
    hashed(path)
    assert reads == ["f0", "f0"]


def test_files_that_are_too_new_are_not_kept(tmp_path, reads, monkeypatch):
    path = files(tmp_path, 1)[0]
    monkeypatch.setattr(hashes, "_SETTLED_S", 2.0)
    hashed(path), hashed(path)
    assert reads == ["f0", "f0"]


def test_files_are_kept_that_are_two_seconds_old(tmp_path, reads, monkeypatch):
    path = files(tmp_path, 1)[0]
    monkeypatch.setattr(hashes, "_SETTLED_S", 2.0)
    for seconds, count in ((1.9, 2), (2.1, 3)):
        began = path.stat().st_ctime + seconds
        monkeypatch.setattr(hashes, "time", SimpleNamespace(time=lambda began=began: began))
        hashed(path), hashed(path)
        assert len(reads) == count


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, monkeypatch, kept):
    path, real = files(tmp_path, 1)[0], hashes.sha256_file

    def slow(name):
        digest = real(name)
        changed_behind(path)
        return digest

    monkeypatch.setattr(hashes, "sha256_file", slow)
    hashed(path)
    assert sqlite3.connect(kept).execute("SELECT count(*) FROM seen").fetchone() == (0,)


@pytest.mark.parametrize("damage", ["text", "folder", "row"])
def test_a_damaged_cache_only_costs_time(tmp_path, damage, kept, reads):
    path = files(tmp_path, 1)[0]
    first = hashed(path)
    if damage == "row":
        with sqlite3.connect(kept) as base:
            base.execute("UPDATE seen SET sha256 = 'x'")
    else:
        kept.unlink()
        kept.write_text("no database " * 100) if damage == "text" else kept.mkdir()
    assert hashed(path) == first and reads == ["f0", "f0"]
    assert hashed(path) == first
    assert hashed(path) == first and len(reads) == (4 if damage == "folder" else 3 if damage == "text" else 2)


def test_an_unreadable_file_is_none(tmp_path, monkeypatch):
    def refused(name):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashes, "sha256_file", refused)
    assert hashed(files(tmp_path, 1)[0]) == [None]


def test_a_file_whose_time_lies_ahead_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_SETTLED_S", -10)
    now, ahead = tmp_path / "now", tmp_path / "ahead"
    for path in (now, ahead):
        path.write_text("1")
    os.utime(ahead, (time.time() + 100,) * 2)
    list(hashes.sha256_files([now, ahead]))
    stamps = {path: hashes._stamp(path) for path in (now, ahead)}
    with hashes._Kept() as kept:
        assert list(kept.of(stamps.values())) == [stamps[now]]


def test_a_cache_in_use_stays_and_a_damaged_one_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path))
    for error, stays in ((sqlite3.OperationalError("locked"), True), (sqlite3.DatabaseError("damaged"), False)):
        with hashes._Kept() as kept:
            with kept._or_without():
                raise error
            assert kept._path.is_file() == stays and kept._base is None
