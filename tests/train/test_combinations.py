"""Methods together in one sequence on the tiny model, and the combinations that a plan refuses with a reason."""

import pytest

from mcit.core.errors import PlanError
from mcit.core.files import read_json
from mcit.core.types import Claims
from mcit.methods.base import Method
from mcit.plan.record import plan_json
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.sharded import ShardedEngine

LORA = {"rank": 4, "alpha": 8, "also_train": ["projector"]}
GERE = {"use": "gere", "recipe": "general/tiny", "per_step": 2}


def sefe_and_gere():
    """Rows of five styles, RegLoRA's keys, general samples: three stages."""
    return plan_of(
        defaults={"adapter": LORA, "max_steps": 3, "methods": [{"use": "reglora"}, GERE]},
        stages=[{"recipe": f"tiny/{task}-asd20"} for task in ("letter", "yesno", "word")],
    )


def half_and_anchor():
    """Full tuning of one half, held to where the stage began by a quadratic penalty."""
    return plan_of(
        defaults={
            "adapter": {"kind": "none", "also_train": ["projector"]},
            "max_steps": 3,
            "methods": [{"use": "hft"}, {"use": "l2", "weight": 0.1}],
        }
    )


def forget_after_learning():
    """Two stages that learn under RegLoRA, then one that forgets, RegLoRA's keys still in force."""
    return plan_of(
        defaults={
            "adapter": {"rank": 4, "alpha": 8, "also_train": []},
            "max_steps": 3,
            "methods": [{"use": "reglora"}],
        },
        stages=[
            {"recipe": "tiny/word"},
            {"recipe": "tiny/letter"},
            {
                "name": "forget",
                "recipe": "tiny/word-retain",
                "forget": "tiny/word-forget",
                "methods": [{"use": "reglora"}, {"use": "gs_lora", "per_step": 4}],
            },
        ],
    )


PLANS = {"asd-reglora-gere": sefe_and_gere, "hft-l2": half_and_anchor, "reglora-then-gs_lora": forget_after_learning}


@pytest.mark.parametrize("name", PLANS)
def test_runs_stops_and_resumes_to_the_same_bytes_on_any_engine(name, tmp_path):
    plan = PLANS[name]()
    last = len(plan.stages)
    straight = tensors_of(run_plan(plan, tmp_path / "a"))
    assert straight == tensors_of(run_plan(plan, tmp_path / "b", stop_at=(last, 2)))
    assert straight == tensors_of(run_plan(plan, tmp_path / "c", engine=ShardedEngine))
    states = {p.parent.name for p in (tmp_path / "a" / plan.stages[-1].folder / "methods").rglob("state.json")}
    assert states == {m.name for m in plan.stages[-1].methods}


def test_each_part_of_a_combination_acts(tmp_path):
    """Without any one of its methods the last stage ends elsewhere."""
    plan = forget_after_learning()
    whole = tensors_of(run_plan(plan, tmp_path / "whole"))[plan.stages[-1].folder]
    for left_out in ("reglora", "gs_lora"):
        stages = [
            {"recipe": "tiny/word"},
            {"recipe": "tiny/letter"},
            {"name": "forget", "recipe": "tiny/word-retain",
             "methods": [{"use": "reglora"}] if left_out == "gs_lora" else [{"use": "gs_lora", "per_step": 4}],
             **({} if left_out == "gs_lora" else {"forget": "tiny/word-forget"})},
        ]  # fmt: skip
        other = plan_of(
            defaults={"adapter": {"rank": 4, "alpha": 8, "also_train": []}, "max_steps": 3,
                      "methods": [{"use": "reglora"}]},
            stages=stages,
        )  # fmt: skip
        part = tensors_of(run_plan(other, tmp_path / left_out))[other.stages[-1].folder]
        assert part["adapter/adapter_model.safetensors"] != whole["adapter/adapter_model.safetensors"], left_out


def test_the_plan_says_who_acts_where():
    hooks = plan_json(sefe_and_gere())["stages"][1]["hooks"]
    assert hooks["weight_penalty"] == ["reglora"] and hooks["loss_term"] == ["gere"] and hooks["streams"] == ["gere"]
    assert hooks["on_stage_end"] == ["reglora"]


def test_rows_keep_how_their_style_was_made():
    plan = sefe_and_gere()
    manifest = read_json(plan.tasks[0].folder / "manifest.json")
    assert manifest["transforms"], "the manifest tells what ASD did"


class OtherMask(Method):
    name = "other-mask"
    claims = Claims(slots=frozenset({"trainable-mask"}))


REFUSED = {
    "two masks": (
        {"adapter": {"kind": "none"}, "methods": [{"use": "hft"}, {"name": "tests.train.test_combinations:OtherMask"}]},
        {},
        "trainable-mask",
    ),
    "hft on 4 bit": (
        {"adapter": {**LORA, "carry": "keep"}, "methods": [{"use": "hft"}]},
        {"dtype": "nf4"},
        "dtype:full",
    ),
    "reglora on a stack": ({"adapter": {**LORA, "carry": "stack"}, "methods": [{"use": "reglora"}]}, {}, "carry:merge"),
    "reglora without lora": ({"adapter": {"kind": "none"}, "methods": [{"use": "reglora"}]}, {}, "adapter:lora"),
    "merge on 4 bit": ({"adapter": LORA}, {"dtype": "nf4"}, "merge"),
    "gs_lora without rows to forget": ({"adapter": LORA, "methods": [{"use": "gs_lora"}]}, {}, "forget"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name):
    defaults, base, word = REFUSED[name]
    with pytest.raises(PlanError, match=word) as caught:
        plan_of(defaults=defaults, base={"family": "tiny", "dtype": "fp32", **base})
    assert all(problem.fix for problem in caught.value.problems)


def test_rows_to_forget_that_are_also_kept_are_named():
    with pytest.raises(PlanError) as caught:
        plan_of(
            defaults={"adapter": LORA, "methods": [{"use": "gs_lora", "per_step": 4}]},
            stages=[{"recipe": "tiny/word", "forget": "tiny/word-forget"}],
        )
    assert "shapes-word" in str(caught.value), "the rows that are in both are named"
