import pytest
import torch

from mcit.core.errors import DataError
from mcit.models.lineage import Lineage
from mcit.models.load import base_digest, load_base
from mcit.train.preflight import make_encoder
from mcit.train.stage import Material, build_stage
from tests.fakes.bench import plan_of


@pytest.fixture(scope="module")
def work(cache):
    import os

    before = os.environ.get("MCIT_CACHE")
    os.environ["MCIT_CACHE"] = str(cache)
    plan = plan_of(defaults={"methods": [{"name": "lwf", "from_stage": 1}]})
    model = load_base(plan.model_path)
    lineage = Lineage(str(plan.model_path), base_digest(plan.model_path))
    yield build_stage(plan.stages[0], Material(plan, model, make_encoder(plan), lineage), inherited={})
    if before is None:
        os.environ.pop("MCIT_CACHE")
    else:
        os.environ["MCIT_CACHE"] = before


def test_reference_is_computed_once_per_batch(work, monkeypatch):
    calls = []
    inner = work.engine.reference
    monkeypatch.setattr(work.engine, "reference", lambda b, n: calls.append(1) or inner(b, n))
    first, second = list(work.streams.batches("task", limit=8))
    work.ctx.at(0)
    a = work.ctx.reference(first)
    assert work.ctx.reference(first) is a and len(calls) == 1
    work.ctx.reference(second)
    work.ctx.at(1)
    work.ctx.reference(second)
    assert len(calls) == 3


def test_passes_go_over_the_stored_order_and_leave_no_gradient(work):
    seen = [batch.row_ids for batch, _ in work.ctx.forward_pass("task", limit=8)]
    assert seen == [b.row_ids for b in work.streams.batches("task", limit=8)]
    norms = []
    for grads in work.ctx.gradient_pass("task", limit=8):
        norms.append(sum(float(g.norm()) for u in grads.units() for g in grads.full(u).values()))
    assert len(norms) == 2 and all(n > 0 for n in norms)
    assert all(p.grad is None for p in work.engine.model.parameters())


def test_rows_of_this_and_earlier_tasks_only(work):
    assert len(work.ctx.data.rows("letter")) == 120 and len(work.ctx.data.stage_rows()) == 120
    with pytest.raises(DataError, match="'yesno'"):
        work.ctx.data.rows("yesno")


def test_logged_scalars_are_read_once(work):
    work.ctx.log("x", torch.tensor(2.0, requires_grad=True))
    work.ctx.log("y", 3)
    assert work.ctx.metrics() == {"x": 2.0, "y": 3.0} and work.ctx.metrics() == {}
