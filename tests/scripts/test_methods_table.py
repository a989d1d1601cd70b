"""scripts/methods_table.py: which runs it makes, and the table of what they found."""

import argparse
import sys
from pathlib import Path

from scripts import methods_table
from tests.fakes.method_plans import NAMES


def test_runs_are_of_every_ordinary_method_and_of_sequential_training_under_its_carry():
    made = methods_table.sides()
    assert {"ema", "ewc", "feature_kd", "fpf", "mos", "o_lora", "refresh", "view_batch"} < set(made)
    assert not {"bounded_forget", "npo", "refusal", "prototypes"} & set(made) and set(made) - set(NAMES) == {
        name for name in made if name.startswith("sequential-")
    }
    assert all(f"sequential-{carry}" in made for carry, _ in made.values())
    args = argparse.Namespace(home=Path("h"), config="demo", set=["seed=1"])
    line = methods_table.command("o_lora", *made["o_lora"], args)
    assert (
        "defaults.adapter.carry=stack" in line and 'defaults.methods=[{"use": "o_lora"}]' in line and "seed=1" in line
    )


def test_the_table_by_hand():
    """20 s of processor time against 10 s of the same carry; a cell that was not measured is a dash."""
    metrics = {"mft": 50.0, "mfn": 40.04, "forgetting": None}
    one = {"carry": "merge", "tasks": ["a", "b"], "matrix": [[50.0], [30.0, None]], "metrics": metrics}
    one["processor_seconds"] = 10.0
    found = {"ewc": {**one, "processor_seconds": 20.0}, "l2": {**one, "processor_seconds": None}}
    text = methods_table.table({"sequential-merge": one, **found}, "seed 0")
    assert "| `sequential-merge` | merge | 50.0 | 40.0 | – | 30.0, – | 1.00 |" in text
    assert "| `ewc` | merge | 50.0 | 40.0 | – | 30.0, – | 2.00 |" in text and text.startswith("3 runs, seed 0")
    assert "| `l2` | merge | 50.0 | 40.0 | – | 30.0, – | – |" in text


def test_processor_time_is_summed_over_calls_unless_one_was_killed(tmp_path):
    busy = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass\nraise SystemExit(3)"]
    assert methods_table.run_once("ewc", busy, tmp_path) == 3 == methods_table.run_once("ewc", busy, tmp_path)
    calls = tmp_path / "ewc.calls"
    assert 0.6 <= methods_table.processor_seconds(calls) < 6
    calls.write_text("begun\n" + calls.read_text())
    assert methods_table.processor_seconds(calls) is None and methods_table.processor_seconds(tmp_path / "x") is None
