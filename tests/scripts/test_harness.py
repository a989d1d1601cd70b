"""What other harnesses are handed."""

import json
import sys

import pytest

from mcit.core.files import write_json
from scripts import harness


@pytest.fixture
def export(tmp_path):
    write_json(tmp_path / "m" / "export.json", {"kind": "merged"})
    write_json(tmp_path / "m" / "config.json", {"model_type": "qwen2_5_vl"})
    return tmp_path / "m"


def test_lmms_eval_gets_the_folder(export, capsys):
    assert harness.main(["lmms-eval", str(export), "--tasks", "mme,pope"]) == 0
    words = capsys.readouterr().out.split()
    assert words[:3] == [sys.executable, "-m", "lmms_eval"]
    assert words[words.index("--model") + 1] == "huggingface"
    assert words[words.index("--model_args") + 1] == f"pretrained={export.resolve()}"
    assert words[words.index("--tasks") + 1] == "mme,pope"


def test_vlmevalkit_gets_a_config(export, capsys):
    given = ["--tasks", "MMBench_DEV_EN_V11:ImageMCQDataset", "--kit", "/opt/kit"]
    assert harness.main(["vlmevalkit", str(export), *given]) == 0
    config = export.parent / "m-vlmevalkit.json"
    assert capsys.readouterr().out.split()[1:4] == ["/opt/kit/run.py", "--config", str(config)]
    assert json.loads(config.read_text()) == {
        "model": {"m": {"class": "Qwen2VLChat", "model_path": str(export.resolve())}},
        "data": {"MMBench_DEV_EN_V11": {"class": "ImageMCQDataset", "dataset": "MMBench_DEV_EN_V11"}},
    }


def test_what_cannot_be_handed_over_is_refused(export, capsys):
    assert harness.main(["vlmevalkit", str(export), "--tasks", "MMBench"]) == 2
    assert "names no class" in capsys.readouterr().err
    write_json(export / "config.json", {"model_type": "llava"})
    assert harness.main(["vlmevalkit", str(export), "--tasks", "MMBench:X"]) == 2
    assert "model type 'llava'" in capsys.readouterr().err
    write_json(export / "export.json", {"kind": "delta"})
    assert harness.main(["lmms-eval", str(export), "--tasks", "mme"]) != 0
    assert "no merged export" in capsys.readouterr().err


def test_run_runs_it(export, monkeypatch):
    ran = []
    done = type("Done", (), {"returncode": 7})
    monkeypatch.setattr(harness.subprocess, "run", lambda command, check: ran.append(command) or done())
    assert harness.main(["lmms-eval", str(export), "--tasks", "mme", "--run"]) == 7 and len(ran) == 1
