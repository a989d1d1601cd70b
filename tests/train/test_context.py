import dataclasses

import pytest
import torch

from mcit.core.errors import DataError, TrainingError
from mcit.core.types import LossSum
from mcit.methods.formulas.forgetting import without_pictures
from mcit.models.basefiles import base_digest
from mcit.models.lineage import Lineage
from mcit.models.load import load_base
from mcit.plan.preflight import make_encoder
from mcit.train.loop import run_step
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
    first, second = list(work.streams.batches("task", rows=4, limit=8))
    work.ctx.at(0)
    a = work.ctx.reference(first)
    work.ctx.reference(without_pictures(first))  # another method's changed batch
    assert work.ctx.reference(first) is a and len(calls) == 2
    work.ctx.next_batch()
    work.ctx.reference(second)
    work.ctx.at(1)
    work.ctx.reference(second)
    assert len(calls) == 4
    work.ctx.phase = "after"


def test_passes_go_over_the_stored_order_and_leave_no_gradient(work):
    ids = [row.id for row in work.ctx.data.stage_rows()[:8]]
    seen = [batch.row_ids for batch, _ in work.ctx.forward_pass("task", rows=3, limit=8)]
    assert seen == [tuple(ids[:3]), tuple(ids[3:6]), tuple(ids[6:])]
    norms = []
    for batch, grads in work.ctx.gradient_pass("task", rows=5, limit=8):
        norms.append((batch.row_ids, sum(float(g.norm()) for u in grads.units() for g in grads.full(u).values())))
    assert [i for i, _ in norms] == [tuple(ids[:5]), tuple(ids[5:])] and all(n > 0 for _, n in norms)
    assert all(p.grad is None for p in work.engine.model.parameters())


def test_rows_of_this_and_earlier_tasks_only(work):
    assert len(work.ctx.data.rows("letter")) == 120 and len(work.ctx.data.stage_rows()) == 120
    with pytest.raises(DataError, match="'yesno'"):
        work.ctx.data.rows("yesno")


def test_logged_scalars_are_read_once(work):
    work.ctx.metrics()
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
    work.ctx.phase = "after"
    assert found == pytest.approx([1e-2, 5e-3])


@pytest.mark.parametrize("size", [2, 3])
def test_a_shared_pass_gives_every_batch_to_one_rank_and_sums_to_the_whole(work, monkeypatch, size):
    """5 batches of 4 rows; every rank must run equally many forward passes or sharded weights could not be gathered."""
    import mcit.train.context as module

    whole = {batch.row_ids: float(out.nll_N.sum()) for batch, out in work.ctx.forward_pass("task", rows=4, limit=20)}
    forwards = []
    inner = work.engine.forward
    monkeypatch.setattr(work.engine, "forward", lambda *args: forwards.append(1) or inner(*args))
    shared, counts = {}, []
    for rank in range(size):
        monkeypatch.setattr(module.world, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(module.world, "size", lambda: size)
        forwards.clear()
        given = work.ctx.forward_pass("task", rows=4, limit=20, share=True)
        mine = {b.row_ids: float(out.nll_N.sum()) for b, out in given}
        assert list(mine) == list(whole)[rank::size]
        shared.update(mine)
        counts.append(len(forwards))
    assert shared == whole and set(counts) == {-(-5 // size)}


def test_a_gradient_pass_on_several_ranks_is_the_share_that_sums_to_one_ranks_gradient(work, monkeypatch):
    import mcit.train.context as module

    def gradients():
        given = work.ctx.gradient_pass("task", rows=4, limit=4)
        (grads,) = [{u.name: g.full(u) for u in g.units()} for _, g in given]
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
            for _, g in work.ctx.gradient_pass("task", rows=4, limit=5, share=share)
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


# ---- passes ----------------------------------------------------------------------------------------------------------
def built(**top):
    """A stage of other settings, with a reference."""
    plan = plan_of(**{"defaults": {"methods": [{"name": "lwf", "from_stage": 1}]}, **top})
    lineage = Lineage(str(plan.model_path), base_digest(plan.model_path))
    material = Material(plan, load_base(plan.model_path, dtype=plan.config.base.dtype), make_encoder(plan), lineage)
    return build_stage(plan.stages[0], material, inherited={})


def all_gradients(work, source="task", **settings):
    return [
        {(u.name, role): t for u in grads.units() for role, t in grads.full(u).items()}
        for _, grads in work.ctx.gradient_pass(source, **settings)
    ]


def same(a, b):
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def test_passes_do_not_depend_on_the_micro_batch(cache):
    """It is no part of a run's identity: the rows of one gradient are what the caller asks for."""
    one, eight = (built(engine={"micro_batch": size, "workers": 0}) for size in (1, 8))
    assert same(all_gradients(one, rows=3, limit=6), all_gradients(eight, rows=3, limit=6))
    assert len(all_gradients(one, limit=3)) == 3
    a, b = ([out.nll_N for _, out in w.ctx.forward_pass("task", limit=10)] for w in (one, eight))
    assert len(a) == 2 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_nothing_but_training_sees_dropout_or_draws_a_random_number(cache):
    """At dropout 0.3 two calls gave other logits, and validation changed what was trained after it."""
    adapter = {"rank": 4, "alpha": 8, "dropout": 0.3, "also_train": ["projector"]}
    methods = [{"name": "lwf", "from_stage": 1}]
    work = built(defaults={"adapter": adapter, "methods": methods}, eval={"tasks": "none", "validate_every": 1})
    for unit in work.ctx.weights.units("lora"):  # B is zero at the start, which hides dropout
        with work.ctx.weights.edit(unit) as tensors:
            tensors["B"].copy_(torch.linspace(-1, 1, tensors["B"].numel()).view_as(tensors["B"]))
    batch = next(work.streams.batches("task", rows=4))

    def outputs():
        logits = [
            work.ctx.reference(batch).logits_NV,
            *(out.logits_NV for _, out in work.ctx.forward_pass("task", limit=4)),
        ]
        work.ctx.next_batch()
        return logits, all_gradients(work, rows=2, limit=2), work.validate()

    before = torch.get_rng_state()
    (logits, gradients, scores), (again, twice, same_scores) = outputs(), outputs()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(logits, again, strict=True)) and same(gradients, twice)
    assert scores == same_scores
    with torch.no_grad():
        live = [work.engine.forward(batch).logits_NV for _ in range(2)]
    assert not torch.equal(*live), "training itself has lost its dropout"


def test_a_gradient_pass_inside_a_step_is_refused(work):
    """It discarded the step: loss 0, tokens 0 and exit code 0."""
    work.ctx.at(1)
    with pytest.raises(TrainingError, match="would discard the gradients of the step") as error:
        list(work.ctx.gradient_pass("task", limit=1))
    assert "step 2" in error.value.where and "step:passes" in error.value.fix
    work.ctx.phase = "after"
    assert len(all_gradients(work, limit=1)) == 1


def test_the_loss_of_a_pass_is_the_callers_over_real_rows(work):
    """Twice the sum per row is 2 N / R of the mean per token: N answer tokens in R rows."""
    mean = all_gradients(work, rows=3, limit=3)
    (batch,) = work.streams.batches("task", rows=3, limit=3)
    double = all_gradients(work, rows=3, limit=3, loss=lambda out, b: LossSum(2 * out.nll_N.sum(), "rows"))
    factor = 2 * batch.target_count / 3
    for key, value in mean[0].items():
        assert (double[0][key] - factor * value).norm() <= 1e-5 * (factor * value).norm(), key
    nothing = all_gradients(work, rows=3, limit=3, loss=lambda out, b: None)
    assert all(float(t.abs().max()) == 0 for t in nothing[0].values())


def test_passes_go_over_any_rows_and_know_their_streams(work):
    rows = list(reversed(work.ctx.data.stage_rows()))[:3]
    found = [batch.row_ids for batch, _ in work.ctx.gradient_pass(rows, rows=2)]
    assert found == [(rows[0].id, rows[1].id), (rows[2].id,)]
    with pytest.raises(DataError, match="no stream 'replay'"):
        list(work.ctx.forward_pass("replay"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_effective_gradients_are_those_of_the_whole_matrix(checkpointing, cache):
    """By autograd on the base weight itself, and by the chain rule: dL/dB = s G A^T, dL/dA = s B^T G."""
    work = built(engine={"micro_batch": 2, "workers": 0, "gradient_checkpointing": checkpointing})
    model = work.engine.model
    for unit in work.ctx.weights.units("lora"):
        with work.ctx.weights.edit(unit) as tensors:
            tensors["B"].copy_(0.1 * torch.linspace(-1, 1, tensors["B"].numel()).view_as(tensors["B"]))
    for _, grads in work.ctx.gradient_pass("task", rows=3, limit=3, effective=True):
        whole = {unit.name: (unit, grads.effective(unit), grads.full(unit)) for unit in grads.units()}
    names = [name for name, (unit, _, _) in whole.items() if unit.kind == "lora"]
    bases = {name: model.get_submodule(name).base_layer.weight.requires_grad_(True) for name in names}
    (batch,) = work.streams.batches("task", rows=3, limit=3)
    work.engine.forward(batch).nll_N.mean().backward()
    assert len(names) > 10
    for name in names:
        unit, G_OI, parts = whole[name]
        assert G_OI.shape == unit.shape and float(G_OI.norm()) > 0
        assert torch.allclose(G_OI, bases[name].grad, rtol=1e-4, atol=1e-7)
        with work.ctx.weights.gathered(unit) as tensors:
            assert torch.allclose(parts["B"], unit.scale * G_OI @ tensors["A"].T, rtol=1e-3, atol=1e-6)
            assert torch.allclose(parts["A"], unit.scale * tensors["B"].T @ G_OI, rtol=1e-3, atol=1e-6)
    tensor = next(u for u, _, _ in whole.values() if u.kind == "tensor")
    assert torch.equal(whole[tensor.name][1], whole[tensor.name][2]["weight"])
    work.engine.discard()
    for _, grads in work.ctx.gradient_pass("task", limit=1):
        with pytest.raises(TrainingError, match="no gradient of an effective weight"):
            grads.effective(whole[names[0]][0])


def test_outputs_name_the_rows_that_something_is_learned_from(work):
    """A rank without rows left gets an unsupervised one; a loss per row that took it in would be off by a constant."""
    (batch,) = work.streams.batches("task", rows=3, limit=3)
    labels = batch.labels_BT.clone()
    labels[1] = -100
    ghosted = dataclasses.replace(batch, labels_BT=labels)
    with torch.no_grad():
        assert work.engine.forward(batch).real_rows == (0, 1, 2)
        assert work.engine.forward(ghosted).real_rows == (0, 2)


# ---- fine-tuning -----------------------------------------------------------------------------------------------------
def test_fine_tuning_moves_what_is_named_and_leaves_the_stage_alone(cache):
    """Other tensors, the moments and the metrics of the stage keep their bits; the loss of the rows falls."""
    work = built()
    ctx, engine = work.ctx, work.engine
    run_step(work, work.streams.next_step())
    ctx.enter("after")
    metrics, moments = engine.metrics(), engine._state().moments
    moments = {(n, k): t.clone() for n, m in moments.items() for k, t in m.items()}
    before = {n: t.clone() for n, t in ctx.weights.local().items()}
    names = list(ctx.weights.units("lora")[0].params.values())
    losses = ctx.fine_tune(ctx.data.stage_rows()[:4], names=names, steps=6, lr=5e-2, batch=4)
    after = ctx.weights.local()
    assert {n for n in before if not torch.equal(before[n], after[n])} == set(names)
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert engine.metrics() == metrics
    now = {(n, k): t for n, m in engine._state().moments.items() for k, t in m.items()}
    assert all(torch.equal(t, now[key]) for key, t in moments.items())
    ctx.at(1)
    with pytest.raises(TrainingError, match="fine_tune would discard"):
        ctx.fine_tune("task", names=names, steps=1, lr=1e-3)


def test_fine_tuning_draws_the_same_rows_whenever_it_is_repeated(cache):
    """By stage, phase, step and call: a stage resumed at its end begins with the first call of the end again."""
    orders = []
    for calls in (0, 1):
        work = built()
        names, seen = list(work.ctx.weights.units("lora")[0].params.values()), []

        def loss(out, batch, seen=seen):
            seen.append(batch.row_ids)
            return LossSum(out.nll_N.sum())

        def tune(work=work, loss=loss, names=names):
            work.ctx.fine_tune("task", names=names, steps=1, lr=1e-3, batch=3, loss=loss)

        work.ctx.at(3)
        work.ctx.enter("after")
        for _ in range(calls):
            tune()
        work.ctx.enter("end")
        seen.clear()
        tune()
        tune()
        orders.append(list(seen))
    assert orders[0] == orders[1] and orders[0][0] != orders[0][1]
