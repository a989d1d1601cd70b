"""Probes inside stages: weights as without them, lines on record, a share of time, nothing random."""

import random
import time

import numpy as np
import pytest
import torch

from mcit.core.errors import TrainingError
from mcit.core.interfaces import Silent
from mcit.probes.base import Probe
from mcit.train.loop import train_stage
from mcit.train.probeview import ProbeView
from mcit.train.probing import Share, _Running
from mcit.train.stage import build_stage
from tests.fakes import bench
from tests.fakes.bench import Draft, plan_of, run_plan, tensors_of
from tests.fakes.small import Killed
from tests.train.test_stage import material

SPREAD = {"use": "mcit_sample.spread:Spread", "every": 2, "share": None}
DROPOUT = {"adapter": {"rank": 4, "alpha": 8, "also_train": ["projector"], "dropout": 0.2}}


def drafted(plan, folder):
    folder.mkdir()
    draft = Draft(folder)
    train_stage(build_stage(plan.stages[0], material(plan), inherited={}), draft, reporter=Silent())
    return draft.probes


def test_weights_are_those_of_the_run_without_probes_and_lines_come_back(tmp_path):
    """With dropout, whose draws a probe must not move; stopped after step 3 of stage 2, between two measurements."""
    probes = [SPREAD, {"use": "seen", "every": 3, "count": 4, "share": None}]
    plain = tensors_of(run_plan(plan_of(defaults=DROPOUT), tmp_path / "plain"))
    plan = plan_of(defaults=DROPOUT, probes=probes)
    assert tensors_of(run_plan(plan, tmp_path / "probed")) == plain
    assert tensors_of(run_plan(plan, tmp_path / "resumed", stop_at=(2, 3))) == plain


class Fatal(Probe):
    """Kills the process the first time it measures after a step of the second stage."""

    killed = False

    def rows(self, data):
        return {"all": data.stage_rows()[:3]}

    def measure(self, rows, ctx):
        list(ctx.forward_pass(rows["all"]))
        if ctx.stage.index == 2 and ctx.step == 2 and not Fatal.killed:
            Fatal.killed = True
            raise Killed
        return {"step": ctx.step}


def test_a_kill_inside_a_probe_changes_nothing(tmp_path):
    plain = tensors_of(run_plan(plan_of(defaults=DROPOUT), tmp_path / "plain"))
    plan = plan_of(
        defaults=DROPOUT, probes=[{"use": f"{__name__}:Fatal", "every": 2, "share": None}], checkpoint={"every": 1}
    )
    assert tensors_of(run_plan(plan, tmp_path / "killed")) == plain and Fatal.killed


SHIPPED = [
    {"use": "stability", "every": 1, "rows": 4, "answers": 2, "norms": 2, "share": None},
    {"use": "generation", "every": 2, "rows": 3, "share": None},
    {"use": "canary", "share": None},
]
TEXTS = [{"use": "memory", "rows": 3}]
PLANTING = {"methods": [{"name": "canary", "rows": 4, "exposures": [1, 2]}, {"name": "lwf"}], "max_steps": 3}
STUDY = {"adapter": {"kind": "none", "also_train": []}, "optim": {"batch": 48, "lr": 1e-2, "warmup": 0}, "max_steps": 3}
READING = [{"recipe": f"memory/{name}", "name": name} for name in ("sentences", "unrelated")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache):
    """By probes: the plan with them, the bytes of the run without any, and what they measured in its second stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        out = {}
        for name, probes, given in (
            ("shipped", SHIPPED, {"defaults": PLANTING}),
            ("texts", TEXTS, {"defaults": STUDY, "stages": READING}),
        ):
            home = tmp_path_factory.mktemp(name)
            plan = plan_of(**given, probes=probes, checkpoint={"every": 1})
            plain = tensors_of(run_plan(plan_of(**given), home / "plain"))
            out[name] = plan, plain, values_of(patch, plan, home / "probed")[1]
        return out


def values_of(patch, plan, folder):
    """Bytes of a run, and what probes measured in its second stage by step and probe."""
    drafts = []

    class Kept(Draft):
        def __init__(self, *given):
            super().__init__(*given)
            drafts.append(self)

    patch.setattr(bench, "Draft", Kept)
    files = tensors_of(run_plan(plan, folder))
    return files, [(line["step"], line["probe"], line["values"]) for line in drafts[1].probes]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probes", "asked"),
    [("shipped", asked) for asked in ("fits", "gradient_norms", "answers")] + [("texts", "continuations")],
)
def test_a_kill_inside_a_shipped_probe_changes_nothing(probes, asked, undisturbed, tmp_path, monkeypatch):
    """At the second question of this kind after the first step of stage 2, its work done and not on record."""
    plan, plain, measured = undisturbed[probes]
    own, times = getattr(ProbeView, asked), []

    def killing(self, *given, **named):
        out = own(self, *given, **named)
        if self.stage.index == 2 and self.step > 0:
            times.append(self.step)
            if len(times) == 2:
                raise Killed
        return out

    monkeypatch.setattr(ProbeView, asked, killing)
    files, again = values_of(monkeypatch, plan, tmp_path / "killed")
    assert len(times) > 2 and files == plain and again == measured


def test_what_is_on_record(tmp_path):
    plan = plan_of(probes=[SPREAD, {"use": "seen", "every": 3, "count": 4}])
    lines = drafted(plan, tmp_path / "a")
    name = SPREAD["use"]
    assert [(line["step"], line["probe"]) for line in lines] == [
        (0, name), (0, "seen"), (2, name), (3, "seen"), (4, name), (4, "seen"),
    ]  # fmt: skip
    assert [line["values"]["before"] for line in lines if line["probe"] == name] == [0, 1, 2]
    seen = [line["values"]["letter"] for line in lines if line["probe"] == "seen" and "values" in line]
    assert seen[0]["tokens"] == seen[-1]["tokens"] >= 4 and seen[0]["loss"] != seen[-1]["loss"]
    again = drafted(plan, tmp_path / "b")
    assert [line.get("values") for line in again if line["probe"] == name] == [
        line["values"] for line in lines if line["probe"] == name
    ]


def test_a_share_of_step_time_is_kept_to(tmp_path):
    """A share of a millionth: the two ends are measured all the same, the rest says why not."""
    lines = drafted(plan_of(probes=[{**SPREAD, "every": 1, "share": 1e-6}]), tmp_path / "a")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert ["values" in line for line in lines] == [True, False, False, False, True]
    assert "would pass 0% of" in lines[1]["left_out"]


def test_the_last_measurement_has_its_part_of_the_share():
    """Two seconds spent, one for this measurement and one for that at the stage's end: 4 s are 10 % of 40 s."""
    each = _Running("p", Parts(Parts.Config()), {}, [{"step": 0, "seconds": 1.0}, {"step": 10, "seconds": 1.0}])
    assert [bool(Share(each, trained, last=False).refused("")) for trained in (39.9, 40.1)] == [True, False]
    assert [bool(Share(each, trained, last=True).refused("")) for trained in (29.9, 30.1)] == [True, False]


class Draws(Probe):
    def rows(self, data):
        return {"all": data.stage_rows()}

    def measure(self, rows, ctx):
        {"python": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(1)}[ctx.stage.name]()
        return {}


class NoJson(Draws):
    def measure(self, rows, ctx):
        return {"x": torch.zeros(1)}


class NoRows(Draws):
    def rows(self, data):
        return {"none": []}


@pytest.mark.parametrize("kind", ["python", "numpy", "torch"])
def test_a_probe_that_draws_random_numbers_is_refused(kind, tmp_path):
    plan = plan_of(probes=[{"use": f"{__name__}:Draws"}], stages=[{"recipe": "tiny/letter", "name": kind}])
    with pytest.raises(TrainingError, match="draws from a global random generator") as caught:
        drafted(plan, tmp_path / "a")
    assert f"stage {kind}, step 0" in str(caught.value)


def test_other_probes_that_are_none(tmp_path):
    with pytest.raises(TrainingError, match="is no JSON"):
        drafted(plan_of(probes=[{"use": f"{__name__}:NoJson"}]), tmp_path / "a")
    assert drafted(plan_of(probes=[{"use": f"{__name__}:NoRows"}]), tmp_path / "b") == []


def test_a_measurement_on_record_is_not_made_again(tmp_path):
    plan = plan_of(probes=[{**SPREAD, "share": None}])
    work = build_stage(plan.stages[0], material(plan), inherited={})
    draft = Draft(tmp_path)
    for _ in range(2):
        work.probes.at(0, 4, draft, trained=0.0)
    assert [line["step"] for line in draft.probes] == [0]


class Ends(Probe):
    """Says after how many steps the stage ends."""

    def rows(self, data):
        return {"all": data.stage_rows()[:1]}

    def measure(self, rows, ctx):
        return {"total": ctx.total_steps}


def test_a_probe_is_told_where_a_stage_ends_that_ends_early(tmp_path):
    plan = plan_of(probes=[{"use": f"{__name__}:Ends", "every": 2}])
    probes, draft = build_stage(plan.stages[0], material(plan), inherited={}).probes, Draft(tmp_path)
    for step, total in ((0, 4), (2, 2)):
        probes.at(step, total, draft, trained=100.0)
    assert [line["values"]["total"] for line in draft.probes] == [4, 2]


class Parts(Probe):
    """Has a dear part that is left out once it is known to be dear."""

    def rows(self, data):
        return {"all": data.stage_rows()[:1]}

    def measure(self, rows, ctx):
        def slow():
            time.sleep(0.05)
            return {"slept": True}

        return {"slow": ctx.within("slow", slow)}


def test_a_part_of_a_measurement_is_left_out_by_what_it_took_last(tmp_path):
    """At the two ends too: only the measurement itself is always made there. 50 ms are no millionth of anything."""
    lines = drafted(plan_of(probes=[{"use": f"{__name__}:Parts", "every": 100, "share": 1e-6}]), tmp_path / "a")
    assert [line["values"]["slow"] for line in lines] == [None, None]
    assert "would pass 0% of" in lines[0]["parts"]["slow"]["left_out"]
    lines = drafted(plan_of(probes=[{"use": f"{__name__}:Parts", "every": 2, "share": None}]), tmp_path / "b")
    assert all(line["parts"]["slow"]["seconds"] >= 0.05 for line in lines) and len(lines) == 3
