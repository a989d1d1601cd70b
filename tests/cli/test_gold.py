import json

import pytest
import yaml

from mcit.cli.main import main
from tests.fakes.forgetful import write_config

pytestmark = pytest.mark.slow


def test_a_gold_run_is_planned_run_continued_and_measured(forgetful, tmp_path, capsys):
    config = str(write_config(tmp_path))
    assert main(["gold", config, "--plan"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["without"] == ["tiny/word-forget"]
    given = ["gold", config, "--without", "tiny/word-forget", "--runs-dir", str(tmp_path), "--json"]
    assert main([*given, "--set", "eval.tasks=none"]) == 0
    gold = json.loads(capsys.readouterr().out)["run"]
    assert main(["resume", gold]) == 0
    capsys.readouterr()
    before = (forgetful / "kit" / "after-02" / "02-forget-red" / "kit.json").read_bytes()
    assert main(["eval", str(forgetful), "--gold", gold, "--json"]) == 0
    entries = {entry["after"]: entry for entry in json.loads(capsys.readouterr().out)["kit"]}
    assert list(entries) == ["base", "01-word", "02-forget-red", "03-letter", "gold run"]
    assert entries["gold run"]["forget_quality"] == 1.0 and entries["gold run"]["priv_leak"] == 0.0
    assert 0 <= entries["02-forget-red"]["forget_quality"] <= 1
    assert (forgetful / "kit" / "after-02" / "02-forget-red" / "kit.json").read_bytes() == before
    page = (forgetful / "report" / "report.md").read_text()
    assert "## What is left of what was forgotten" in page and "wrong answers of 5 of 5 rows" in page
    assert "forget_quality" in (forgetful / "report" / "kit.csv").read_text()


def test_refused(forgetful, tmp_path, capsys):
    config = str(write_config(tmp_path))
    assert main(["gold", config, "--without", "tiny/word-forgt"]) == 2
    assert "did you mean 'tiny/word-forget'" in capsys.readouterr().err
    assert main(["gold", "tiny", "--plan"]) == 2
    assert "no stage forgets" in capsys.readouterr().err
    assert main(["eval", str(forgetful), "--gold", str(forgetful)]) == 5
    assert "is no gold run" in capsys.readouterr().err
    assert main(["eval", str(forgetful), "--kit", "rows=one"]) == 2
    assert "--kit.rows" in capsys.readouterr().err
    assert main(["eval", str(forgetful), "--kit", "--rescore"]) == 2
