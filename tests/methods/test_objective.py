"""What all forget objectives share: factors, one stream, constants of the stage-start model."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from mcit.core import lookup
from mcit.core.errors import PlanError
from mcit.methods.base import Method
from mcit.methods.compose import MethodSet
from mcit.methods.npo import NPO
from mcit.methods.objective import Objective, of_rows, stored_sums
from mcit.plan.plan import method_specs, parse_run
from tests.fakes import steps
from tests.fakes.bench import config_of, plan_of, tensors_of
from tests.fakes.forgetting import STAGES, batch_of, output, stage, step_context, trained
from tests.fakes.method_plans import NAMES, shipped_settings

EVERY = [name for name in NAMES if issubclass(lookup.class_of("methods", name, base=Method), Objective)]


def made(name, **settings):
    cls = lookup.class_of("methods", name, base=Method)
    return cls(cls.Config(**{**shipped_settings(name), **settings}))


@pytest.mark.parametrize("name", [name for name in EVERY if name != "pdu"])
def test_at_factors_0_and_1_it_is_not_there(name):
    method = made(name, gamma=0.0, alpha=1.0)
    assert method.claims.slots == method.claims.streams == method.claims.needs == frozenset()
    assert method.streams(None) == {} and method.check(stage(), None) == []
    for stream in ("task", "forget", "pair"):
        assert method.loss_term(output([1.0]), batch_of(1, stream), step_context()) is None


@pytest.mark.parametrize("name", EVERY)
def test_it_forgets_and_says_so(name):
    claims = made(name).claims
    assert claims.streams == {"pair" if name == "idk_dpo" else "forget"}
    kept = stage()
    kept.adapter.carry = "keep"
    (problem,) = made(name).check(kept, None)
    assert "unloaded" in problem.what and problem.fix == "set adapter.carry: merge in this stage"


def test_the_retained_loss_is_weighed_in_the_place_of_the_tasks():
    """alpha 3 of a loss sum of 2; alpha 0 is none; at 1 the loop's own loss stays."""
    for alpha, value in ((3.0, 6.0), (0.0, None)):
        method = made("npo", alpha=alpha)
        assert method.claims.slots == {"objective:task"}
        term = method.loss_term(output([0.5, 1.5]), batch_of(1, "task"), step_context())
        assert term is value or (term.sum.item(), term.per) == (value, "tokens")
    assert made("npo").claims.slots == frozenset()


def test_sums_of_rows_are_stored_once_and_found_again():
    rows = [dataclasses.replace(row, id=str(n)) for n, row in enumerate(steps.rows("t", 2))]
    ctx = SimpleNamespace(
        all_sum=lambda t: t, forward_pass=lambda given, share: iter([(batch_of(2), output([1.0, 2], [4.0]))])
    )
    stored = stored_sums(ctx, rows)
    assert stored == {"t/0": 3.0, "t/1": 4.0}
    assert of_rows(stored, batch_of(3), torch.zeros(1)).tolist() == [3.0, 4.0, 0.0]


def test_two_objectives_read_one_stream():
    """Equal numbers of rows make one stream; others are refused in the plan and when streams are opened."""
    rows, same = steps.rows("t", 3), [made("npo"), made("rmu")]
    ctx = SimpleNamespace(forget_rows=lambda: rows)
    assert list(MethodSet(same).streams(ctx)) == ["forget"]
    with pytest.raises(PlanError, match="reads 4 rows"):
        MethodSet([made("npo"), made("ce_u", per_step=4)]).streams(ctx)
    methods = [{"use": "npo"}, {"use": "wga", "per_step": 4}]
    with pytest.raises(PlanError, match="reads 4 rows of stream 'forget' per step, another method 8"):
        plan_of(stages=STAGES[1:], defaults={"methods": methods})


def test_objectives_train_together_and_beside_other_methods(tmp_path):
    """Preference and misdirection at once, with KL on retained rows and group sparsity; resumed to the same bytes."""
    methods = [{"use": "npo", "per_step": 4}, {"use": "retain_kl"}, {"use": "group_sparse"}, {"use": "reglora"}]
    methods.append({"use": "rmu", "retain": "loss", "per_step": 4})
    _, result = trained(tmp_path / "a", *methods, stages=STAGES[1:], max_steps=2)
    _, again = trained(tmp_path / "b", *methods, stages=STAGES[1:], max_steps=2, stop_at=(1, 1))
    assert tensors_of(result) == tensors_of(again)


def test_presets_of_several_names():
    """Every shipped name for a forget method can be planned."""
    names = ["grad_diff", "kl_min", "idk", "idk_dpo", "alt_po", "wga", "safe_eraser", "gradient_restriction"]
    for name in names:
        methods = [{"use": name}, *([{"use": "npo"}] if name == "gradient_restriction" else [])]
        config, problems = parse_run(config_of(defaults={"methods": methods}))
        assert not problems, problems
        assert not method_specs(config)[1]


def test_the_base_class_has_no_loss():
    with pytest.raises(NotImplementedError):
        Objective(NPO.Config()).forget_loss(None, None, None)
