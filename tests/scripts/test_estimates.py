"""The table of docs/estimates.md is the one that the script prints."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--checkpointing"]])
def test_docs_hold_what_the_script_prints(options):
    done = subprocess.run(
        [sys.executable, "scripts/estimates.py", *options], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tables = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(tables) == 4 * 10
    text = (ROOT / "docs" / "estimates.md").read_text()
    section = text.split("\npython scripts/estimates.py" + "".join(f" {o}" for o in options) + "\n")[1]
    assert [line for line in section.split("python scripts")[0].splitlines() if line.startswith("| ")] == [
        line for line in tables if line.startswith("| ")
    ]
