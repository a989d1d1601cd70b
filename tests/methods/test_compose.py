import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import DataError, PlanError, StateError, TrainingError
from mcit.core.types import Claims, Counts, LossSum, MethodSpec, StreamSpec
from mcit.methods import compose
from mcit.methods.base import Method
from mcit.methods.compose import MethodSet
from mcit.methods.l2 import L2
from mcit.methods.replay import Replay
from tests.fakes.steps import batch, context, output, rows


def make(name, claims=None, **hooks):
    body = {"name": name, **hooks}
    if claims:
        body["claims"] = claims
    cls = type(name.title(), (Method,), body)
    return cls(cls.Config())


CTX = SimpleNamespace(stage=SimpleNamespace(name="s"), seed=0, shapes={})


def test_trainable_sets_are_intersected():
    a = make("a", select_trainable=lambda s, n, c: n - {"x"})
    b = make("b", select_trainable=lambda s, n, c: n - {"y"})
    assert MethodSet([a, b]).select_trainable(frozenset("xyz"), CTX) == {"z"}
    c = make("c", select_trainable=lambda s, n, c: frozenset("x"))
    with pytest.raises(PlanError, match="nothing to train"):
        MethodSet([a, c]).select_trainable(frozenset("xyz"), CTX)
    d = make("d", select_trainable=lambda s, n, c: frozenset("q"))
    with pytest.raises(PlanError, match="'q'"):
        MethodSet([d]).select_trainable(frozenset("xyz"), CTX)


def test_streams_are_a_disjoint_claimed_union():
    spec = StreamSpec(rows("a", 2), 1)
    claims = Claims(streams=frozenset({"r"}))
    a, b = (make(n, claims, streams=lambda s, c: {"r": spec}) for n in "ab")
    assert MethodSet([a]).streams(None) == {"r": spec}
    with pytest.raises(PlanError, match="twice"):
        MethodSet([a, b]).streams(None)
    with pytest.raises(PlanError, match="without claiming"):
        MethodSet([make("c", streams=lambda s, c: {"r": spec})]).streams(None)
    with pytest.raises(PlanError, match="twice"):
        MethodSet([make("c", Claims(streams=frozenset({"task"})), streams=lambda s, c: {"task": spec})]).streams(None)
    with pytest.raises(DataError, match="no rows"):
        MethodSet([make("c", claims, streams=lambda s, c: {"r": StreamSpec([], 1)})]).streams(None)


def test_loss_terms_are_summed_each_over_its_own_count():
    """6 over 4 tokens plus 6 over 3 rows = 1.5 + 2 = 3.5."""
    a = make("a", loss_term=lambda s, o, b, c: LossSum(torch.tensor(6.0), "tokens"))
    b = make("b", loss_term=lambda s, o, b, c: LossSum(torch.tensor(6.0), "rows"))
    n = make("n", loss_term=lambda s, o, b, c: None)
    total, shares = MethodSet([a, b, n]).loss_terms(
        output(torch.zeros(2, 3), [0, 0]), batch(), Counts({"task": 4}, {"task": 3}), context()
    )
    assert total.item() == 3.5 and {k: v.item() for k, v in shares.items()} == {"a": 1.5, "b": 2.0}
    assert MethodSet([n]).loss_terms(output(torch.zeros(2, 3), [0, 0]), batch(), Counts({}, {}), context()) == (
        None,
        {},
    )


def test_terms_of_half_precision_are_added_in_fp32():
    term = make("a", loss_term=lambda s, o, b, c: LossSum(torch.tensor(1.0, dtype=torch.bfloat16), "tokens"))
    total, _ = MethodSet([term]).loss_terms(
        output(torch.zeros(2, 3), [0, 0]), batch(), Counts({"task": 4}, {}), context()
    )
    assert total.dtype == torch.float32 and total.item() == 0.25


def test_on_batch_composes_in_order_and_keeps_the_rows():
    def tag(text):
        return lambda s, b, c: dataclasses.replace(b, pixels={**b.pixels, text: len(b.pixels)})

    out = MethodSet([make("a", on_batch=tag("a")), make("b", on_batch=tag("b"))]).on_batch(batch(), context())
    assert out.pixels == {"a": 0, "b": 1}
    bad = make("c", on_batch=lambda s, b, c: dataclasses.replace(b, rows=()))
    with pytest.raises(TrainingError, match="changed the rows"):
        MethodSet([bad]).on_batch(batch(), context())


def test_editors_follow_gradient_order_and_the_writer_comes_first():
    """Else an anchor beside an average of weights would hold weights that are never committed."""
    seen = []
    a = make("a", before_step=lambda s, g, c: seen.append("a"), on_stage_end=lambda s, c: seen.append("a end"))
    b = make("b", before_step=lambda s, g, c: seen.append("b"), on_stage_end=lambda s, c: seen.append("b end"))
    w = make("w", Claims(slots=frozenset({"weights:edit"})), on_stage_end=lambda s, c: seen.append("w end"))
    group = MethodSet([w, a, b], gradient_order=["b", "a"])
    group.before_step(None, context())
    group.on_stage_end(context())
    assert seen == ["b", "a", "w end", "a end", "b end"]
    seen.clear()
    MethodSet([a, b]).before_step(None, context())
    assert seen == ["a", "b"]


def test_at_the_start_of_a_stage_the_writer_comes_first():
    """Else an anchor listed before an edit without training would hold the weights from before it."""
    seen = []
    a = make("a", on_stage_start=lambda s, c: seen.append("a"))
    w = make("w", Claims(slots=frozenset({"weights:edit"})), on_stage_start=lambda s, c: seen.append("w"))
    MethodSet([a, w]).on_stage_start(context())
    assert seen == ["w", "a"]


def test_a_stream_that_is_shared_has_the_rows_per_step_of_who_trains_on_it():
    passive, read = (
        make(n, Claims(streams=frozenset({"forget"})), streams=lambda s, c, k=k: {"forget": StreamSpec([1], k)})
        for n, k in (("passive", 0), ("read", 4))
    )
    for order in ([passive, read], [read, passive]):
        assert MethodSet(order).streams(None)["forget"].per_step == 4


def test_state_round_trip_and_version_check(tmp_path):
    method = L2(L2.Config())
    method.tensors.put("anchor", "x", torch.ones(2))
    MethodSet([method]).save(tmp_path)
    other = L2(L2.Config())
    MethodSet([other]).load(tmp_path)
    assert torch.equal(other.tensors.get("anchor", "x"), torch.ones(2))
    record = json.loads((tmp_path / "l2" / "state.json").read_text())
    (tmp_path / "l2" / "state.json").write_text(json.dumps({**record, "state_version": 9}))
    with pytest.raises(StateError, match="version 9"):
        MethodSet([L2(L2.Config())]).load(tmp_path)


def test_a_stage_takes_over_the_state_of_the_methods_that_had_one(tmp_path):
    """L2 left an anchor in an earlier stage, Replay is new in this one; without earlier stages both start empty."""
    earlier = L2(L2.Config())
    earlier.tensors.put("anchor", "x", torch.ones(2))
    MethodSet([earlier]).save(tmp_path)
    specs = (MethodSpec("l2", L2.Config()), MethodSpec("replay", Replay.Config()))
    stage = SimpleNamespace(methods=specs, gradient_order=())
    took, new = MethodSet.build(stage, {"l2": tmp_path / "l2"}).methods
    assert torch.equal(took.tensors.get("anchor", "x"), torch.ones(2)) and new.state_dict() == {
        "kept": [],
        "without": [],
        "aged": [],
    }
    for inherited in (None, {}):
        fresh, _ = MethodSet.build(stage, inherited).methods
        assert fresh.tensors.get("anchor", "x") is None


def test_slot_objective_task_replaces_the_task_loss():
    assert MethodSet([make("a", Claims(slots=frozenset({"objective:task"})))]).replaces_task_loss
    assert not MethodSet([make("a")]).replaces_task_loss


def test_penalties_are_asked_for_the_kinds_of_units_a_method_names():
    asked = []

    def penalty(name):
        return lambda self, unit, tensors, ctx: asked.append((name, unit.kind))

    blocks = make("blocks", weight_penalty=penalty("blocks"), penalty_kinds=frozenset({"block"}))
    methods = MethodSet([make("usual", weight_penalty=penalty("usual")), blocks, make("none")])
    assert methods.penalty_kinds == {"lora", "tensor", "block"}
    for kind in ("lora", "block"):
        assert methods.weight_penalty(SimpleNamespace(kind=kind), {}, CTX) == {}
    assert asked == [("usual", "lora"), ("blocks", "block")]
    assert MethodSet([make("none")]).penalty_kinds == frozenset()


def test_state_goes_by_the_name_in_the_config(tmp_path, monkeypatch):
    """An outside class that calls itself l2 inherited the built-in's tensors."""
    (tmp_path / "other_l2.py").write_text(
        "from mcit.methods.base import Method\nclass Mine(Method):\n    name = 'l2'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    built_in = L2(L2.Config())
    built_in.tensors.put("anchor", "x", torch.ones(2))
    MethodSet([built_in]).save(tmp_path / "state")
    spec = MethodSpec("other_l2:Mine", Method.Config())
    stage = SimpleNamespace(methods=(spec,), gradient_order=())
    inherited = {folder.name: folder for folder in (tmp_path / "state").iterdir()}
    (method,) = MethodSet.build(stage, inherited).methods
    assert method.name == "other_l2:Mine" and method.tensors.get("anchor", "x") is None
    both = MethodSet([built_in, method])
    both.save(tmp_path / "both")
    assert sorted(folder.name for folder in (tmp_path / "both").iterdir()) == ["l2", "other_l2%3AMine"]
    inherited = {folder.name: folder for folder in (tmp_path / "both").iterdir()}
    method.tensors.put("k", "y", torch.zeros(1))
    both.save(tmp_path / "both")
    assert MethodSet.build(stage, inherited).methods[0].tensors.names("k") == ["y"]


def test_a_class_that_is_no_method_is_told_without_a_traceback(tmp_path, monkeypatch):
    code = "from mcit.methods.base import Method\nclass A(Method):\n    def __init__(self): pass\n"
    (tmp_path / "no_method.py").write_text(code + "class B(Method):\n    claims = {}\nclass C(Method):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PlanError, match="cannot be made from its settings"):
        compose.make(MethodSpec("no_method:A", Method.Config()))
    with pytest.raises(PlanError, match="claims is dict, not Claims"):
        compose.make(MethodSpec("no_method:B", Method.Config()))
    assert compose.make(MethodSpec("no_method:C", Method.Config())).name == "no_method:C"  # no `name` of its own
