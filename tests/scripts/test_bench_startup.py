"""scripts/bench/startup.py on the tiny config: every part is measured, and the first step is one that was made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "startup.py"


@pytest.mark.slow
def test_every_part_is_measured(tmp_path):
    command = [sys.executable, str(SCRIPT), "--config", "tiny", "--repeat", "1", "--json", str(tmp_path / "out.json")]
    subprocess.run(command, capture_output=True, text=True, check=True)
    results = {r["part"]: r for r in json.loads((tmp_path / "out.json").read_text())["results"]}
    assert set(results) == {"imports", "help", "plan", "first step"}
    assert 0 < results["help"]["cpu_s"]["median"] < results["imports"]["cpu_s"]["median"], results
    assert results["plan"]["cpu_s"]["median"] < 2 * results["imports"]["cpu_s"]["median"], results
