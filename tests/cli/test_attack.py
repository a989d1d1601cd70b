import json

import pytest

from mcit.cli.main import main

pytestmark = pytest.mark.slow


def test_from_the_command_line_into_the_report(forgetful, capsys):
    given = ["attack", str(forgetful), "--stage", "2", "--kind", "benign", "--rows", "4", "--rank", "2"]
    assert main([*given, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "benign" and [e["rows"] for e in record["controls"]["base"]] == [0, 4]
    assert "| 02-forget-red | benign | 4 |" in (forgetful / "report" / "report.md").read_text()
    assert main([*given, "--control", "none"]) == 0
    assert "02-forget-red, benign, 4 rows: accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--stage", "1"], "forgets nothing"),
        (["--stage", "7"], "stage 7 is not committed"),
        (["--stage", "2", "--rows", "a"], "no list of numbers"),
        (["--stage", "2", "--rows", "20,0"], "is not above 0"),
        (["--stage", "2", "--lr", "nan"], "is not above 0"),
        (["--stage", "2", "--control", "nothing"], "no such folder"),
    ],
)
def test_refused(forgetful, capsys, options, text):
    assert main(["attack", str(forgetful), *options]) in (2, 5)
    assert text in capsys.readouterr().err


def test_a_run_that_is_no_gold_run_is_no_control(forgetful, capsys):
    assert main(["attack", str(forgetful), "--stage", "2", "--control", str(forgetful)]) == 5
    assert "is no gold run" in capsys.readouterr().err


def test_a_gold_run_that_is_not_finished_is_named_before_anything_is_trained(forgetful, tmp_path, capsys):
    (config,) = forgetful.parent.parent.glob("*.yaml")
    assert main(["gold", str(config), "--runs-dir", str(tmp_path)]) == 0
    (gold,) = tmp_path.iterdir()
    assert main(["rollback", str(gold), "--to-stage", "1", "--yes"]) == 0
    capsys.readouterr()
    given = ["attack", str(forgetful), "--stage", "2", "--kind", "relearn", "--rows", "5", "--control", str(gold)]
    assert main(given) == 5
    shown = capsys.readouterr()
    assert "has not come to stage 2 yet" in shown.err and "relearn-5" not in shown.out
