"""RMU: distances by hand, one direction per request."""

import dataclasses

import pytest
import torch

from mcit.methods.rmu import RMU
from tests.fakes.bench import run_plan, tensors_of
from tests.fakes.forgetting import batch_of, output, step_context
from tests.fakes.method_plans import plan_with
from tests.fakes.settings import shipped_config


def seen(stream="forget"):
    """One row: prompt, two answer tokens with states (1, 1) and (0, 0); the prompt's is (5, 5)."""
    batch = dataclasses.replace(
        batch_of(1, stream), labels_BT=torch.tensor([[-100, 7, 8]]), attention_BT=torch.ones(1, 3, dtype=torch.long)
    )
    hidden = torch.tensor([[[5.0, 5.0], [1.0, 1.0], [0.0, 0.0]]])
    return batch, dataclasses.replace(output([1.0, 1.0]), hidden={"0.25": hidden}, real_rows=(0,))


def started(**settings):
    method = RMU(RMU.Config(**settings))
    method.tensors.put("direction", "01-s", torch.tensor([0.6, 0.8]))
    ctx = step_context()
    ctx.stage.folder = "01-s"
    return method, ctx


def test_distance_from_the_target_by_hand():
    """c = 2 along (.6, .8): (.2 + 2.0) / 2 = 1.1; with the prompt's last token (14.44 + 11.56) / 2 = 13 as third position."""
    batch, out = seen()
    method, ctx = started()
    term = method.loss_term(out, batch, ctx)
    assert term.per == "rows" and term.sum.item() == pytest.approx(1.1)
    method, ctx = started(positions="with_prompt_end", gamma=3.0)
    assert method.loss_term(out, batch, ctx).sum.item() == pytest.approx(3 * (13.0 + 2.2) / 3)


def test_retained_rows_stay_where_the_reference_has_them():
    """States one off at one of two answer tokens: 1/2; in the place of their loss."""
    batch, out = seen("task")
    method, ctx = started(alpha=2.0)
    old = out.hidden["0.25"].clone()
    old[0, 1] += 1.0
    ctx.reference = lambda given: dataclasses.replace(out, hidden={"0.25": old})
    term = method.loss_term(out, batch, ctx)
    assert term.per == "rows" and term.sum.item() == pytest.approx(2.0 * 0.5)
    assert method.claims.slots == {"objective:task"}
    assert method.claims.needs == {"hidden:0.25", "reference:stage_start"}


def test_retained_rows_may_keep_their_loss():
    batch, out = seen("task")
    method, ctx = started(retain="loss")
    assert method.loss_term(out, batch, ctx) is None and method.claims.slots == frozenset()
    assert method.claims.needs == {"hidden:0.25"}
    assert started(retain="loss", alpha=2.0)[0].loss_term(out, batch, ctx).sum.item() == 4.0


def test_every_request_has_a_direction_of_its_own(tmp_path):
    """Unit vectors, the first in the corner of U(0, 1), the second orthogonal to it; the same after a restart."""
    from safetensors.torch import load_file

    plan = plan_with("rmu", changes={"rmu": {"per_step": 4}})
    tensors_of(run_plan(plan, tmp_path))
    home = tmp_path / plan.stages[1].folder / "methods" / "rmu" / "tensors.safetensors"
    first, second = (d for _, d in sorted(load_file(home).items()))
    assert float(first.min()) >= 0 and float(first.norm()) == pytest.approx(1, abs=1e-5)
    assert abs(float(first @ second)) < 1e-5 and float(second.norm()) == pytest.approx(1, abs=1e-5)


def test_settings():
    assert shipped_config(RMU) == RMU.Config()
