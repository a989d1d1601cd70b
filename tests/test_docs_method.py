"""docs/own-method.md word by word: its files written, its commands run as a user runs them, what they print compared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs_data import BLOCK, agrees, commands

PAGE = Path(__file__).parent.parent / "docs" / "own-method.md"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_is_true(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    done = []
    for language, title, text in BLOCK.findall(PAGE.read_text()):
        if title:
            (tmp_path / title).write_text(text)
        elif language == "console":
            for command, shown in commands(text):
                argv = [sys.executable, "-m", "mcit", *command] if command[0] != "-m" else [sys.executable, *command]
                found = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
                printed = found.stdout + found.stderr
                assert found.returncode == 0 and agrees(printed, shown), f"{argv}:\n{printed}"
                done.append(command[0])
    assert done == ["plan", "run", "-m"]
    (lines,) = tmp_path.glob("runs/mine-*/stages/02-*/metrics.jsonl")
    assert "Brake" in lines.read_text()
    assert len(list(tmp_path.glob("runs/mine-*/stages/*/methods/*/state.json"))) == 2
