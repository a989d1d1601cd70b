"""The stability probe: moments, rows, what it measures, and the sanity check on a frozen model."""

from types import SimpleNamespace

import pytest

from mcit.core.errors import PlanError
from mcit.core.types import RowFit
from mcit.evals.stability import WINDOWS, wf, wp
from mcit.probes.stability import Stability
from mcit.report.probes import evaluations_of
from tests.fakes.bench import plan_of
from tests.fakes.rows import row
from tests.train.test_probing import drafted


def made(**settings):
    return Stability(Stability.Config(**settings))


def test_dense_at_first_and_sparse_then():
    probe = made(every=10, dense=30, later=40)
    assert [s for s in range(131) if probe.due(s, 130)] == [0, 10, 20, 30, 40, 80, 120, 130]
    assert [s for s in range(8) if made(every=3, dense=None).due(s, 8)] == [0, 3, 6]


def data_of(seed, index=1):
    splits = {("a", "validation"): [row("q", "x", id=f"a{k}") for k in range(9)], ("b", "validation"): []}
    splits[("b", "test")] = [row("q", "x", id=f"b{k}") for k in range(3)]
    train = [row("q", "x", id=f"t{k}") for k in range(20)]
    return SimpleNamespace(
        tasks=("a", "b"), seed=seed, rows=lambda task, split: splits[task, split], stage_rows=lambda: train
    )


def test_rows_are_the_same_in_every_stage_and_run():
    one, two = (made(rows=4).rows(data_of(seed)) for seed in (1, 2))
    assert one["a"] == two["a"] and len(one["a"]) == 4 and [r.id for r in one["b"]] == ["b0", "b1", "b2"]
    assert one[" norms"] != two[" norms"] and len(one[" norms"]) == 4
    assert set(made(norms=0, tasks=["b"]).rows(data_of(1))) == {"b"}


def test_rows_of_the_test_split():
    data = data_of(1)
    tests = {"a": [row("q", "x", id="ta")], "b": [row("q", "x", id="tb")]}
    data.rows = lambda task, split: tests[task] if split == "test" else [row("q", "x", id="v")]
    assert [r.id for rows in made(norms=0, split="test").rows(data).values() for r in rows] == ["ta", "tb"]


def context(step, losses, earlier=(), total=100):
    """Task a is an earlier one, b the stage's; each row's tokens are all right where its loss is below 1."""
    calls = []

    def fits(rows):
        loss = losses[rows[0].id[0]]
        return [RowFit(loss, 2, 2 if loss < 1 else 1) for _ in rows]

    def within(part, work):
        calls.append(part)
        return work()

    stage = SimpleNamespace(tasks=(SimpleNamespace(name="b"),), methods=())
    return SimpleNamespace(
        step=step, total_steps=total, stage=stage, fits=fits, within=within, earlier=earlier, calls=calls,
        score=lambda task, rows: {"accuracy": len(rows)},
    )  # fmt: skip


def test_measurement_and_generation_after_the_first_minimum():
    """The loss of the earlier task rises to 3, falls to 2, rises and falls again: answers once, and at the end."""
    probe = made(rows=4, answers=2)
    rows = {"a": [row("q", "x", id="a1")] * 3, "b": [row("q", "x", id="b1")]}
    lines, generated = [], []
    for step, loss in ((0, 0.5), (10, 3.0), (20, 2.0), (30, 4.0), (40, 1.0), (50, 0.5)):
        ctx = context(step, {"a": loss, "b": 0.1}, earlier=tuple(lines), total=50)
        values = probe.measure(rows, ctx)
        lines.append({"step": step, "values": values})
        generated += [step] if ctx.calls else []
    assert generated == [20, 50] and lines[2]["values"]["answers"] == {"a": {"accuracy": 2}, "b": {"accuracy": 1}}
    assert lines[0]["values"]["settings"] == {"every": 10, "dense": 100, "later": 100, "rows": 4}
    assert lines[1]["values"]["tasks"] == {
        "a": {"loss": 3.0, "accuracy": 0.0, "rows": 3},
        "b": {"loss": pytest.approx(0.1), "accuracy": 1.0, "rows": 1},
    }


def test_a_frozen_model_has_no_gap_at_all(tmp_path):
    """Learning rate 0: forgetting and plasticity of every window are 0, exactly."""
    optim = {"batch": 8, "lr": 0.0, "lr_projector": 0.0, "warmup": 0}
    plan = plan_of(defaults={"optim": optim}, probes=[{"use": "stability", "every": 1, "rows": 8, "share": None}])
    lines = [{**line, "stage": 1, "run_step": line["step"]} for line in drafted(plan, tmp_path / "a")]
    assert len({line["values"]["tasks"]["letter"]["loss"] for line in lines}) == 1 and len(lines) == 5
    found = evaluations_of(lines, [{"index": 1, "tasks": ["letter"]}])
    assert [f(found, w) for f in (wf, wp) for w in (2, *WINDOWS)] == [0.0] * 6


def test_a_task_that_is_never_seen_is_refused():
    with pytest.raises(PlanError, match=r"probes\[0\].tasks: task 'lettr' is in no stage, so it is never seen"):
        plan_of(probes=[{"use": "stability", "tasks": ["lettr"]}])
