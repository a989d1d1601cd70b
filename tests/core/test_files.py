import json
import os
import signal
import subprocess
import sys

import pytest

from mcit.core import files
from mcit.core.errors import StateError


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


def test_append_ends_a_torn_line_and_reading_leaves_it_out(tmp_path):
    path = tmp_path / "l.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b"')
    files.append_line(path, '{"c": 3}')
    assert files.read_json_lines(path) == [{"a": 1}, {"c": 3}]
    assert files.read_json_lines(tmp_path / "none") == []


def test_atomic_directory_is_whole_or_absent(tmp_path):
    with pytest.raises(RuntimeError), files.atomic_directory(tmp_path / "d") as work:
        (work / "x").write_text("1")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with files.atomic_directory(tmp_path / "d") as work:
        (work / "x").write_text("1")
    assert (tmp_path / "d" / "x").read_text() == "1"
    with pytest.raises(StateError, match="already exists"), files.atomic_directory(tmp_path / "d"):
        pass


def test_manifest_names_the_file_that_changed(tmp_path):
    (tmp_path / "a").write_text("one")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "b").write_text("two")
    files.write_manifest(tmp_path)
    files.check_manifest(tmp_path)
    (tmp_path / "s" / "b").write_text("tw0")
    with pytest.raises(StateError, match="checksum differs") as error:
        files.check_manifest(tmp_path)
    assert "s/b" in str(error.value)
    (tmp_path / "s" / "b").unlink()
    with pytest.raises(StateError, match="missing"):
        files.check_manifest(tmp_path)


def test_os_errors_are_explained(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(files.tempfile, "mkstemp", full)
    with pytest.raises(StateError, match="no space left") as error:
        files.write_text(tmp_path / "x", "1")
    assert error.value.exit_code == 5 and str(tmp_path) in str(error.value)


def test_broken_json_is_a_state_error(tmp_path):
    (tmp_path / "x.json").write_text('{"a"')
    with pytest.raises(StateError, match="not valid JSON"):
        files.read_json(tmp_path / "x.json")
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


CODE = """
import sys
from pathlib import Path
from mcit.core import files
root = Path(sys.argv[1])
files.write_json(root / "x.json", {"v": 2})
files.append_line(root / "l.jsonl", "{}")
with files.atomic_directory(root / "d") as work:
    files.write_text(work / "a", "1")
    files.write_manifest(work)
print(files.operations())
"""


def test_killed_at_every_operation_each_file_is_whole_or_absent(tmp_path):
    def run(root, fault=None):
        root.mkdir()
        files.write_json(root / "x.json", {"v": 1})
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        env.pop("MCIT_FAULT_AT", None)
        if fault:
            env["MCIT_FAULT_AT"] = str(fault)
        return subprocess.run([sys.executable, "-c", CODE, str(root)], env=env, capture_output=True, text=True)

    total = int(run(tmp_path / "whole").stdout)
    assert total >= 9
    for n in range(1, total + 1):
        root = tmp_path / str(n)
        assert run(root, n).returncode == -signal.SIGKILL
        assert json.loads((root / "x.json").read_text())["v"] in (1, 2)
        if (root / "d").exists():
            files.check_manifest(root / "d")
