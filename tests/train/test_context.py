import pytest
import torch

from mcit.core.errors import DataError
from mcit.methods.formulas.forgetting import without_pictures
from mcit.models.basefiles import base_digest
from mcit.models.lineage import Lineage
from mcit.models.load import load_base
from mcit.plan.preflight import make_encoder
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


def test_a_changed_pass_shows_the_model_other_pictures(work):
    (plain,) = work.ctx.forward_pass("task", limit=4)
    (blank,) = work.ctx.forward_pass("task", limit=4, change=without_pictures)
    assert blank[0].row_ids == plain[0].row_ids and not blank[0].pixels["pixel_values"].any()
    assert not torch.equal(blank[1].nll_N, plain[1].nll_N)


def test_lr_is_that_of_the_step(work):
    """lr 1e-2, cosine over 4 steps without warm-up: 1e-2 in step 0 and half of it in step 2."""
    found = []
    for step in (0, 2):
        work.ctx.at(step)
        found.append(work.ctx.lr)
    assert found == pytest.approx([1e-2, 5e-3])


@pytest.mark.parametrize("size", [2, 3])
def test_a_shared_pass_gives_every_batch_to_one_rank_and_sums_to_the_whole(work, monkeypatch, size):
    """5 batches of 4 rows; every rank must run equally many forward passes or sharded weights could not be gathered."""
    import mcit.train.context as module

    whole = {batch.row_ids: float(out.nll_N.sum()) for batch, out in work.ctx.forward_pass("task", limit=20)}
    forwards = []
    inner = work.engine.forward
    monkeypatch.setattr(work.engine, "forward", lambda *args: forwards.append(1) or inner(*args))
    shared, counts = {}, []
    for rank in range(size):
        monkeypatch.setattr(module.world, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(module.world, "size", lambda: size)
        forwards.clear()
        mine = {b.row_ids: float(out.nll_N.sum()) for b, out in work.ctx.forward_pass("task", limit=20, share=True)}
        assert list(mine) == list(whole)[rank::size]
        shared.update(mine)
        counts.append(len(forwards))
    assert shared == whole and set(counts) == {-(-5 // size)}


def test_a_gradient_pass_on_several_ranks_is_the_share_that_sums_to_one_ranks_gradient(work, monkeypatch):
    import mcit.train.context as module

    def gradients():
        (grads,) = [{u.name: g.full(u) for u in g.units()} for g in work.ctx.gradient_pass("task", limit=4)]
        return grads

    alone = gradients()
    monkeypatch.setattr(module.world, "size", lambda: 4)
    for name, tensors in gradients().items():
        for role, tensor in tensors.items():
            assert torch.equal(4 * tensor, alone[name][role])


@pytest.mark.parametrize("size", [2, 3])
def test_a_shared_gradient_pass_sums_to_one_ranks_gradient(work, monkeypatch, size):
    """Batches of 4 and 1 rows: the mean over all answer tokens of a batch, also where a rank has no row of it."""

    def gradients(share):
        return [
            {(u.name, role): t for u in g.units() for role, t in g.full(u).items()}
            for g in work.ctx.gradient_pass("task", limit=5, share=share)
        ]

    alone, total = gradients(False), None
    monkeypatch.setattr(work.streams, "world", size)
    for rank in range(size):
        monkeypatch.setattr(work.streams, "rank", rank)
        mine = gradients(True)
        total = mine if total is None else [{k: a[k] + b[k] for k in a} for a, b in zip(total, mine, strict=True)]
    assert len(total) == 2
    for found, expected in zip(total, alone, strict=True):
        assert all(torch.allclose(found[k], t, rtol=1e-4, atol=1e-7) for k, t in expected.items())


def test_the_sum_over_one_rank_is_the_tensor(work):
    tensor = torch.tensor([1.0, 2.0])
    assert torch.equal(work.ctx.all_sum(tensor), torch.tensor([1.0, 2.0]))
