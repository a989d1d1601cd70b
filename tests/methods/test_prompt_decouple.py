"""Prompt decoupling: the loss, which rows come together, where rows come from."""

import dataclasses
import json

import pytest

from mcit.core.errors import PlanError
from mcit.data.rowbook import RowBook
from mcit.methods.compose import MethodSet
from mcit.methods.prompt_decouple import PromptDecouple
from mcit.train.stage import open_streams
from tests.fakes.bench import plan_of, tensors_of
from tests.fakes.forgetting import STAGES, batch_of, output, stage, step_context, trained
from tests.fakes.settings import shipped_config
from tests.methods.test_ga import method as ascent


def method(**settings):
    return PromptDecouple(PromptDecouple.Config(**settings))


def test_objectives_with_it():
    """CE_f 2, CE_r .5, PD 1.2, KL .13: GA -1.4; GD with its retained loss halved -1.15; KL with weight 1 -.67."""
    forget = ascent().loss_term(output([2.0]), batch_of(1), step_context()).sum.item()

    def decoupled(weight):
        given = method(decouple_weight=weight)
        term = given.loss_term(output([1.2]), batch_of(1, "decouple"), step_context())
        assert term.per == "tokens" and given.loss_term(output([1.2]), batch_of(1), step_context()) is None
        return term.sum.item()

    retain = ascent(alpha=0.5).loss_term(output([0.5]), batch_of(1, "task"), step_context()).sum.item()
    assert forget + decoupled(0.5) == pytest.approx(-1.4)
    assert forget + retain + decoupled(0.5) == pytest.approx(-1.15)
    assert forget + 0.13 + decoupled(1.0) == pytest.approx(-0.67)


@pytest.mark.parametrize(
    ("objective", "stream"),
    [({"use": "npo"}, "forget"), ({"use": "safe_eraser"}, "refusal"), ({"use": "idk"}, "refusal")],
)
def test_a_step_reads_the_harmless_rows_of_the_rows_it_forgets(objective, stream):
    """The same ids of both streams in every step, refused rows too; as released they are drawn on their own."""
    for compat in (False, True):
        setting = {"authors_compat": compat}
        alone = objective["use"] == "safe_eraser"  # which lists it itself
        given = [{**objective, **setting}] if alone else [objective, {"use": "prompt_decouple", **setting}]
        stages = [{**STAGES[1], "decouple": "tiny/word-decouple"}]
        plan = plan_of(stages=stages, defaults={"methods": given})
        book = RowBook(plan.tasks, plan.stages[0])
        streams = open_streams(plan.stages[0], plan, MethodSet.build(plan.stages[0]), book, None).streams
        pairs = [(streams[stream].at(p), streams["decouple"].at(p)) for p in range(60)]
        assert all(row.id == other.id for row, other in pairs) != compat
        assert all(row.images != other.images or row.root != other.root for row, other in pairs)


def test_it_is_off_at_weight_0():
    off = method(decouple_weight=0.0)
    assert not off.claims.streams and off.streams(None) == {} and off.check(stage(), None) == []


def test_different_numbers_of_rows_do_not_belong_together():
    given = [{"use": "npo", "per_step": 4}, {"use": "prompt_decouple"}]
    with pytest.raises(PlanError, match="reads 8 harmless rows per step, 'npo' 4 rows to forget"):
        plan_of(stages=STAGES[1:], defaults={"methods": given})
    given[1]["authors_compat"] = True
    assert plan_of(stages=STAGES[1:], defaults={"methods": given})
    lone = dataclasses.replace(plan_of(stages=STAGES[1:], defaults={"methods": given}).stages[0], forget=())
    assert "names none to forget" in method().check(lone, None)[0].what


def test_what_is_missing_is_named_in_the_plan(tmp_path):
    """A stage whose decouple leaves rows out, and a retained set in which every picture is of the forgotten category."""
    methods = [{"use": "npo"}, {"use": "prompt_decouple"}]
    with pytest.raises(PlanError, match=r"prompt_decouple\): shapes-word\[train\].*no harmless picture"):
        plan_of(stages=[{**STAGES[1], "decouple": "tiny/letter"}], defaults={"methods": methods})
    methods[1] = {"use": "prompt_decouple", "category": "task"}
    stages = [{**STAGES[1], "recipe": "tiny/word-retain"}]
    assert plan_of(stages=stages, defaults={"methods": methods})  # word-red and word are two tasks
    methods[1] = {"use": "prompt_decouple", "category": "meta.nothing"}
    with pytest.raises(PlanError, match="no meta 'nothing'"):
        plan_of(stages=stages, defaults={"methods": methods})


def test_made_rows_are_the_same_after_a_restart(tmp_path):
    """Refusals with decoupling, as SafeEraser's PO: the model answers before the stage, and again when it is resumed."""
    few = {"refusal": {"per_step": 4}, "prompt_decouple": {"per_step": 4, "max_new_tokens": 2, "tries": 1}}
    given = [{"use": "safe_eraser", **few}]
    plan, result = trained(tmp_path / "a", *given, stages=STAGES[1:], max_steps=2)
    _, again = trained(tmp_path / "b", *given, stages=STAGES[1:], max_steps=2, stop_at=(1, 1))
    assert tensors_of(result) == tensors_of(again)
    state = tmp_path / "a" / plan.stages[0].folder / "methods" / "prompt_decouple" / "state.json"
    assert json.loads(state.read_text())["state"] == {}


def test_settings():
    """0.5 whatever stands beside it, as documented; 1 in the preset of refusals."""
    assert shipped_config(PromptDecouple) == PromptDecouple.Config()
    assert PromptDecouple.Config().decouple_weight == 0.5
    eraser = plan_of(stages=STAGES[1:], defaults={"methods": [{"use": "safe_eraser"}]}).stages[0].methods
    assert {spec.name: spec.config for spec in eraser}["prompt_decouple"].decouple_weight == 1.0
