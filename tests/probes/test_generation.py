"""Scores of answers inside a stage."""

from types import SimpleNamespace

import pytest

from mcit.core.errors import PlanError
from mcit.probes.generation import Generation
from tests.fakes.bench import plan_of
from tests.probes.test_stability import data_of
from tests.train.test_probing import drafted


def test_rows_and_scores_per_task():
    probe = Generation(Generation.Config(rows=2))
    rows = probe.rows(data_of(1))
    assert {task: len(mine) for task, mine in rows.items()} == {"a": 2, "b": 2}
    ctx = SimpleNamespace(score=lambda task, rows: {"accuracy": 1.0, "task": task})
    assert probe.measure({**rows, "empty": []}, ctx) == {t: {"accuracy": 1.0, "task": t} for t in ("a", "b")}


def test_in_a_stage(tmp_path):
    lines = drafted(plan_of(probes=[{"use": "generation", "every": 2, "rows": 3, "share": None}]), tmp_path / "a")
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert all(set(line["values"]["letter"]) == {"accuracy", "valid", "truncated", "rows"} for line in lines)


def test_a_task_that_is_never_seen_is_refused():
    with pytest.raises(PlanError, match="task 'x' is in no stage"):
        plan_of(probes=[{"use": "generation", "tasks": ["x"]}])
