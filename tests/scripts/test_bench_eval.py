"""scripts/bench/eval.py: nothing is timed that does not answer the same, and a table says what was measured."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "eval.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_eval", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def answer(text, near_tie=None):
    return {"text": text, "near_tie": near_tie}


def test_other_answers_are_not_timed(bench):
    """Only a near tie at or before the first token that differs excuses it; a shorter answer differs at its end."""
    made = bench.compared([answer("1 2 3"), answer("1 2 3", 1), answer("4", 0)], ["1 2 3", "1 9 3", "4"])
    assert made == {
        "answers": 3, "equal": 2, "near_ties": 2, "differing": [{"row": 1, "near_tie": 1, "differs_at": 1}],
    }  # fmt: skip
    for mine, other in ((answer("1 2"), "1 3"), (answer("1 2", 2), "1 3"), (answer("1"), "1 2")):
        with pytest.raises(SystemExit, match="by itself"):
            bench.compared([mine], [other])


def test_table(bench, tmp_path):
    times = {"median": 4.0, "min": 3.5, "max": 4.25}
    one = {
        "case": "short-5", "answers": 40, "equal": 39, "near_ties": 2, "tokens_per_answer": 4.0, "times": times, "aim": 4.5,
        "repeats": 5, "rows_per_second": {"loop": {"median": 10.0}, "mcit": {"median": 40.0}},
    }  # fmt: skip
    machine = {"cpus": 2, "threads": 1, "clock": "wall", "torch": "2", "transformers": "5"}
    lines = bench.table({"machine": machine, "cases": [one]}).splitlines()
    assert lines[0].endswith("wall time; medians of 5 rounds (smallest to largest).")
    assert lines[-1] == "| `short-5` | 39 of 40 | 2 | 4.0 | 10.0 | 40.0 | 4.00 (3.50 to 4.25) | 4.5 |"


@pytest.mark.slow
def test_the_smallest_comparison(tmp_path):
    command = [sys.executable, str(SCRIPT), "--only", "short-5", "--rows", "10", "--repeat", "1", "--threads", "1"]
    subprocess.run([*command, "--json", str(tmp_path / "out.json")], capture_output=True, text=True, check=True)
    (found,) = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert (found["answers"], found["tokens_per_answer"]) == (10, 4.0)
    assert found["times"]["median"] > 1
