"""What a plan says of HFT."""

import dataclasses
from types import SimpleNamespace

import pytest

from mcit.core.errors import PlanError
from mcit.core.schema import AdapterConfig
from mcit.core.types import MethodSpec
from mcit.methods.hft import HFT
from mcit.methods.l2 import L2
from mcit.methods.replay import Replay
from tests.fakes.bench import TINY, plan_of
from tests.methods.test_hft import LORA, NONE, plan_with


def test_no_file_of_the_base_is_read(tmp_path):
    """Whether the base is quantised is asked once, for every method: mcit/plan/precision.py."""
    plan = plan_with(adapter=NONE)
    (tmp_path / "config.json").write_text("{cut")
    method = HFT(plan.stages[0].methods[0].config)
    assert method.check(plan.stages[0], dataclasses.replace(plan, model_path=tmp_path)) == []


@pytest.mark.parametrize(
    "settings, adapter, words",
    [
        ({"selection": "row"}, LORA, "split LoRA pairs"),
        ({"selection": "element"}, {"kind": "none", "also_train": ["tower"]}, "the tower trains"),
    ],
)
def test_masks_that_cannot_work_are_refused_by_the_plan(settings, adapter, words):
    with pytest.raises(PlanError, match=words):
        plan_with(adapter=adapter, **settings)


@pytest.mark.parametrize("other", ["fpf", "refresh"])
def test_a_method_that_changes_frozen_entries_is_refused_by_the_plan(other):
    """Entries are put back after the optimiser's step alone; whole tensors are frozen for everybody."""
    more = [{"name": other, "damping": 0} if other == "refresh" else {"name": other}]

    def planned(selection):
        mine = {"name": "hft", "selection": selection}
        return plan_of(stages=[{**TINY["stages"][0], "adapter": NONE, "methods": [mine, *more]}])

    with pytest.raises(PlanError, match=f"'{other}' changes weights beside it"):
        planned("row")
    assert planned("layer").stages[0].methods[1].name == other


def test_passes_that_take_their_change_back_may_stand_beside_masks():
    mine = {"name": "hft", "selection": "element"}
    assert plan_of(stages=[{**TINY["stages"][0], "adapter": NONE, "methods": [mine, {"name": "sam"}]}])


def test_a_schedule_that_cannot_follow_is_refused_by_the_plan():
    def stages(first, second):
        both = [{**s, "methods": [{"name": "hft", **s["methods"]}]} for s in (first, second)]
        return plan_of(stages=[{**stage, **s} for stage, s in zip(TINY["stages"], both, strict=True)])

    narrow = {**LORA, "targets": ["q_proj"]}
    with pytest.raises(PlanError, match="other adapter targets"):
        stages({"adapter": narrow, "methods": {}}, {"adapter": LORA, "methods": {"schedule": "fixed"}})
    stages({"adapter": narrow, "methods": {}}, {"adapter": LORA, "methods": {"schedule": "complement"}})
    with pytest.raises(PlanError, match="has selection: category, not row"):
        stages(
            {"adapter": NONE, "methods": {}}, {"adapter": NONE, "methods": {"selection": "row", "schedule": "fixed"}}
        )


def stage_of(index, *others, adapter=None, **settings):
    specs = (MethodSpec("hft", HFT.Config(**settings)), *(MethodSpec(m.name, m.Config()) for m in others))
    kind = AdapterConfig(**(adapter or NONE))
    return SimpleNamespace(index=index, name="abc"[index - 1], adapter=kind, methods=specs)


def said(folder, *stages):
    """What the method says of the last stage: place, level, words."""
    made = SimpleNamespace(stages=stages, model_path=folder)
    last = stages[-1]
    return [(p.where, p.level, p.what) for p in HFT(last.methods[0].config).check(last, made)]


def test_a_schedule_looks_at_the_stage_it_follows(tmp_path):
    """Rows in stage a, entries in b, rows in c: ``fixed`` follows a, ``complement`` follows b, ``independent`` neither."""
    a, b = stage_of(1, L2, selection="row"), stage_of(2, selection="element")
    ((where, level, what),) = said(tmp_path, a, b, stage_of(3, selection="row", schedule="complement"))
    assert (where, level) == ("stages[2].methods (hft)", "problem")
    assert "follows stage b, which has selection: element, not row" in what
    for schedule in ("fixed", "independent"):
        assert said(tmp_path, a, b, stage_of(3, selection="row", schedule=schedule)) == []
    later = SimpleNamespace(stages=(a, b), model_path=tmp_path)  # stage a is the first: b does not come before it
    assert HFT(HFT.Config(selection="row", schedule="complement")).check(a, later) == []
    whole = stage_of(1, selection="layer")
    assert said(tmp_path, whole, stage_of(2, selection="category", schedule="complement")) == []
    ((_, _, what),) = said(tmp_path, whole, stage_of(2, selection="row", schedule="complement"))
    assert "has selection: layer, not row" in what


def test_a_fixed_half_needs_the_same_adapter(tmp_path):
    """One name or a list of it is the same; targets say nothing without pairs."""

    def follows(first, second):
        return [w for _, level, w in said(tmp_path, stage_of(1, adapter=first), second) if level == "problem"]

    fixed = {"schedule": "fixed"}
    pairs = {**LORA, "targets": ["q_proj", "v_proj"]}
    assert follows(pairs, stage_of(2, adapter={**LORA, "targets": ["v_proj", "q_proj"]}, **fixed)) == []
    assert follows({**NONE, "targets": ["q_proj"]}, stage_of(2, adapter=NONE, **fixed)) == []
    for other in ({**LORA, "targets": ["q_proj"]}, NONE):
        (what,) = follows(pairs, stage_of(2, adapter=other, **fixed))
        assert "trains other adapter targets" in what
    assert follows(pairs, stage_of(2, adapter=NONE, schedule="complement")) == []


def test_notes_by_case(tmp_path):
    """What freezes whole tensors beside a penalty is noted, and a full fine-tuning without embeddings; nothing else is."""
    bare = {"kind": "none", "also_train": ["projector"]}

    def notes(*others, **settings):
        found = said(tmp_path, stage_of(1, *others, **settings))
        assert all(where == "stages[0].methods (hft)" and level == "note" for where, level, _ in found)
        return [what for _, _, what in found]

    assert notes(Replay) == notes(adapter=LORA) == notes(adapter={"kind": "none", "also_train": ["embeddings"]}) == []
    assert notes(L2, selection="row") == [] == notes(adapter={**NONE, "also_train": ["tower", "embeddings"]})
    assert notes(L2) == ["l2: half of the decoder is frozen by hft in this stage"]
    assert notes(adapter=bare) == ["the paper also trains embeddings and head, which are frozen here"]
