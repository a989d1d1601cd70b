"""scripts/bench/startup.py on the tiny config: every part is measured, and the first step is one that was made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench.startup import aims

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "startup.py"


@pytest.mark.slow
def test_every_part_is_measured(tmp_path):
    command = [sys.executable, str(SCRIPT), "--config", "tiny", "--repeat", "1", "--json", str(tmp_path / "out.json")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "plan of tiny: " in said and "demo" not in said
    results = {r["part"]: r for r in json.loads((tmp_path / "out.json").read_text())["results"]}
    assert set(results) == {"imports", "help", "plan", "first step"}
    assert 0 < results["help"]["cpu_s"]["median"] < results["imports"]["cpu_s"]["median"], results
    assert results["plan"]["cpu_s"]["median"] < 2 * results["imports"]["cpu_s"]["median"], results


def test_what_is_aimed_at_by_hand():
    seconds = {("imports", ""): 3.0, ("plan", "tiny"): 4.5, ("first step", "tiny"): 1.5, ("plan", "demo"): 4.1}
    assert aims(seconds) == ["plan of demo: 4.10 s, aim 4.00 s: missed", "plan of tiny: 4.50 s, aim 4.50 s: met"]
