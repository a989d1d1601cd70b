"""Putting runs of the probe studies together."""

import pytest

from scripts.probe_study import gap_of, memory_of, summary


def test_summary():
    found = summary([0.0, 1.0])
    assert found["mean"] == 0.5 and found["interval"] == [0.0, 1.0] and found["n"] == 2


def test_gaps_over_runs():
    def run(drop):
        gap = {"stage": 2, "task": "a", "drop": drop, "recovery": drop / 2, "step": 3}
        stability = {"gaps": [gap], "metrics": {"acc": 0.5}}
        return {"stability": stability, "shares": [{"probe": "stability", "share": 0.1}, {"probe": "seen", "share": 1}]}

    found = gap_of([run(0.2), run(0.4)])
    assert found["drop"]["mean"] == pytest.approx(0.3) and found["recovery"]["mean"] == pytest.approx(0.15)
    assert found["share_of_step_time"] == [[0.1], [0.1]] and len(found["metrics"]) == 2


def test_memories_are_pooled_over_seeds():
    def run(hits):
        entry = {
            "exposures": 1,
            "since": 0,
            "rows": 10,
            "recognised": hits,
            "exact": 0,
            "rouge_l": 0.2,
            "full_rouge_1": 0.6,
        }
        line = {"step": 4, "stage": 1, "values": {"t": entry}}
        return {"lines": {"memory": [line, {**line, "step": 0, "stage": 2}]}}

    (line,) = memory_of([run(10), run(8)])
    assert line["recognised"]["share"] == 0.9 and line["rows"] == 20 and line["exact"]["interval"][0] == 0
    assert line["recognised"]["interval"] == pytest.approx([0.699, 0.972], abs=1e-3) and line["rouge_l"] == 0.2
