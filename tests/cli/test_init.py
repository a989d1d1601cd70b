"""``mcit init``: what it prints, and its exit codes."""

import json

from mcit.cli.main import main
from tests.data.test_guess import save
from tests.fakes.rows import llava


def test_init_names_its_guesses(tmp_path, capsys):
    save(tmp_path / "colours.json", [llava("1", "q", "red")])
    assert main(["init", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "task colours: colours.json -> train" in out and f"mcit plan {tmp_path / 'run.yaml'}" in out
    assert main(["init", str(tmp_path), "--out", str(tmp_path)]) == 4
    assert "is there already" in capsys.readouterr().err


def test_init_as_json(tmp_path, capsys):
    save(tmp_path / "colours.json", [llava("1", "q", "red")])
    assert main(["init", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert str(tmp_path / "run.yaml") in said["written"] and any("task colours" in line for line in said["said"])


def test_init_of_nothing(tmp_path, capsys):
    assert main(["init", str(tmp_path)]) == 4
    assert "no file with rows was found" in capsys.readouterr().err


def test_the_command_to_go_on_with_can_be_pasted(tmp_path, capsys):
    save(tmp_path / "my data" / "colours.json", [llava("1", "q", "red")])
    assert main(["init", str(tmp_path / "my data")]) == 0
    assert f"mcit plan '{tmp_path}/my data/run.yaml'" in capsys.readouterr().out
