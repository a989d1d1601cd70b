"""scripts/bench/scaling.py: steps are taken, and what they take is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench.rows import write_set

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "scaling.py"


@pytest.mark.slow
def test_steps_on_made_up_rows(tmp_path):
    recipe = write_set(tmp_path / "rows", 60, layout="lines")
    command = [sys.executable, str(SCRIPT), "--one", str(recipe), "--steps", "2"]
    environment = {**os.environ, "MCIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["first_step_cpu_s"] < 120
    assert 100 < found["first_step_mb"] <= found["peak_mb"] * 1.05
