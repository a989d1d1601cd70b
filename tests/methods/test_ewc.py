import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from mcit.core.types import Claims, WeightUnit
from mcit.methods.ewc import EWC
from tests.fakes.bench import plan_of
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import Weights, batch, context, output, rows

W = WeightUnit("p", "tensor", {"weight": "p"}, (3,))
PAIR = WeightUnit("m", "lora", {"A": "m.A", "B": "m.B"}, (2, 2), 2.0)
NOW, ANCHOR, F = torch.tensor([1.0, 2, -1]), torch.tensor([0.5, 2.5, -1]), torch.tensor([4.0, 0.5, 10])


class OneTensor(Weights):
    """Weights with a single unit."""

    def __init__(self, unit, **tensors):
        super().__init__(**tensors)
        self.unit = unit

    def units(self, kind=None):
        return [self.unit]


def whole(gradient, _unit):
    return gradient


def role(gradient, _unit):
    return {"weight": gradient}


def stage_end(method, gradients, *, unit=W, weights=None, losses=None, name="s", effective=None):
    """The end of a stage whose rows have these gradients (of role `weight`, or effective ones)."""
    asked = []

    def passes(source, *, rows, loss, effective):
        asked.append((list(source), rows, effective))
        for i, gradient in enumerate(gradients):
            logits = torch.zeros(1, 2)
            if losses:
                logits[0, 0] = math.log(losses[i] / (1 - losses[i]))
            term = loss(output(logits, [0]), batch())
            assert term.per == "rows"
            yield batch(), SimpleNamespace(full=partial(role, gradient), effective=partial(whole, gradient))

    ctx = context(weights=weights or OneTensor(unit, weight=NOW.clone()), rows=rows("t", 20))
    ctx.stage = SimpleNamespace(index=1, name=name, adapter=None)
    ctx.gradient_pass = passes
    method.on_stage_end(ctx)
    return asked


def anchored(fisher, anchor, **settings):
    method = EWC(EWC.Config(**settings))
    method.tensors.put("fisher", "p", fisher)
    method.tensors.put("anchor", "p", anchor)
    return method


def penalty(method, value=NOW):
    return method.weight_penalty(W, {"weight": value}, context()).item()


def test_penalty_by_hand():
    """1.125 at weight 1; weight 10 with 1/2 in front is 5.625."""
    assert penalty(anchored(F, ANCHOR, weight=1)) == pytest.approx(1.125)
    assert penalty(anchored(F, ANCHOR, weight=10, half=True)) == pytest.approx(5.625)


def test_the_first_stage_has_no_penalty_and_weight_zero_keeps_nothing():
    method = EWC(EWC.Config())
    method.on_stage_start(context(weights=OneTensor(W, weight=ANCHOR)))
    assert method.weight_penalty(W, {"weight": NOW}, context()) is None
    off = EWC(EWC.Config(weight=0))
    off.on_stage_start(context(weights=OneTensor(W, weight=ANCHOR)))
    stage_end(off, [torch.ones(3)])
    assert not off.tensors.nbytes() and off.weight_penalty(W, {"weight": NOW}, context()) is None


def test_opposite_gradients_cancel_in_a_batch_only():
    """Gradients 1 and -1: 1 by rows; their mini-batch mean is 0, and so is its square."""
    method = EWC(EWC.Config())
    ((_, size, effective),) = stage_end(method, [torch.ones(1), -torch.ones(1)])
    assert size == 1 and effective and method.tensors.get("fisher", "p").tolist() == [1]
    method = EWC(EWC.Config(estimator="batches", batch=2))
    ((_, size, _),) = stage_end(method, [torch.zeros(1)])
    assert size == 2 and method.tensors.get("fisher", "p").tolist() == [0]


def test_a_rows_likelihood_is_the_sum_over_its_answer_tokens():
    """Two tokens at probability 1/2: 2 ln 2, not their mean."""
    taken = []

    def passes(source, *, rows, loss, effective):
        taken.append(loss(output(torch.zeros(2, 2), [0, 0]), batch(tokens=2)))
        return iter(())

    ctx = context(weights=OneTensor(W, weight=NOW), rows=rows("t", 20))
    ctx.stage, ctx.gradient_pass = SimpleNamespace(index=1, name="s", adapter=None), passes
    EWC(EWC.Config()).on_stage_end(ctx)
    assert taken[0].sum.item() == pytest.approx(2 * math.log(2))


def test_the_weighted_estimator_multiplies_by_the_rows_probability():
    """Gradient 2 at probability .25: 4 plain, 1 weighted."""
    values = {}
    for estimator in ("rows", "weighted"):
        method = EWC(EWC.Config(estimator=estimator))
        stage_end(method, [torch.tensor([2.0])], losses=[0.25])
        values[estimator] = method.tensors.get("fisher", "p").item()
    assert values == {"rows": 4.0, "weighted": pytest.approx(1.0)}


def test_the_running_form_by_hand():
    """Decay .9: (4, .5), then (1, 2): (4.6, 2.45)."""
    method = EWC(EWC.Config(decay=0.9))
    stage_end(method, [torch.tensor([4.0, 0.5]).sqrt()])
    stage_end(method, [torch.tensor([1.0, 2.0]).sqrt()])
    assert method.tensors.get("fisher", "p").tolist() == pytest.approx([4.6, 2.45])


def test_separate_anchors_add_up():
    """Two stages with F 1 and 2 at anchors 0 and 1: at 3 the penalties are 9 and 8."""
    method = EWC(EWC.Config(weight=1, merge="separate", space="parameters"))
    unit = WeightUnit("p", "tensor", {"weight": "p"}, (1,))
    for name, value, square in (("one", 0.0, 1.0), ("two", 1.0, 2.0)):
        weights = OneTensor(unit, weight=torch.tensor([value]))
        stage_end(method, [torch.tensor([square]).sqrt()], unit=unit, weights=weights, name=name)
    assert method.weight_penalty(unit, {"weight": torch.tensor([3.0])}, context()).item() == pytest.approx(17.0)


def test_effective_importances_of_a_pair():
    """F of the 2 x 2 matrix is the square of its gradient; the update s B A = 2 * (1, 0; 0, 0) costs F_00 * 4."""
    method = EWC(EWC.Config(weight=1))
    a, b = torch.tensor([[1.0, 0]]), torch.tensor([[1.0], [0]])
    weights = OneTensor(PAIR, A=a, B=torch.zeros(2, 1))
    stage_end(method, [torch.tensor([[3.0, 1], [1, 1]])], unit=PAIR, weights=weights)
    assert method.tensors.get("fisher", "m").tolist() == [[9, 1], [1, 1]]
    method.on_stage_start(context(weights=weights))
    assert method.weight_penalty(PAIR, {"A": a, "B": b}, context()).item() == pytest.approx(36.0)


def test_rows_are_drawn_by_seed_and_not_the_first_ones():
    method = EWC(EWC.Config(rows=5))
    ((drawn, _, _),) = stage_end(method, [torch.ones(3)])
    assert len(drawn) == 5 and [row.id for row in drawn] != [f"t{i}" for i in range(5)]


def test_separate_needs_parameters():
    stage = SimpleNamespace(adapter=SimpleNamespace(kind="lora"))
    (problem,) = EWC(EWC.Config(merge="separate")).check(stage, None)
    assert "dense copy" in problem.what and "space: parameters" in problem.fix
    assert EWC(EWC.Config(merge="separate", space="parameters")).check(stage, None) == []
    assert EWC(EWC.Config(space="parameters")).claims == Claims(needs=frozenset({"names:kept"}))


def test_a_mixture_that_is_new_has_no_importances_of_an_earlier_one():
    """A fresh adapter under the names of the one below would be held to it."""
    for carry, words in (("stack", "does not keep its adapter"), ("keep", None)):
        adapter = {"kind": "moe_lora", "experts": 2, "carry": carry, "also_train": []}
        plan = plan_of(defaults={"adapter": adapter})
        assert EWC(EWC.Config()).check(plan.stages[0], plan) == []
        found = [p.what for p in EWC(EWC.Config()).check(plan.stages[1], plan)]
        assert [words in what for what in found] == ([True] if words else [])


def test_stages_of_another_kind_are_guarded_in_part_and_say_so():
    """Importances of a pair are by its module, those of a whole tensor by its name."""

    def notes(first, second, **settings):
        kinds = [SimpleNamespace(kind=kind, carry="merge") for kind in (first, second)]
        stages = [
            SimpleNamespace(name=f"s{k}", index=k + 1, adapter=kind, methods=[SimpleNamespace(name="ewc")])
            for k, kind in enumerate(kinds)
        ]
        return EWC(EWC.Config(**settings)).check(stages[1], SimpleNamespace(stages=stages))

    for pair in (("lora", "none"), ("none", "lora")):
        (note,) = notes(*pair)
        assert note.level == "note" and notes(*pair, weight=0) == []
    assert notes("lora", "lora") == [] and notes("none", "none") == []


def test_estimates_by_hand():
    """A (2, 3), B (4, 2), p (5): 19 numbers; effective F 4 * 3 + 5."""
    shapes = {"m.lora_A.d": (2, 3), "m.lora_B.d": (4, 2), "p": (5,)}
    assert EWC(EWC.Config()).state_bytes(shapes, stages=2) == 4 * (19 + 17)
    assert EWC(EWC.Config(space="parameters")).state_bytes(shapes, stages=2) == 8 * 19
    assert EWC(EWC.Config(space="parameters", merge="separate")).state_bytes(shapes, stages=2) == 4 * 19 * 5


def test_settings():
    assert EWC.Config() == shipped_config(EWC)
    assert refused(EWC, weight=-1) == ["weight"] and refused(EWC, decay=1.5) == ["decay"]
