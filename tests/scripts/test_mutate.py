"""Which places are mutated, and that the list of equivalent mutants holds no stale entry."""

import ast
from pathlib import Path

import pytest

from scripts import mutate
from scripts.equivalent import EQUIVALENT


def changes(path):
    source = (mutate.ROOT / path).read_text()
    return [mutate.change(Path(path), number) for number in range(len(mutate.sites(source, ast.parse(source))))]


def test_every_equivalent_mutant_is_one_that_can_be_made():
    for path, change in EQUIVALENT:
        assert change in changes(path), (path, change)
    assert all(reason.strip() for reason in EQUIVALENT.values())


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
