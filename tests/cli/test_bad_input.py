"""Every wrong input ends with its exit code, a place, a reason and a cure, and leaves every file as it was.

The table in docs/reliability.md is written from here: ``WRITE_DOCS=1 pytest tests/cli/test_bad_input.py``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mcit.cli.main import main
from mcit.core.errors import Problem, printable, shown
from tests.fakes.bad_input import CASES, Case
from tests.fakes.docs import block, written

DOC = Path(__file__).parents[2] / "docs" / "reliability.md"
PART = "hostile"
NAMES = [case.name for case in CASES]


def test_there_are_enough_and_none_twice():
    assert len(CASES) >= 150 and len(set(NAMES)) == len(CASES)


def tree(root):
    """Every file below a folder with its content."""
    return {
        str(path): path.read_bytes() if path.is_file() and path.stat().st_size < 10_000_000 else path.lstat().st_size
        for path in sorted(root.rglob("*"))
        if not path.name.endswith(".lock")
    }


@pytest.fixture(scope="module")
def measured():
    """Row of the table by case; filled as the cases run."""
    return {}


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_bad_input(case, measured, tmp_path, monkeypatch, capsys):
    measured[case.name] = measure(case, tmp_path, monkeypatch, capsys)


def measure(case: Case, root: Path, monkeypatch, capsys) -> str:
    """Run it, check it, and say it as a row of the table."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MCIT_DATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in case.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(root)
    argv = case.make(root)
    before = tree(root)
    machine = bool(case.code)  # what is refused is read as JSON, what is said as a person reads it
    code = main([*argv, "--json"] if machine else argv)
    out, err = capsys.readouterr()
    assert code == case.code, (out, err)
    assert "Traceback" not in out + err
    after = tree(root)
    assert {path: after.get(path) for path in before} == before, "nothing that was there is lost"
    data = str(root / "data")
    assert {path for path in after if path not in before and path != data} == set(), "nothing is left behind"
    if not machine:
        assert case.says in " ".join((out + err).split()) and "\x1b" not in out + err
        return row(case, argv, root, "said", "", case.says, "")
    problems = json.loads(out)["problems"]
    assert problems and all(p["where"] and p["what"] and p["fix"] for p in problems), problems
    lines = shown([Problem(p["where"], p["what"], p["fix"]) for p in problems])  # as a person reads it: short
    assert len(lines) <= 64 and sum(map(len, lines)) < 8000
    last = problems[-1]
    return row(case, argv, root, f"exit {code}", last["where"], last["what"], last["fix"])


def row(case: Case, argv: list[str], root: Path, end: str, where: str, what: str, fix: str) -> str:
    """One line of markdown without what differs between machines."""
    verb = " ".join(argv[:2]) if argv[0] == "data" else argv[0]

    def cell(text: str, most: int) -> str:
        text = printable(text.replace(f"{root}/", "").replace(str(root), ".").replace("\n", " "))
        text = re.sub(r"/\S*/(?=data_recipes|configs)", "", text)
        text = re.sub(r"\b(?:[0-9a-f]{64}|[0-9a-f]{16})\b", "…", text)
        text = re.sub(r"(this machine has|use --nproc) \d+", r"\1 N", text)
        text = re.sub(r"Input should be '.*' \(got", "Input should be one of … (got", text)  # so do these
        text = re.sub(r"known: (?!(?:\w+, ){0,3}\w+(?:$|, or)).*", "known: …", text)  # lists grow with the project
        text = text if len(text) <= most else text[: most - 1] + "…"
        return text.replace("|", "\\|").replace("<", "&lt;")

    return f"| {cell(case.name, 60)} | `{verb}` | {end} | {cell(where, 60)} | {cell(what, 110)} | {cell(fix, 90)} |"


def test_the_table_in_the_docs_is_what_was_measured(measured, tmp_path, monkeypatch, capsys):
    for number, case in enumerate(case for case in CASES if case.name not in measured):
        (tmp_path / str(number)).mkdir()
        measured[case.name] = measure(case, tmp_path / str(number), monkeypatch, capsys)
    head = ["| input | command | ends with | where | what | fix |", "|---|---|---|---|---|---|"]
    text = "\n".join([*head, *(measured[name] for name in NAMES)])
    written(DOC, PART, text)
    assert block(DOC, PART) == text
    assert {line.split(" | ")[2] for line in text.splitlines()[2:]} <= {
        "said",
        *(f"exit {code}" for code in (2, 3, 4, 5)),
    }
