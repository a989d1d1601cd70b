import builtins
import json

import pytest

from mcit.cli.main import main
from tests.fakes.run_dir import opened, resolved, whole


@pytest.fixture
def run(tmp_path):
    return whole(tmp_path, resolved(stages=("a", "b", "c")))


def test_it_asks_for_yes_where_nobody_can_be_asked(run, capsys):
    assert main(["rollback", str(run.layout.root), "--to-stage", "1"]) == 2
    assert "--yes" in capsys.readouterr().err and len(run.committed()) == 3


@pytest.mark.parametrize(("answer", "left"), [("y", 1), ("", 3), ("no", 3)])
def test_on_a_terminal_it_shows_what_goes_and_asks(run, capsys, monkeypatch, answer, left):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", lambda question: answer)
    assert main(["rollback", str(run.layout.root), "--to-stage", "1"]) == (0 if left == 1 else 2)
    out = capsys.readouterr().out
    assert "stages/02-b" in out and "stages/03-c" in out and "stages/01-a" not in out
    assert len(run.committed()) == left


def test_json_names_what_went(run, capsys):
    assert main(["rollback", str(run.layout.root), "--to-stage", "0", "--yes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["to_stage"] == 0 and set(found["removed"]) == {"stages/01-a", "stages/02-b", "stages/03-c"}
    assert run.committed() == []


def test_a_stage_too_many_and_a_run_being_written_are_refused(run, capsys, tmp_path):
    assert main(["rollback", str(run.layout.root), "--to-stage", "4", "--yes"]) == 2
    assert "0 to 3" in capsys.readouterr().err
    with opened(tmp_path, resolved(stages=("a", "b", "c"))).locked():
        assert main(["rollback", str(run.layout.root), "--to-stage", "1", "--yes"]) == 5
    assert "is being written by process" in capsys.readouterr().err and len(run.committed()) == 3
