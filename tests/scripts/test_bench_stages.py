"""scripts/bench/stages.py over a few stages: every stage has its parts, and they add up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "stages.py"


@pytest.mark.slow
def test_parts_of_a_stage_add_up(tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, SCRIPT, "--stages", "4", "--set", "eval.rows=1", "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(file.read_text())
    assert len(found["lines"]) == 4 and "mean resident memory" in done.stdout
    for line in found["lines"]:
        assert line["seconds"] == pytest.approx(line["train"] + line["score"] + line["rest"])
        assert 0 < line["fixed"] < line["train"] and line["resident"] > 50
