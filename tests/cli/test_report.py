"""``mcit report``."""

import argparse
import json
import subprocess
import sys
import time

import pytest

from mcit.cli import report
from mcit.core.errors import StateError
from mcit.evals.score import score_predictions, write_score
from tests.fakes.run_dir import create, plan_record


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    report.add_parser(parser.add_subparsers())
    return parser.parse_args(["report", *argv])


@pytest.fixture
def root(tmp_path):
    return make(tmp_path / "one")


def make(root, right: int = 3, *, stages: int = 1, n: int = 4):
    names = [f"t{k}" for k in range(1, stages + 1)]
    create(root, plan_record([[t] for t in names]))
    for k in range(1, stages + 1):
        for task in names[:k]:
            rows = [
                {
                    "id": f"{i}",
                    "index": i,
                    "text": "cat" if i < right else "The cat",
                    "tokens": 1,
                    "truncated": False,
                    "question": "q",
                    "gold": {"answer": "cat"},
                }
                for i in range(n)
            ]
            folder = root / "evals" / f"after-{k:02d}" / task
            extra = {"task": task, "filters": [], "lineage": "L", "settings": "S"}
            write_score(folder, score_predictions(rows, scorer="exact", style="name", extra=extra))
    return root


def test_one_run(root, capsys) -> None:
    assert report.run(arguments(str(root))) == 0
    out = capsys.readouterr().out
    assert "75.00" in out
    assert str(root / "report" / "report.md") in out
    assert (root / "report" / "matrix.csv").is_file()


def test_json_is_one_object(root, capsys) -> None:
    report.run(arguments(str(root), "--json"))
    found = json.loads(capsys.readouterr().out)
    assert found["matrix"] == [[75.0]]
    assert found == json.loads((root / "report" / "report.json").read_text())


def test_another_mode_is_shown_and_not_written(root, capsys) -> None:
    report.run(arguments(str(root), "--mode", "fixed", "--json"))
    assert json.loads(capsys.readouterr().out)["matrix"] == [[100.0]]
    assert not (root / "report").exists()


def test_several_runs(root, tmp_path, capsys) -> None:
    two = make(tmp_path / "two", 1)
    report.run(arguments(str(root), str(two)))
    assert "| t1 at the end | 75.00 | 25.00 |" in capsys.readouterr().out
    report.run(arguments(str(root), str(two), "--json"))
    assert [r["name"] for r in json.loads(capsys.readouterr().out)] == ["one", "two"]


def test_no_run(tmp_path) -> None:
    with pytest.raises(StateError, match="not a run folder") as caught:
        report.run(arguments(str(tmp_path)))
    assert caught.value.exit_code == 5


def test_quick_and_without_torch(tmp_path) -> None:
    """Four stages of 60 rows: the whole verb, imports included; the budget is one second on an idle machine."""
    root = make(tmp_path / "four", 40, stages=4, n=60)
    code = (
        "import argparse, sys; from mcit.cli import report; p = argparse.ArgumentParser(); "
        f"report.add_parser(p.add_subparsers()); report.run(p.parse_args(['report', {str(root)!r}])); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
    assert time.monotonic() - start < 5.0


def test_a_run_on_a_read_only_mount_is_reported_all_the_same(root, monkeypatch, capsys):
    def refused(run):
        raise StateError("the folder is read-only", where=str(run), fix="choose another")

    monkeypatch.setattr("mcit.report.tables.write_report", refused)
    assert report.run(arguments(str(root))) == 0
    out, err = capsys.readouterr()
    assert "t1" in out and "note: the report was not written" in err and "read-only" in err
