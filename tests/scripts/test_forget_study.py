"""scripts/forget_study.py: its sides are valid configs, its clock counts each stage without scoring, its table is right."""

import io

import pytest

from mcit.core.types import Progress
from mcit.plan.plan import read_config
from scripts import forget_study as study


@pytest.mark.parametrize("name", list(study.SIDES))
def test_every_side_is_a_config_that_differs_in_its_own_stages_alone(name):
    first, _ = read_config(study.CONFIG, study.overrides(next(iter(study.SIDES)), 1))
    config, _ = read_config(study.CONFIG, study.overrides(name, 1))
    own = {study.FORGET, *([study.FORGET + 1] if study.SIDES[name].later else [])}
    assert [s for k, s in enumerate(config.stages, 1) if k not in own] == [
        s for k, s in enumerate(first.stages, 1) if k not in own
    ]
    assert [m["name"] for m in config.stages[study.FORGET].methods] == [m["use"] for m in study.SIDES[name].later]
    stage = config.stages[study.FORGET - 1]
    assert stage.methods and config.seed == 1 and (stage.epochs == 0) == (name in ("ssd", "iau"))
    assert stage.adapter.carry == "merge" or stage.adapter.kind == "none"


def test_seconds_are_those_of_each_stage_without_scoring(monkeypatch):
    """Ten seconds before each event: from the line of the stage over a pass and two steps, not the scoring nor what follows."""
    now = [0]
    monkeypatch.setattr(study.time, "process_time", lambda: now[0])
    clock = study.Clock(io.StringIO())

    def tell(stage, phase):
        now[0] += 10
        clock.progress(Progress(stage, 4, "x", phase, 1, 2))

    tell(1, "train")
    clock.line("stage 2 of 4: names, 60 steps, 933 rows")
    tell(2, "train")
    tell(2, "eval")
    clock.line("stage 3 of 4: forget, 16 steps, 933 rows")
    tell(3, "start")
    tell(3, "train")
    tell(3, "train")
    tell(3, "eval")
    tell(3, "eval")
    clock.line("stage 4 of 4: edible, 16 steps, 320 rows")
    tell(4, "train")
    assert clock.seconds == {1: 0, 2: 10, 3: 30}


def test_the_table_by_hand():
    one = {
        "before": 100.0, "retained_before": 90.0, "after": 10.0, "most_lost_elsewhere": 4.0, "resurgence": 0.0,
        "utility": 0.5, "min_k": None, "priv_leak": -20.0, "same_question": 0.25, "same_picture": 0.0,
        "relearned": {"20": 0.0, "40": 50.0}, "processor_seconds": 61.0, "learned_seconds": 99.0,
        "controls": [{"base": [{"rows": 0, "accuracy": 5.0}]}],
    }  # fmt: skip
    text = study.table({"npo": [one, {**one, "after": 0.0, "controls": []}]})
    row = "| `npo` | 2 | 5.0 (0.0 to 10.0) | 4.0 | 0.0 | 0.50 | – | -20.0 | 0.25 | 0.00 | 0 / 50 / – | 61 |  |"
    assert row in text and "0 rows 5." in text and text.startswith("2 runs") and "anew takes 99 processor s" in text
    gone = study.table({"npo": [one], "ssd": [{"refused": "no alpha", "processor_seconds": 20.0}]}).splitlines()[-1]
    assert gone.startswith("| `ssd` | 1 | – | – |") and gone.endswith(
        "| 20 | units down_proj, 64 rows, alpha searched; no alpha |"
    )
