"""scripts/bench/train.py: nothing is timed that does not learn the same, and every side takes the same steps."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "train.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_train", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Side:
    """Losses that are known."""

    def __init__(self, *losses):
        self._losses = iter(losses)

    def step(self):
        return next(self._losses)


def test_other_losses_are_not_timed(bench):
    same = [2.0 - k / 10 for k in range(bench.CHECKED)]
    close = [*same[:-1], same[-1] * (1 + 5e-5)]
    assert 4e-5 < bench.compared({"mcit": Side(*same), "trl": Side(*close)}) < 6e-5
    with pytest.raises(SystemExit, match="the losses differ by 1.0e-03"):
        bench.compared({"mcit": Side(*same), "trl": Side(*same[:-1], same[-1] * 1.001)})


def test_spread(bench):
    assert bench.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_rounds_are_shorter_where_a_case_would_take_too_long(bench):
    assert bench.fitting(170.0, 30.0, 5, 4) == 4  # 3 s a step of all sides: 30 + 5 * 5 * 3 s
    assert bench.fitting(170.0, 76.0, 5, 4) == 1  # 7.6 s: 76 + 5 * 2 * 7.6 s
    assert bench.fitting(170.0, 50.0, 5, 4) == 3  # 5 s: 50 + 5 * 4 * 5 s
    assert bench.fitting(170.0, 400.0, 5, 4) == 1


@pytest.mark.slow
def test_a_plain_trainer_takes_the_same_steps(tmp_path):
    """One case at its smallest: losses of ten steps agree, and packs are at least as fast."""
    options = ["--only", "mixed", "--sides", "trainer", "--rounds", "1", "--steps", "1", "--threads", "1"]
    command = [sys.executable, str(SCRIPT), *options, "--json", str(tmp_path / "out.json")]
    subprocess.run(command, capture_output=True, text=True, check=True)
    (found,) = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert found["loss_difference"] < 1e-5 and set(found["rows_per_second"]) == {"mcit", "trainer"}
    assert (found["rounds"], found["steps_per_round"]) == (1, 1)
    assert found["flops_per_step"] > 1e9 and 0 < found["utilisation"]["median"] < 1.2
