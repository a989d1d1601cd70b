"""What the canary probe asks, when, and that a code shown often enough is recognised and recalled."""

from types import SimpleNamespace

import pytest

from mcit.core.errors import DataError, PlanError
from mcit.core.types import RowFit
from mcit.probes.canary import Canary, with_foil
from tests.fakes.bench import plan_of
from tests.fakes.rows import row
from tests.train.test_probing import drafted

PLANT = {"name": "canary", "rows": 4, "exposures": [1, 2]}


def stage(index, steps, *methods):
    return SimpleNamespace(index=index, folder=f"{index:02d}-s", steps=steps, methods=methods)


def planted(index, steps):
    config = SimpleNamespace(weight=1.0, recipe="c", rows=4, exposures=[1, 2])
    return stage(index, steps, SimpleNamespace(name="canary", config=config))


def pool(**changes):
    rows = [row("which?", f"code{k}", id=f"c{k}", meta={"foil": f"foil{k}", **changes}) for k in range(8)]
    return lambda recipe: rows


def probe_at(*stages, **meta):
    probe = Canary(Canary.Config())
    rows = probe.rows(SimpleNamespace(stages=stages, stage=stages[-1], pool=pool(**meta)))
    return probe, rows


def test_moments_are_powers_of_ten_after_the_stage_that_planted():
    probe, rows = probe_at(planted(1, 30))
    assert [s for s in range(31) if probe.due(s, 30)] == [0, 30] and set(rows) == {"01-s"}
    probe, rows = probe_at(planted(1, 30), stage(2, 120))
    assert [s for s in range(121) if probe.due(s, 120)] == [0, 1, 10, 100, 120]
    probe, rows = probe_at(planted(1, 30), stage(2, 120), planted(3, 900))
    assert [s for s in range(901) if probe.due(s, 900)] == [0, 880, 900]
    assert [r.id for r in rows["03-s"]] == ["c4", "c5", "c6", "c7"]


def test_a_stage_that_was_rejected_before_the_planting_one_counts_no_steps():
    """Stages 2, 3 and 4 of a run whose first was rejected: ten steps lie between the second and the fourth."""
    probe, rows = probe_at(planted(2, 30), stage(3, 10), stage(4, 120))
    assert [s for s in range(121) if probe.due(s, 120)] == [0, 90, 120]


def test_recognition_and_recall_by_hand():
    """Rows 0 and 2 are exposed once, 1 and 3 twice; the foil of row 1 is likelier, row 3 ties; row 0 is answered right."""
    probe, rows = probe_at(planted(1, 30))
    losses = {
        "code0": 1.0,
        "foil0": 2.0,
        "code1": 2.0,
        "foil1": 1.0,
        "code3": 1.0,
        "foil3": 1.5,
        "code2": 1.0,
        "foil2": 1.0,
    }
    ctx = SimpleNamespace(
        stage=stage(1, 30),
        step=30,
        total_steps=30,
        fits=lambda rows: [RowFit(losses[r.answer], 1, 0) for r in rows],
        answers=lambda rows, max_new_tokens: [{"text": " code0 " if r.id == "c0" else "x"} for r in rows],
    )
    groups = probe.measure(rows, ctx)["groups"]
    assert groups == [
        {"stage": "01-s", "since": 0, "exposures": 1, "kind": "text", "rows": 2, "recognised": 2, "recalled": 1,
         "loss": 1.0, "foil_loss": 1.75},
        {"stage": "01-s", "since": 0, "exposures": 2, "kind": "text", "rows": 2, "recognised": 0, "recalled": 0,
         "loss": 1.5, "foil_loss": 1.0},
    ]  # fmt: skip
    ctx.step = 10
    assert [g["since"] for g in probe.measure(rows, ctx)["groups"]] == [None, None]
    assert with_foil(rows["01-s"][0]).answer == "foil0"


def test_rows_without_a_twin_are_refused():
    for foil in (None, "", " ", 3, "code0", " code0"):
        with pytest.raises(DataError, match="a canary needs meta.foil"):
            probe_at(planted(1, 30), foil=foil)
    with pytest.raises(PlanError, match="no stage plants canaries"):
        plan_of(probes=[{"use": "canary"}])


def test_in_a_stage_many_exposures_are_recognised(tmp_path):
    """Four codes shown 24 times in 24 steps to the tiny model: all are recognised, at half the loss."""
    methods = [{"name": "canary", "rows": 4, "exposures": [24], "weight": 8.0}]
    plan = plan_of(
        stages=[{"recipe": "tiny/letter"}],
        defaults={"methods": methods, "max_steps": 24, "epochs": 2},
        probes=[{"use": "canary"}],
    )
    lines = drafted(plan, tmp_path / "a")
    assert [line["step"] for line in lines] == [0, 24]
    first, last = (line["values"]["groups"] for line in lines)
    assert sum(g["recognised"] for g in last) == 4 and all(g["loss"] < g["foil_loss"] for g in last)
    assert sum(g["loss"] for g in last) < 0.5 * sum(g["loss"] for g in first)
    assert {g["kind"] for g in last} == {"picture", "text"} and {g["exposures"] for g in last} == {24}
