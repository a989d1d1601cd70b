import dataclasses
import textwrap
from pathlib import Path

import pytest

from mcit.core.config import parse
from mcit.core.schema import AdapterConfig, OptimConfig, RunConfig
from mcit.core.types import MethodSpec, Plan, Stage, TaskSpec
from mcit.methods.check import check_stage, hook_table
from mcit.methods.l2 import L2
from mcit.methods.replay import Replay

MODULE = """
from mcit.core.types import Claims
from mcit.methods.base import Method

class Slot(Method):
    name = "slot"
    claims = Claims(slots=frozenset({"trainable-mask"}), edits_gradients=True)
    def before_step(self, grads, ctx): pass

class Slot2(Slot):
    name = "slot2"

class Merge(Method):
    name = "merge"
    claims = Claims(needs=frozenset({"carry:merge", "adapter:lora"}), streams=frozenset({"replay"}))

class Zero(Method):
    name = "zero"
    claims = Claims(engines=frozenset({"zero2"}))

class Full(Method):
    name = "full"
    claims = Claims(needs=frozenset({"dtype:full"}))

class Writer(Method):
    name = "writer"
    claims = Claims(slots=frozenset({"weights:edit"}))

class Forgetter(Method):
    name = "forgetter"
    claims = Claims(streams=frozenset({"forget"}))
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "outside_methods.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))


def check(*names, adapter=None, epochs=1, order=(), base=None, forget=()):
    import importlib

    outside = importlib.import_module("outside_methods")
    inside = {"l2": L2, "replay": Replay}
    specs = tuple(
        MethodSpec(n if n in inside else f"outside_methods:{n}", (inside.get(n) or getattr(outside, n)).Config())
        for n in names
    )
    config, _ = parse(RunConfig, {"name": "x", "base": base or {}, "stages": [{"recipe": "r"}]})
    stage = Stage(1, "s", (), specs, adapter or AdapterConfig(), OptimConfig(), epochs, 1, 8, 0, tuple(order), forget)
    plan = Plan(config, (stage,), (), None, "d")
    return check_stage(stage, plan, where="stages[0]"), stage


def test_methods_that_go_together_have_no_problem():
    problems, stage = check("l2", "replay")
    assert problems == []
    assert hook_table(stage) == {
        "streams": ["replay"],
        "on_stage_start": ["l2"],
        "loss_term": ["replay"],
        "weight_penalty": ["l2"],
        "on_stage_end": ["replay"],
    }


def test_one_slot_has_one_holder():
    problems, _ = check("Slot", "Slot2", order=["slot", "slot2"])
    (found,) = problems
    assert found.where == "stages[0].methods[1] (slot2)" and "'slot' already holds" in found.what and found.fix


def test_unmet_needs_say_why_and_how():
    problems, _ = check("Merge", adapter=AdapterConfig(carry="stack"))
    (found,) = problems
    assert "needs carry:merge, but adapter.carry is stack" in found.what and "carry: merge" in found.fix
    problems, _ = check("Merge", adapter=AdapterConfig(kind="none"))
    assert len(problems) == 2


def test_streams_editors_engines_and_empty_stages():
    problems, _ = check("Merge", "replay")
    assert any("opens stream 'replay'" in p.what for p in problems)
    problems, _ = check("Slot", "Slot2")
    assert any("order matters" in p.what and "gradient_order: [slot, slot2]" in p.fix for p in problems)
    problems, _ = check("l2", order=["l2"])
    assert any("edits no gradients" in p.what for p in problems)
    problems, _ = check("Zero")
    assert any("cannot run on engine plain" in p.what and "zero2" in p.fix for p in problems)
    problems, _ = check("l2", epochs=0)
    assert any("does nothing" in p.what for p in problems)
    assert check("Writer", epochs=0)[0] == []
    problems, _ = check("l2", "l2")
    assert any("listed twice" in p.what for p in problems)
    assert dataclasses.is_dataclass(problems[0])


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_a_quantised_base_meets_neither_full_weights_nor_merging(dtype):
    def problems(*names, carry):
        return check(*names, adapter=AdapterConfig(carry=carry), base={"dtype": dtype})[0]

    for carry in ("keep", "merge"):
        (found,) = problems("Merge", carry=carry)
        assert f"needs carry:merge, but base.dtype is {dtype}" in found.what and "base.dtype: bf16" in found.fix
    for name in ("Full", "Writer"):
        (found,) = problems(name, carry="keep")
        assert f"needs dtype:full, but base.dtype is {dtype}" in found.what and "bf16" in found.fix
        assert check(name)[0] == []
    assert problems("l2", "replay", "Slot", carry="stack") == []


def test_rows_to_forget_and_a_method_that_forgets_need_each_other():
    """With both or neither there is no problem, beside another method or alone."""
    task = (TaskSpec("f", "r", Path("f"), "d", {"train": 2}, "exact", "short", 8),)
    assert check("Forgetter", forget=task)[0] == check("l2", "Forgetter", forget=task)[0] == check("l2")[0] == []
    for names, index in ((("Forgetter",), 0), (("l2", "Forgetter"), 1)):
        (found,) = check(*names)[0]
        assert found.where == f"stages[0].methods[{index}] (forgetter)" and "names none to forget" in found.what
    for names in ((), ("l2",), ("l2", "replay")):
        (found,) = check(*names, forget=task)[0]
        assert found.where == "stages[0].forget" and "no method of the stage forgets rows" in found.what
