import dataclasses

import pytest
import torch

from mcit.core.errors import StateError, TrainingError
from mcit.core.schema import OptimConfig
from mcit.engine.plain import EngineSpec, PlainEngine, run_model
from tests.fakes.models import adapted, off, tiny_model
from tests.fakes.sharded import ShardedEngine
from tests.fakes.toy import toy_batch

OPTIM = OptimConfig(batch=4, lr=1e-2, lr_projector=1e-3, schedule="constant", warmup=0)
ENGINES = [PlainEngine, ShardedEngine]


def build(engine=PlainEngine, *, optim=OPTIM, steps=10, model=None, **spec):
    model = model or tiny_model()
    units = adapted(model)
    return model, engine(model, EngineSpec(units, optim, steps, is_projector=lambda n: "projector" in n, **spec))


def full_step(engine, batches):
    counts = engine.target_counts(batches)
    for i, batch in enumerate(batches):
        with engine.micro_batch(last=i == len(batches) - 1):
            out = engine.forward(batch)
            engine.backward(out.nll_N.sum() / counts.of("task", "tokens"), batch)


def values(engine):
    if isinstance(engine, ShardedEngine):
        with engine._window():
            return {n: p.detach().clone() for n, p in engine._named.items()}
    return {n: p.detach().clone() for n, p in engine._named.items()}


def split(batch, size):
    """The same rows in micro-batches of `size`."""
    out = []
    for i in range(0, len(batch.rows), size):
        part = slice(i, i + size)
        labels = batch.labels_BT[part]
        out.append(
            dataclasses.replace(
                batch,
                rows=batch.rows[part],
                input_ids_BT=batch.input_ids_BT[part],
                labels_BT=labels,
                attention_BT=batch.attention_BT[part],
                pixels={k: v[part] for k, v in batch.pixels.items()},
                target_count=int((labels != -100).sum()),
            )
        )
    return out


def test_answer_only_logits_equal_full_logits():
    """The head on predicting positions only gives the same numbers as the model's own full forward."""
    model = tiny_model()
    batch = toy_batch(model, answer=3)
    out = run_model(model, batch, device=torch.device("cpu"), layers={"last"})
    with torch.no_grad():
        full = model(
            input_ids=batch.input_ids_BT, attention_mask=batch.attention_BT, **batch.pixels, labels=batch.labels_BT
        )
    positions = slice(-4, -1)
    assert torch.allclose(out.logits_NV, full.logits[:, positions].reshape(-1, full.logits.shape[-1]), atol=1e-6)
    assert torch.allclose(out.nll_N.mean(), full.loss, atol=1e-6)
    assert out.row_N.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert out.hidden_BTD.shape == (4, 30, 64)


@pytest.mark.parametrize("engine", ENGINES)
def test_loss_does_not_depend_on_the_cut_into_micro_batches(engine):
    """Rows with different answer lengths: one micro-batch of 4 and four of 1 give the same gradient."""
    results = []
    for size in (4, 2, 1):
        model, e = build(engine)
        batch = toy_batch(model)
        labels = batch.labels_BT.clone()
        labels[0, :-1] = -100  # one answer token against five
        batch = dataclasses.replace(batch, labels_BT=labels, target_count=int((labels != -100).sum()))
        full_step(e, split(batch, size))
        grads = torch.cat([t.flatten() for u in e.weights.units() for t in e.gradients().full(u).values()])
        e.step()
        results.append((grads, e.metrics()["loss"]))
    for other, loss in results[1:]:
        assert loss == pytest.approx(results[0][1], rel=1e-5)
        assert (other - results[0][0]).norm() < 1e-5 * results[0][0].norm()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_edit_between_backward_and_step_reaches_the_weights(engine):
    """A gradient put to zero leaves its tensor as it was on the first step; the others move."""
    model, e = build(engine)
    before = values(e)
    full_step(e, [toy_batch(model)])
    grads = e.gradients()
    unit = grads.units("tensor")[0]
    grads.replace(unit, "weight", torch.zeros_like(grads.full(unit)["weight"]))
    e.step()
    after = values(e)
    assert torch.equal(before[unit.name], after[unit.name])
    moved = [n for n in before if not torch.equal(before[n], after[n])]
    assert len(moved) > len(before) // 2


@pytest.mark.parametrize("engine", ENGINES)
def test_freeze_keeps_entries_though_momentum_and_decay_would_move_them(engine):
    model, e = build(engine, optim=OPTIM.model_copy(update={"weight_decay": 0.1}))
    for _ in range(2):  # momentum first
        full_step(e, [toy_batch(model)])
        e.step()
    before = values(e)
    full_step(e, [toy_batch(model)])
    grads = e.gradients()
    unit = next(u for u in grads.units("tensor") if len(u.shape) == 2)
    mask = torch.zeros(unit.shape, dtype=torch.bool)
    mask[0] = True
    grads.freeze(unit, "weight", mask)
    e.step()
    after = values(e)[unit.name]
    assert torch.equal(after[0], before[unit.name][0])
    assert not torch.equal(after[1:], before[unit.name][1:])


@pytest.mark.parametrize("engine", ENGINES)
def test_streamed_penalty_equals_autograd(engine):
    """penalty = sum of squares of every trained tensor: its gradient is 2 w, on top of the loss's."""
    model, e = build(engine)
    full_step(e, [toy_batch(model)])
    plain = {u.name: e.gradients().full(u) for u in e.weights.units()}
    totals = e.add_penalties(lambda unit, tensors: {"sq": sum((t**2).sum() for t in tensors.values())})
    now = values(e)
    assert totals["sq"].item() == pytest.approx(sum(float((t**2).sum()) for t in now.values()), rel=1e-5)
    for unit in e.weights.units():
        full = e.gradients().full(unit)
        for role, name in unit.params.items():
            assert torch.allclose(full[role], plain[unit.name][role] + 2 * now[name], atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_discard_and_rehearsal_leave_no_trace(engine):
    runs = []
    for disturb in (False, True):
        model, e = build(engine)
        if disturb:
            e.rehearse(toy_batch(model, seed=9))
        for step in range(3):
            if disturb:
                full_step(e, [toy_batch(model, seed=50)])
                e.discard()
            full_step(e, [toy_batch(model, seed=step)])
            e.step()
        runs.append(values(e))
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_save_and_load_continue_bitwise(engine, tmp_path):
    model, e = build(engine)
    for step in range(4):
        if step == 2:
            e.save(tmp_path)
        full_step(e, [toy_batch(model, seed=step)])
        e.step()
    straight = values(e)
    model, e = build(engine)
    e.load(tmp_path)
    for step in range(2, 4):
        full_step(e, [toy_batch(model, seed=step)])
        e.step()
    resumed = values(e)
    assert all(torch.equal(straight[n], resumed[n]) for n in straight)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    _, e = build()
    e.save(tmp_path)
    model = tiny_model()
    units = adapted(model, rank=2)
    other = PlainEngine(model, EngineSpec(units, OPTIM, 10))
    with pytest.raises(StateError, match="another model"):
        other.load(tmp_path)


def test_projector_learning_rate_and_clipping():
    """AdamW's first step moves each entry by its learning rate: 1e-2 for the adapter, 1e-3 for the projector."""
    model, e = build()
    before = values(e)
    full_step(e, [toy_batch(model)])
    e.step()
    after = values(e)
    for name in before:
        moved = (after[name] - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-3 if "projector" in name else 1e-2, rel=0.05) or moved == 0.0
    model, e = build(optim=OPTIM.model_copy(update={"clip": 1e-3}))
    full_step(e, [toy_batch(model)])
    e.step()
    assert e.metrics()["grad_norm"] > 1e-3  # the norm reported is the one before clipping


def test_non_finite_loss_names_stage_step_and_rows_and_leaves_weights():
    model, e = build(where="stage 02-b")
    full_step(e, [toy_batch(model)])
    e.step()
    before = values(e)
    good, bad = toy_batch(model, seed=1), toy_batch(model, seed=2)
    bad = dataclasses.replace(bad, pixels={"pixel_values": torch.full_like(bad.pixels["pixel_values"], float("nan"))})
    full_step(e, [good, bad])
    with pytest.raises(TrainingError) as error:
        e.step()
    text = str(error.value)
    assert "stage 02-b, step 2" in text and "non-finite loss" in text and bad.rows[0].where in text
    assert all(torch.equal(before[n], v) for n, v in values(e).items())


def test_non_finite_gradient_is_refused():
    model, e = build()
    full_step(e, [toy_batch(model)])
    grads = e.gradients()
    unit = grads.units()[0]
    role = next(iter(unit.params))
    grads.replace(unit, role, torch.full_like(grads.full(unit)[role], float("inf")))
    with pytest.raises(TrainingError, match="non-finite gradient"):
        e.step()


@pytest.mark.parametrize("fresh", [True, False])
def test_reference_is_the_stage_start_model_bit_for_bit(fresh):
    """After 20 steps with the projector trained, on rows with images: exactly the logits of before."""
    model = tiny_model()
    units = adapted(model)
    spec = EngineSpec(
        units, OPTIM, 20, needs=frozenset({"reference:stage_start"}), adapter_off=off(model) if fresh else None
    )
    e = PlainEngine(model, spec)
    batch = toy_batch(model)
    with torch.no_grad():
        start = e.forward(batch).logits_NV
    for step in range(20):
        full_step(e, [toy_batch(model, seed=step)])
        e.step()
    with torch.no_grad():
        assert not torch.allclose(e.forward(batch).logits_NV, start, atol=1e-3)
    assert torch.equal(e.reference(batch).logits_NV, start)
    assert all(p.requires_grad for p in e._named.values())


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        model, e = build(checkpointing=checkpointing)
        full_step(e, [toy_batch(model)])
        grads.append({u.name: e.gradients().full(u) for u in e.weights.units()})
        if checkpointing:
            assert any(m.training for m in model.modules())
            assert not any(m.training for n, m in model.named_modules() if n.endswith("self_attn"))
    for name, roles in grads[0].items():
        for role, value in roles.items():
            assert torch.allclose(value, grads[1][name][role], atol=1e-6)


def test_bf16_base_trains_fp32_tensors_and_moves_the_projector():
    """More than 99 % of projector entries have moved after 20 steps at learning rate 2e-5 on a bf16 base."""
    optim = OptimConfig(lr=2e-4, lr_projector=2e-5, schedule="constant", warmup=0)
    model, e = build(optim=optim, steps=20, model=tiny_model(dtype="bf16"), bf16=True)
    assert {p.dtype for p in e._named.values()} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.bfloat16
    before = values(e)
    for step in range(20):
        full_step(e, [toy_batch(model, seed=step)])
        e.step()
    after = values(e)
    moved = torch.cat([(after[n] != before[n]).flatten() for n in before if "projector" in n])
    assert moved.float().mean() > 0.99


def test_moments_of_a_tensor_of_another_shape_are_refused():
    model, engine = build()
    full_step(engine, [toy_batch(model)])
    engine.step()
    left = engine.moments()
    name = next(iter(left.tensors))
    left.tensors[name]["exp_avg"] = torch.zeros(3)
    with pytest.raises(StateError, match="another shape"):
        build()[1].take_over(left)
