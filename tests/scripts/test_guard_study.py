"""scripts/guard_study.py: its runs are valid configs, its ratios and its table are right."""

import pytest

from mcit.plan.plan import read_config
from scripts import guard_study as study


@pytest.mark.parametrize("detector", study.DETECTORS)
def test_a_run_differs_in_its_forget_stage_and_is_answered_with_the_guard(detector):
    plain, _ = read_config(study.CONFIG, ["seed=2"])
    config, _ = read_config(study.CONFIG, study.overrides(detector, 2))
    assert config.stages[:2] == plain.stages[:2] and config.stages[3] == plain.stages[3]
    assert config.stages[2].epochs == 0 and config.stages[2].adapter.kind == "none"
    (method,) = config.stages[2].methods
    assert method["name"] == "guard" and method["detector"] == detector
    assert config.eval.filters == [{"use": "guard"}] and config.seed == 2


def test_ratios_are_of_seconds_per_token_in_turns(monkeypatch):
    """Without: 1 s for 2 answers of 1 token and an end, so 0.25 s; with: 3 s for 1 such answer, so 1.5 s."""
    clock = [0.0]
    monkeypatch.setattr(study.time, "perf_counter", lambda: clock[0])

    def answers(seconds, count):
        def call():
            clock[0] += seconds
            return [[{"tokens": 1}] * count]

        return call

    found = study.ratios(answers(1.0, 2), answers(3.0, 1), repeats=3)
    assert found == {"ratio": 6.0, "quartiles": [6.0, 6.0], "repeats": 3}


def test_the_table_by_hand():
    one = {
        "detector": "mlp",
        "kinds": {"retained": {"rows": 20, "guarded": 1, "right": 19}},
        "passed, 1 at a time": {"ratio": 1.5, "quartiles": [1.4, 1.61]},
    }
    text = study.table([one, {**one, "kinds": {"retained": {"rows": 20, "guarded": 0, "right": 20}}}])
    assert "| `mlp` | 2 | retained | 40 | 2.5 [0.4, 12.9] | 97.5 |" in text
    assert "| `mlp` | passed, 1 at a time | 1.50 (1.40 to 1.61), 1.50 (1.40 to 1.61) |" in text
