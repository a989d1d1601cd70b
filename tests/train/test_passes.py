import math

import pytest
import torch

from mcit.core.errors import PlanError, TrainingError
from mcit.core.interfaces import Silent
from mcit.core.types import Claims, LossSum
from mcit.methods.base import Method
from mcit.train.loop import train_stage
from mcit.train.passes import StepPasses
from tests.fakes.bench import Draft, plan_of, run_plan, tensors_of
from tests.train.test_loop import work_of

HERE = "tests.train.test_passes:"


class Passing(Method):
    """A holder of the slot whose passes are what a test wants."""

    claims = Claims(slots=frozenset({"step:passes"}))
    step_passes = 2.0
    what = None

    def passes(self, step, ctx):
        type(self).what(step, ctx)


class Counting(Method):
    """A loss term of its own on every stream, and how often it was asked."""

    asked = []

    def loss_term(self, out, batch, ctx):
        self.asked.append((batch.stream, ctx.again))
        return LossSum(0.1 * out.nll_N.sum())


def holding(what, *others, **top):
    Passing.what, Counting.asked = staticmethod(what), []
    methods = [{"name": HERE + "Passing"}, *({"name": name} if isinstance(name, str) else name for name in others)]
    return plan_of(**top, defaults={"methods": methods, "max_steps": 2})


def trained(tmp_path, what, *others, **top):
    return tensors_of(run_plan(holding(what, *others, **top), tmp_path, only=1))


def lines(tmp_path, what, *others):
    work, _ = work_of(holding(what, *others))
    draft = Draft(tmp_path)
    train_stage(work, draft, reporter=Silent())
    return draft.lines


def only_accumulate(step, ctx):
    step.accumulate()


def taken_and_added(step, ctx):
    step.accumulate()
    step.add(step.take())


def moved_nowhere(step, ctx):
    with step.moved(lambda unit, tensors: None):
        step.accumulate()


def moved_and_back(step, ctx):
    def away(unit, tensors):
        for tensor in tensors.values():
            tensor += 1.0

    with step.moved(away):
        step.accumulate()
        step.take()
    step.accumulate()


@pytest.mark.parametrize("what", [only_accumulate, taken_and_added, moved_nowhere, moved_and_back])
def test_passes_that_come_to_the_ordinary_one_are_it_bitwise(what, tmp_path):
    plain = tensors_of(run_plan(plan_of(defaults={"max_steps": 2}), tmp_path / "plain", only=1))
    assert trained(tmp_path / "held", what) == plain


def test_two_passes_add_up_and_streams_can_be_chosen(tmp_path):
    """g + g is 2 g, which with AdamW's first step is the same step; clipping is off the measured norm."""

    def twice(step, ctx):
        step.accumulate()
        step.accumulate()

    def by_stream(step, ctx):
        assert step.streams == ("task",)
        step.accumulate(["task"])

    once, double, chosen = (
        lines(tmp_path / str(i), what) for i, what in enumerate((only_accumulate, twice, by_stream))
    )
    assert double[0]["grad_norm"] == pytest.approx(2 * once[0]["grad_norm"], rel=1e-6)
    assert chosen[0]["grad_norm"] == once[0]["grad_norm"]
    assert double[0]["loss"] == once[0]["loss"] and double[0]["tokens"] == once[0]["tokens"]


def test_norm_dot_and_add_by_hand(tmp_path):
    """|g|^2 = g.g; g - (g.g / |g|^2) g = 0."""
    seen = []

    def projected(step, ctx):
        step.accumulate()
        held = step.take()
        seen.append((float(step.norm(held)), float(step.dot(held, held))))
        step.add(held)
        step.add(held, -step.dot(held, held) / step.norm(held) ** 2)

    out = lines(tmp_path, projected)
    assert all(dot == pytest.approx(norm**2) and norm > 0 for norm, dot in seen)
    assert all(line["grad_norm"] <= 1e-6 * norm for line, (norm, _) in zip(out, seen, strict=True))


def test_a_loss_of_ones_own_is_over_the_counts_of_the_step_and_not_in_the_metrics(tmp_path):
    def own(step, ctx):
        step.accumulate(loss=lambda out, batch: LossSum(3 * out.nll_N.sum()))
        seen.append(float(step.norm(step.take())))
        step.accumulate()

    seen = []
    out, plain = lines(tmp_path / "own", own), lines(tmp_path / "plain", only_accumulate)
    assert seen[0] == pytest.approx(3 * plain[0]["grad_norm"], rel=1e-5)
    assert [line["loss"] for line in out] == [line["loss"] for line in plain]


def test_loss_terms_of_other_methods_are_in_every_pass_and_shares_in_the_first(tmp_path):
    def twice(step, ctx):
        step.accumulate()
        step.take()
        step.accumulate()

    once, double = (
        lines(tmp_path / str(i), what, HERE + "Counting") for i, what in enumerate((only_accumulate, twice))
    )
    assert Counting.asked == 2 * [("task", False), ("task", False), ("task", True), ("task", True)]
    share = f"loss/{HERE}Counting"
    assert [line[share] for line in double] == [line[share] for line in once]
    assert double[0][share] == pytest.approx(0.1 * (double[0]["loss"] - double[0][share]), rel=1e-5)


def test_weights_come_back_when_something_fails(tmp_path):
    def fails(step, ctx):
        def away(unit, tensors):
            for tensor in tensors.values():
                tensor.fill_(math.inf)

        with step.moved(away):
            raise TrainingError("broken")

    work, model = work_of(holding(fails))
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(TrainingError, match="broken"):
        train_stage(work, Draft(tmp_path), reporter=Silent())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    "what, says",
    [
        (lambda step, ctx: None, "left no gradient"),
        (lambda step, ctx: step.take(), "take() without"),
        (lambda step, ctx: step.accumulate(["tsak"]), "no stream 'tsak'"),
    ],
)
def test_passes_that_come_to_nothing_are_told(what, says, tmp_path):
    with pytest.raises(TrainingError) as error:
        lines(tmp_path, what)
    assert says in error.value.what and "step 1" in error.value.where and error.value.fix


class Unclaimed(Method):
    def passes(self, step, ctx):
        step.accumulate()


def test_the_plan_knows_holder_and_cost():
    with pytest.raises(PlanError, match="needs slot step:passes, which"):
        holding(only_accumulate, "tests.fakes.small:TwoPass")
    with pytest.raises(PlanError, match="has the hook passes, but not the slot"):
        plan_of(defaults={"methods": [{"name": HERE + "Unclaimed"}]})
    from mcit.plan.record import plan_json

    plan = holding(only_accumulate)
    assert [stage["passes"] for stage in plan_json(plan)["stages"]] == [2.0, 2.0]
    assert plan_json(plan)["stages"][0]["hooks"]["passes"] == [HERE + "Passing"]
    assert any("2 forward and backward passes over the rows of a step" in note for note in plan.notes)
    assert [s["passes"] for s in plan_json(plan_of())["stages"]] == [1.0, 1.0]


def test_the_steps_passes_are_the_contracts():
    from mcit.core.interfaces import StepPasses as Contract

    assert {n for n in vars(Contract) if not n.startswith("_")} <= set(dir(StepPasses)) | {"streams"}
