"""scripts/bench/rows.py at a small size: the figures it prints are of this process, and memory does not follow the rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "rows.py"


@pytest.mark.slow
def test_memory_does_not_follow_the_rows(tmp_path):
    command = [sys.executable, str(SCRIPT), "--rows", "1000", "40000", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    peak = {(r["part"], r["rows"]): r["peak_mb"] for r in results}
    assert len(peak) == 6 and len(done.stdout.splitlines()) == 6
    for part in ("check", "build", "loop"):
        assert peak[part, 40_000] - peak[part, 1_000] < 20, peak
