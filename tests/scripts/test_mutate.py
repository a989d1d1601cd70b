"""Which places are mutated, and that the list of equivalent mutants holds no stale entry."""

import ast
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import mutate
from scripts.equivalent import EQUIVALENT


def test_every_equivalent_mutant_is_one_that_can_be_made():
    for name, reason in EQUIVALENT.items():
        assert name in mutate.names(Path(name.partition(": ")[0])), name
        assert reason.strip()


def test_a_mutation_is_known_by_its_line_and_change():
    found = mutate.names(Path("mcit/core/files.py"))
    assert len(set(found)) == len(found)
    line = "mcit/core/files.py: for start in (*range(end - _CHUNK, 0, -_CHUNK), 0): | "
    assert [name for name in found if name.startswith(line + "0")] == [f"{line}0  ->  1", f"{line}0  ->  1 (2)"]


def test_any_file_of_the_package_can_be_named_and_nothing_is_named_in_vain():
    assert mutate.files_of(["mcit/core/hashes.py", "mcit/data/pictures.py:12-"]) == [
        Path("mcit/core/hashes.py"), Path("mcit/data/pictures.py"),
    ]  # fmt: skip
    assert len(mutate.files_of(mutate.TARGETS)) > 50
    for wrong in ("mcit/core/hashs.py", "mcit/nothing"):
        with pytest.raises(SystemExit, match="names no Python file"):
            mutate.files_of([wrong])


def test_lines_of_a_file():
    path = Path("mcit/core/files.py")
    source = (mutate.ROOT / path).read_text()
    lines = [node.lineno for node, _ in mutate.sites(source, ast.parse(source))]
    for number, line in enumerate(lines):
        assert mutate.is_in(path, number, "mcit/core") and not mutate.is_in(path, number, "mcit/runs")
        assert mutate.is_in(path, number, f"{path}:{line}") and not mutate.is_in(path, number, f"{path}:{line + 1}")
        assert mutate.is_in(path, number, f"{path}:200-") == (line >= 200)


def test_mutants_that_were_caught_are_not_run_again(tmp_path):
    lines = [
        json.dumps({"name": name, "module": "m", "caught": caught}) for name, caught in (("a", True), ("b", False))
    ]
    file = tmp_path / "mutants.jsonl"
    file.write_text("\n".join([*lines, lines[0].replace('"a"', '"c"')]))  # the last was cut off before its end
    assert mutate.caught_before(file) == {("a", "m")}
    assert mutate.caught_before(None) == mutate.caught_before(tmp_path / "none") == set()


def test_tests_that_caught_mutants_before_come_first_then_those_without_a_folder(tmp_path):
    def item(name, *fixtures):
        return SimpleNamespace(nodeid=name, fixturenames=fixtures)

    items = [item("a", "tmp_path", "cache"), item("b"), item("once", "tmp_path"), item("c", "clock"), item("twice")]
    mutate.LikelyFirst(Counter({"once": 1, "twice": 2}), tmp_path).pytest_collection_modifyitems(items)
    assert [one.nodeid for one in items] == ["twice", "once", "b", "c", "a"]


def test_the_test_that_failed_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(mutate, "CAUGHT", Counter())
    wrong = tmp_path / "test_wrong.py"
    wrong.write_text("def test_right():\n    pass\n\ndef test_wrong():\n    assert 1 == 2\n")
    assert mutate.notices([str(wrong)], tmp_path)
    ((name, count),) = mutate.CAUGHT.items()
    assert name.endswith("test_wrong.py::test_wrong") and count == 1
