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
from mcit.core.config import MethodConfig
from mcit.core.errors import Problem
from mcit.core.types import Claims
from mcit.methods.base import Method

class Slot(Method):
    name = "slot"
    claims = Claims(slots=frozenset({"trainable-mask"}))
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

class Typo(Method):
    claims = Claims(slots=frozenset({"weight:edit"}))

class Ordering(Method):
    claims = Claims(slots=frozenset({"order:task", "step:passes"}))
    def passes(self, step, ctx): step.accumulate()
    def order(self, stream, epoch, count, seed): return []

class Choosy(Method):
    def check(self, stage, plan):
        return [Problem("weight", "w", "f"), Problem(f"stages[{stage.index - 1}].name", "n", "f")]

class Named(Method):
    claims = Claims(needs=frozenset({"names:kept"}))

class Sometimes(Method):
    class Config(MethodConfig):
        writes: bool = False
    @property
    def claims(self):
        return Claims(slots=frozenset({"weights:edit"} if self.config.writes else ()))
    def on_stage_end(self, ctx): pass

class Reader(Method):
    def on_stage_end(self, ctx): pass
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
    return [p for p in check_stage(stage, plan, where="stages[0]") if p.level == "problem"], stage


def test_methods_that_go_together_have_no_problem():
    problems, stage = check("l2", "replay")
    assert problems == []
    assert hook_table(stage) == {
        "check": ["replay"],
        "streams": ["replay"],
        "on_stage_start": ["l2"],
        "loss_term": ["replay"],
        "weight_penalty": ["l2"],
        "on_stage_end": ["replay"],
    }


def test_a_setting_that_a_method_names_is_told_with_its_stage():
    problems, _ = check("Choosy")
    assert [p.where for p in problems] == ["stages[0].methods[0] (outside_methods:Choosy).weight", "stages[0].name"]


def test_one_slot_has_one_holder():
    problems, _ = check("Slot", "Slot2", order=["outside_methods:Slot", "outside_methods:Slot2"])
    (found,) = problems
    assert found.where == "stages[0].methods[1] (outside_methods:Slot2)" and found.fix
    assert "'outside_methods:Slot' already holds" in found.what


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
    assert any("order matters" in p.what and "[outside_methods:Slot, outside_methods:Slot2]" in p.fix for p in problems)
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
        assert (
            found.where == f"stages[0].methods[{index}] (outside_methods:Forgetter)"
            and "names none to forget" in found.what
        )
    for names in ((), ("l2",), ("l2", "replay")):
        (found,) = check(*names, forget=task)[0]
        assert found.where == "stages[0].forget" and "no method of the stage forgets rows" in found.what


def outside(*names, stages=1, adapter=None, **settings):
    """Problems and stage of the last of some stages with the same adapter."""
    import importlib

    module = importlib.import_module("outside_methods")
    specs = tuple(MethodSpec(f"outside_methods:{n}", getattr(module, n).Config(**settings.get(n, {}))) for n in names)
    adapter = adapter or AdapterConfig()
    config, _ = parse(RunConfig, {"name": "x", "stages": [{"recipe": "r"}]})
    made = tuple(Stage(i, f"s{i}", (), specs, adapter, OptimConfig(), 1, 1, 8, 0) for i in range(1, stages + 1))
    return check_stage(made[-1], Plan(config, made, (), None, "d"), where="stages[0]"), made[-1]


def test_a_slot_that_does_not_exist_is_named():
    (found,) = outside("Typo")[0]
    assert "claims the slot 'weight:edit', which does not exist" in found.what and "'weights:edit'" in found.fix
    assert [p for p in outside("Ordering")[0] if p.level == "problem"] == []


def test_claims_may_follow_from_settings():
    """The same class holds a slot with one setting and none with the other."""
    assert outside("Sometimes", "Writer")[0] == []
    (found,) = outside("Sometimes", "Writer", Sometimes={"writes": True})[0]
    assert "needs slot weights:edit" in found.what


def test_the_plan_shows_the_writer_before_the_readers():
    _, stage = outside("Reader", "Sometimes", Sometimes={"writes": True})
    assert hook_table(stage)["on_stage_end"] == ["outside_methods:Sometimes", "outside_methods:Reader"]
    _, stage = outside("Reader", "Sometimes")
    assert hook_table(stage)["on_stage_end"] == ["outside_methods:Reader", "outside_methods:Sometimes"]


@pytest.mark.parametrize(
    "stages, kind, carry, fits",
    [(1, "lora", "merge", True), (2, "lora", "merge", False), (2, "lora", "stack", False), (2, "lora", "keep", True)]
    + [(2, "none", "none", True)],
)
def test_tensors_kept_by_name_need_names_that_stay(stages, kind, carry, fits):
    """Under merge and stack a fresh adapter takes the names of the last one: an anchor would be of other weights."""
    problems, _ = outside("Named", stages=stages, adapter=AdapterConfig(kind=kind, carry=carry))
    assert (problems == []) is fits
    if not fits:
        assert "is a new one under the same names" in problems[0].what and "carry: keep" in problems[0].fix
