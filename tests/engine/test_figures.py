"""Steps whose figures wait on the device: nothing in between makes the host wait, and nothing that is not finite is kept."""

import math

import pytest
import torch

from mcit.core.errors import TrainingError
from mcit.core.schema import OptimConfig
from mcit.engine.base import EngineSpec
from mcit.engine.figures import read
from mcit.engine.plain import PlainEngine
from tests.fakes.device import device, moved
from tests.fakes.models import adapted, tiny_model
from tests.fakes.toy import toy_batch

OPTIM = OptimConfig(batch=4, lr=1e-2, lr_projector=1e-3, schedule="constant", warmup=0, clip=0.5)


def engine_of(model, *, read_every=1, optim=OPTIM):
    units = adapted(model)
    return PlainEngine(
        model, EngineSpec(units, optim, 10, is_projector=lambda n: "projector" in n, read_every=read_every)
    )


def launch(engine, batch):
    counts = engine.target_counts([batch])
    with engine.micro_batch(last=True):
        out = engine.forward(batch)
        engine.backward(out.nll_N.sum() / counts.of("task", "tokens"), batch)
    engine.step()


def weights(engine):
    return {n: p.detach().clone() for n, p in engine._named.items()}


@pytest.mark.parametrize("images", [True, False])
def test_between_two_reads_the_host_never_waits(images):
    """Forward, backward, clipping and update of a LLaVA on a device that counts; the reads themselves are one wait."""
    smooth = OPTIM.model_copy(
        update={"eps": 1e-2}
    )  # else Adam's first steps go by the sign of a gradient, however small
    model, plain = tiny_model(), tiny_model()
    batches = [toy_batch(plain, seed=seed, images=images) for seed in range(3)]
    reference = engine_of(plain, optim=smooth)
    reference.use_packs(batches[0])
    for batch in batches:
        launch(reference, batch)
    with device() as fake:
        engine = engine_of(model, read_every=3, optim=smooth)
        for name, parameter in moved(model).named_parameters():
            parameter.requires_grad_(name in engine._named)
        engine = PlainEngine(model, engine.spec)
        engine.use_packs(batches[0])
        assert not engine.notes
        fake.waits.clear()
        for batch in batches:
            launch(engine, batch)
        assert fake.waits == []
        found = engine.read()
        assert len(fake.waits) == 1
        values = {n: p.detach().inner for n, p in model.named_parameters()}
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in reference.read()], rel=1e-4)
    for name, value in weights(reference).items():
        torch.testing.assert_close(values[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_device_counts_what_makes_a_host_wait():
    """Without packs transformers reads masks, and a loop that asks for its loss reads that."""
    model = tiny_model()
    with device() as fake:
        units = adapted(model)
        for name, parameter in moved(model).named_parameters():
            parameter.requires_grad_(".lora_" in name)
        engine = PlainEngine(model, EngineSpec([u for u in units if u.kind == "lora"], OPTIM, 10, read_every=1))
        launch(engine, toy_batch(model))
        assert fake.waits.count("aten._local_scalar_dense.default") >= 1 and any("mask" in w for w in fake.waits)


def blind(monkeypatch):
    monkeypatch.setattr("mcit.engine.optim.FUSED", frozenset({"cpu"}))


def test_read_together_steps_give_the_same_bits(monkeypatch):
    blind(monkeypatch)
    found = {}
    for every in (1, 3):
        model = tiny_model()
        engine = engine_of(model, read_every=every)
        for seed in range(3):
            launch(engine, toy_batch(model, seed=seed))
        found[every] = engine.read(), weights(engine), engine.moments()
    assert found[1][0] == found[3][0] and len(found[1][0]) == 3
    assert all(torch.equal(found[1][1][n], value) for n, value in found[3][1].items())
    assert found[1][2].steps == found[3][2].steps


def test_a_bad_step_that_waits_changes_nothing_and_is_named(monkeypatch):
    blind(monkeypatch)
    model = tiny_model()
    engine = engine_of(model, read_every=4)
    batches = [toy_batch(model, seed=seed) for seed in range(3)]
    launch(engine, batches[0])
    before, moments = weights(engine), {k: v for k, v in engine.moments().tensors.items()}
    moments = {n: {k: t.clone() for k, t in held.items()} for n, held in moments.items()}
    batches[1].pixels["pixel_values"][2] = math.nan
    for batch in batches[1:]:
        launch(engine, batch)
    after, now = weights(engine), engine.moments()
    assert all(torch.equal(before[n], value) for n, value in after.items())
    assert set(now.steps.values()) == {1}
    assert all(torch.equal(moments[n][k], t) for n, held in now.tensors.items() for k, t in held.items())
    with pytest.raises(TrainingError, match=r"non-finite loss .*toy-0.*toy-3") as caught:
        engine.read()
    assert "step 2" in str(caught.value)


def test_scalars_are_read_together():
    assert read([{"a": torch.tensor(0.5), "b": 2}, {"a": torch.tensor(1.5, dtype=torch.float64)}]) == [
        {"a": 0.5, "b": 2.0},
        {"a": 1.5},
    ]
