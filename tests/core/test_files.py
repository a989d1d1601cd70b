import contextlib
import errno
import os

import filelock
import pytest

from mcit.core import files
from mcit.core.errors import StateError
from mcit.core.records import Record
from mcit.core.stored import check_manifest, read_sealed, write_manifest, write_sealed
from scripts.inject.faultpoints import KILLS, Fault, Killed, Operations


class Version(Record):
    what = "a version"
    v: int


def test_canonical_json_is_equal_for_equal_content():
    assert files.canonical_json({"b": {2, 1}, "a": (1,)}) == '{"a": [1], "b": [1, 2]}'
    with pytest.raises(ValueError):
        files.canonical_json(float("nan"))
    with pytest.raises(TypeError):
        files.canonical_json(object())


def test_write_is_whole_and_leaves_no_temporary_files(tmp_path):
    files.write_text(tmp_path / "a" / "x.txt", "1")
    files.write_text(tmp_path / "a" / "x.txt", "2")
    assert (tmp_path / "a" / "x.txt").read_text() == "2"
    assert os.listdir(tmp_path / "a") == ["x.txt"]
    assert os.stat(tmp_path / "a" / "x.txt").st_mode & 0o777 == 0o644
    files.write_json(tmp_path / "x.json", {"b": 1, "a": [2]})
    assert (tmp_path / "x.json").read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}\n'
    files.copy_file(tmp_path / "x.json", tmp_path / "deep" / "y.json")
    assert (tmp_path / "deep" / "y.json").read_text() == (tmp_path / "x.json").read_text()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b"', b'{"a": 1}\n'),
        (b'{"b"', b""),
        (b'{"a": 1}', b'{"a": 1}\n'),  # whole, but for its end: somebody's editor
        (b'{"a": 1}\n{"b": 2}', b'{"a": 1}\n{"b": 2}\n'),
        (b'{"a": "' + 3 * files._CHUNK * b"x", b""),
        (b'{"a": 1}\n{"a": "' + files._CHUNK * b"x" + b'"}', b'{"a": 1}\n{"a": "' + files._CHUNK * b"x" + b'"}\n'),
        (b"\n", b"\n"),
    ],
)
def test_append_cuts_a_torn_line_off_and_reading_leaves_it_out(tmp_path, before, after):
    path = tmp_path / "l.jsonl"
    path.write_bytes(before)
    assert files.read_lines(path) == after.split(b"\n")[:-1]
    files.append_line(path, '{"c": 3}')
    assert path.read_bytes() == after + b'{"c": 3}\n'


def test_lines_of_a_missing_file_are_none(tmp_path):
    assert files.read_lines(tmp_path / "none") == []


@pytest.mark.parametrize("where", ["", "deep/er"])
def test_temporaries_of_the_dead_are_removed_and_nothing_else(tmp_path, where):
    home = tmp_path / where
    home.mkdir(parents=True, exist_ok=True)
    kept = [".x.tmp", "x.abcd1234.tmp", ".x.abcd1234.tmpx", ".x.ABCD1234.tmp", ".x.abcd12345.tmp", "plain"]
    for name in (*kept, ".x.json.abcd1234.tmp"):
        (home / name).write_text("1")
    (home / ".d.abcd1234.tmp" / "in").mkdir(parents=True)
    files.remove_temporaries(tmp_path)
    assert sorted(p.name for p in home.iterdir()) == sorted(kept)


def test_temporaries_of_one_name_are_not_those_of_its_neighbours(tmp_path):
    (tmp_path / ".m.v2.abcd1234.tmp").mkdir()
    (tmp_path / ".m.abcd1234.tmp").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".m.abcd1234.tmp").mkdir()
    files.remove_temporaries(tmp_path, of="m")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".m.v2.abcd1234.tmp", "deep"]
    assert (tmp_path / "deep" / ".m.abcd1234.tmp").is_dir()


def test_what_is_being_written_stays(tmp_path, monkeypatch):
    """A folder and a file in the middle of being written, seen by somebody who cleans up; in the end both are there."""
    replace = os.replace

    def cleaned(*args):
        files.remove_temporaries(tmp_path)
        return replace(*args)

    monkeypatch.setattr(files.os, "replace", cleaned)
    with files.atomic_directory(tmp_path / "d") as work:
        files.write_text(work / "x", "1")
        files.write_text(tmp_path / "y", "2")
        assert work.is_dir()
    assert (tmp_path / "d" / "x").read_text() == "1" and (tmp_path / "y").read_text() == "2"
    files.remove_temporaries(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "y"]


def test_a_folder_is_built_once(tmp_path):
    done = []

    def build(work):
        done.append(work)
        (work / "x").write_text("1")

    for _ in range(2):
        assert files.build_once(tmp_path / "cache" / "d", build) == tmp_path / "cache" / "d"
    assert len(done) == 1 and (tmp_path / "cache" / "d" / "x").read_text() == "1"


def test_a_folder_that_another_process_built_meanwhile_is_taken(tmp_path, monkeypatch):
    class Waited:
        def __init__(self, path):
            assert path == str(tmp_path / ".d.lock")

        def __enter__(self):
            (tmp_path / "d").mkdir()

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(filelock, "FileLock", Waited)
    files.build_once(tmp_path / "d", lambda work: pytest.fail("it is there"))


def test_atomic_directory_is_whole_or_absent(tmp_path):
    with pytest.raises(RuntimeError), files.atomic_directory(tmp_path / "d") as work:
        (work / "x").write_text("1")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with files.atomic_directory(tmp_path / "d") as work:
        (work / "x").write_text("1")
    assert (tmp_path / "d" / "x").read_text() == "1" and (tmp_path / "d").stat().st_mode & 0o7777 == 0o755
    with pytest.raises(StateError, match="already exists"), files.atomic_directory(tmp_path / "d"):
        pass


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EIO, "the disk reported an error"),
        (errno.EFBIG, "larger than allowed"),
        (errno.EMLINK, "Too many links"),
        (errno.EROFS, "MCIT_CACHE"),
        (errno.EACCES, "MCIT_CACHE"),
    ],
)
def test_os_errors_are_explained(tmp_path, monkeypatch, number, said):
    def refuses(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    monkeypatch.setattr(files.tempfile, "mkstemp", refuses)
    with pytest.raises(StateError, match=said) as error:
        files.write_text(tmp_path / "x", "1")
    assert error.value.exit_code == 5 and str(tmp_path) in str(error.value) and error.value.fix


def test_the_file_that_the_system_names_is_told_or_else_the_one_that_was_meant(tmp_path):
    for named, told in (("/other", "/other"), (None, str(tmp_path))):
        with pytest.raises(StateError) as error, files.explained(tmp_path):
            raise OSError(errno.EIO, "bad", named)
        assert error.value.where == told


def test_what_is_not_there_and_what_has_no_number_are_not_explained(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "no"), OSError("no number")):
        with pytest.raises(type(error)), files.explained(tmp_path):
            raise error


def test_broken_json_is_a_state_error(tmp_path):
    for text in ('{"a"', "[" * 100_000, "9" * 5000, "\x00"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(StateError, match="not valid JSON") as error:
            files.read_json(tmp_path / "x.json")
        assert "x.json" in error.value.where
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(StateError, match="not valid JSON"):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(StateError, match="cannot be read"):
        files.read_json(tmp_path)
    with pytest.raises(StateError, match="missing"):
        files.read_json(tmp_path / "y.json")


def test_digests(tmp_path):
    """sha256 of the three bytes abc is ba7816bf…15ad (FIPS 180-2, appendix B.1)."""
    (tmp_path / "x").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "x") == expected == files.sha256_bytes(b"abc")
    before = files.sha256_tree(tmp_path)
    (tmp_path / "x").rename(tmp_path / "y")
    assert files.sha256_tree(tmp_path) != before


def test_killed_at_every_operation_each_file_is_whole_or_absent(tmp_path):
    """Before, inside and after each; a file cut in the middle is a temporary one."""

    def work(root):
        write_sealed(root / "x.json", {"v": 2})
        files.append_line(root / "l.jsonl", '{"more": "than a few letters"}')
        with files.atomic_directory(root / "d") as folder:
            files.write_text(folder / "a", "1")
            write_manifest(folder)

    def die():
        raise Killed

    for how in KILLS:
        for n in range(1, 100):
            root = tmp_path / f"{how}-{n}"
            write_sealed(root / "x.json", {"v": 1})
            files.append_line(root / "l.jsonl", '{"first": 1}')
            with contextlib.suppress(Killed), Operations(root, Fault(n, how), kill=die) as operations:
                work(root)
            assert read_sealed(root / "x.json", Version)["v"] in (1, 2)
            assert files.read_lines(root / "l.jsonl")[0] == b'{"first": 1}'
            if (root / "d").exists():
                check_manifest(root / "d")
            if not operations.fired:
                break
        assert n > 25


def test_a_file_that_somebody_names_may_be_a_pipe_and_has_an_end(tmp_path):
    (tmp_path / "a").write_bytes(b"text")
    assert files.read_given(tmp_path / "a") == b"text"
    read, write = os.pipe()
    os.write(write, b"piped")
    os.close(write)
    assert files.read_given(f"/dev/fd/{read}") == b"piped"
    os.close(read)
    with pytest.raises(OSError, match="no regular file and holds more than 64 MiB"):
        files.read_given("/dev/zero")
    with pytest.raises(FileNotFoundError):
        files.read_given(tmp_path / "none")
