"""A draw that leaves nothing, or nothing of what another method needs, is refused by the plan."""

import dataclasses

import pytest

from mcit.core.errors import PlanError
from mcit.core.types import Claims, MethodSpec
from mcit.methods.base import Method
from mcit.plan.preflight import skeleton
from mcit.plan.selection import selection_problems
from tests.fakes.bench import plan_of


class OnlyProjector(Method):
    name = "only-projector"

    def select_trainable(self, names, ctx):
        return frozenset(n for n in names if ".lora_" not in n)


class OnlyA(Method):
    name = "only-a"

    def select_trainable(self, names, ctx):
        return frozenset(n for n in names if ".lora_B." not in n)


class Nothing(Method):
    name = "nothing"

    def select_trainable(self, names, ctx):
        return frozenset()


class Pairs(Method):
    name = "pairs"
    claims = Claims(needs=frozenset({"adapter:lora"}))


def problems_of(*classes, adapter=None):
    plan = plan_of(defaults={"adapter": adapter or {"rank": 4, "alpha": 8}})
    specs = tuple(MethodSpec(f"{__name__}:{cls.__name__}", cls.Config()) for cls in classes)
    stages = (plan.stages[0], dataclasses.replace(plan.stages[1], methods=specs))
    plan = dataclasses.replace(plan, stages=stages)
    model = skeleton(plan)
    before = set(dict(model.named_parameters()))
    found = selection_problems(plan, model)
    assert set(dict(model.named_parameters())) == before
    return found


def test_enough_is_left():
    assert problems_of(Pairs) == [] == problems_of(OnlyProjector) == problems_of(OnlyA)


@pytest.mark.parametrize("adapter", [None, {"kind": "none"}])
def test_nothing_left(adapter):
    (problem,) = problems_of(Nothing, adapter=adapter)
    assert problem.where.startswith("stages[1].methods") and "leave nothing to train" in problem.what


def test_pairs_that_another_method_needs():
    (problem,) = problems_of(OnlyProjector, Pairs)
    assert problem.where == f"stages[1].methods ({__name__}:Pairs)"
    assert problem.what == f"needs LoRA pairs that train, but {__name__}:OnlyProjector freezes all of them"


def test_half_a_pair():
    (problem,) = problems_of(Pairs, OnlyA)
    assert problem.where == f"stages[1].methods ({__name__}:Pairs)"
    assert f"{__name__}:OnlyA freezes one half of 'model.language" in problem.what


TARGETS = {"rank": 4, "alpha": 8, "also_train": ["projector"]}


def two_stages(methods, first, second):
    recipes = ("tiny/letter", "tiny/yesno")
    return [
        {"recipe": recipe, "methods": methods, "adapter": {**TARGETS, "targets": targets}}
        for recipe, targets in zip(recipes, (first, second), strict=True)
    ]


def test_an_adapter_without_units_that_the_state_will_speak_of():
    """RegLoRA records keys of every pair of stage 1; stage 2 adapts q_proj alone. More than before is allowed."""
    with pytest.raises(PlanError, match="down_proj.*is not adapted in this stage"):
        plan_of(stages=two_stages([{"name": "reglora"}], ["q_proj", "down_proj"], ["q_proj"]))
    plan_of(stages=two_stages([{"name": "reglora"}], ["q_proj"], ["q_proj", "down_proj"]))


def test_a_schedule_that_will_leave_nothing():
    """One pair of the first block trains in stage 1, so its complement is nothing in stage 2."""
    target = ["layers.0.self_attn.q_proj"]
    complement = {"name": "hft", "schedule": "complement"}
    with pytest.raises(PlanError, match="schedule: complement leaves no part of the decoder to train"):
        plan_of(stages=two_stages([complement, {"name": "reglora"}], target, target))
