"""The probe of texts: moments, and measurement in the two stages of the shipped experiment on the tiny model."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mcit.core.errors import PlanError
from mcit.core.types import Encoding
from mcit.probes.memory import Memory, epoch_ends
from tests.fakes.bench import plan_of
from tests.fakes.rows import row
from tests.train.test_probing import drafted


def stage(index, steps, task, *, epochs=1, rows=10, batch=4):
    optim = SimpleNamespace(batch=batch)
    tasks = (SimpleNamespace(name=task),)
    return SimpleNamespace(
        index=index, folder=f"{index:02d}", steps=steps, tasks=tasks, epochs=epochs, rows=rows, optim=optim
    )


def text(foil):
    return SimpleNamespace(encoding=SimpleNamespace(raw=True), meta={"foil": foil} if foil else {})


def test_moments():
    study = stage(1, 8, "s", epochs=3)
    assert epoch_ends(study) == [3, 5, 8]
    probe = Memory(Memory.Config())
    probe._study, probe._stage, probe._between = [study], study, {"01": 0}
    assert [s for s in range(9) if probe.due(s, 8)] == [0, 3, 5, 8]
    probe._stage = stage(2, 200, "u")
    assert [s for s in range(201) if probe.due(s, 200)] == [*range(11), *range(20, 101, 10), 200]


def test_moments_after_a_stage_that_follows_a_rejected_one():
    """The numbers of stages have a gap there; the steps between are those of stage 3."""
    stages = (stage(2, 8, "s"), stage(3, 95, "u"), stage(4, 20, "v"))
    rows = {"s": [replace(row("", "a text", meta={"foil": "another"}), encoding=Encoding(raw=True))], "u": [], "v": []}
    data = SimpleNamespace(tasks=tuple(rows), stages=stages, stage=stages[-1], rows=rows.get)
    probe = Memory(Memory.Config())
    assert set(probe.rows(data)) == {"s"}
    assert [s for s in range(21) if probe.due(s, 20)] == [0, 5, 20]


def test_the_two_stages_of_the_experiment_on_the_tiny_model(tmp_path):
    """Sixteen sentences of which eight are asked for; a plain text without a foil is not studied."""
    optim = {"batch": 48, "lr": 1e-2, "schedule": "constant", "warmup": 0}
    plan = plan_of(
        stages=[{"recipe": "memory/sentences", "name": "study", "epochs": 3}],
        defaults={"adapter": {"kind": "none", "also_train": []}, "optim": optim, "max_steps": 9},
        probes=[{"use": "memory", "rows": 8}],
    )
    lines = drafted(plan, tmp_path / "a")
    assert [(line["step"], line["values"]["memory-sentences"]["exposures"]) for line in lines] == [
        (0, 0),
        (3, 1),
        (6, 2),
        (9, 3),
    ]
    for line in lines:
        entry = line["values"]["memory-sentences"]
        assert entry["rows"] == 8 and 0 <= entry["recognised"] <= 8 and entry["exact"] <= 8
        assert entry["full_rouge_1"] >= 0.3 and 0 <= entry["rouge_l"] <= 1
        assert entry["full_rouge_1"] > entry["rouge_l"]  # half of the text is given away
    assert lines[0]["values"] != lines[-1]["values"]


def test_a_run_without_texts_to_study_is_refused():
    for recipe in ("tiny/letter", "memory/unrelated"):
        with pytest.raises(PlanError, match="no stage trains on plain texts with foils"):
            plan_of(stages=[{"recipe": recipe}], probes=[{"use": "memory"}])


@pytest.mark.parametrize("foil", ["", "other"])
def test_only_plain_texts_with_a_foil_are_studied(foil):
    data = SimpleNamespace(tasks=("t",), stages=(stage(1, 8, "t"),), stage=stage(1, 8, "t"), rows=lambda task: [])
    probe = Memory(Memory.Config())
    assert probe.rows(data) == {} and not probe._study
