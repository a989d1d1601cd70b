"""Layers by number, share, name and ``last``, against transformers' own hidden states; passes that end early."""

import dataclasses

import pytest
import torch

from mcit.core.errors import PlanError, TrainingError
from mcit.engine.forward import run_model, set_modes
from mcit.engine.layers import blocks_of, layer_of, layers_of
from tests.fakes.models import adapted, tiny_model
from tests.fakes.toy import toy_batch

CPU = torch.device("cpu")


@pytest.fixture
def model():
    model = tiny_model()
    adapted(model)
    return model.eval()


def own_states(model, batch):
    """What transformers calls hidden states 0 to depth; the last one is after the final norm."""
    with torch.no_grad():
        return model(
            input_ids=batch.input_ids_BT, attention_mask=batch.attention_BT, **batch.pixels, output_hidden_states=True
        ).hidden_states


def test_every_name_of_a_layer(model):
    batch = toy_batch(model)
    depth = len(blocks_of(model))
    assert depth == 2
    names = ["0", "1", "2", "0.5", "1.0", "last", "layers.0", "layers.1.mlp", "norm"]
    with torch.no_grad():
        out = run_model(model, batch, device=CPU, layers=names)
    theirs = own_states(model, batch)
    assert set(out.hidden) == set(names) and all(t.shape == (4, 30, 64) for t in out.hidden.values())
    assert torch.equal(out.hidden["0"], theirs[0]) and torch.equal(out.hidden["1"], theirs[1])
    assert torch.equal(out.hidden["last"], theirs[2]) and torch.equal(out.hidden["norm"], theirs[2])
    assert torch.equal(out.hidden["0.5"], out.hidden["1"]) and torch.equal(out.hidden["layers.0"], out.hidden["1"])
    assert torch.equal(out.hidden["1.0"], out.hidden["2"]) and not torch.equal(out.hidden["2"], theirs[2])
    assert torch.equal(out.hidden_BTD, out.hidden["last"])
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.get_decoder().modules()]
    run_model(model, batch, device=CPU, layers=names)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.get_decoder().modules()]


def test_what_was_not_claimed_is_named(model):
    out = run_model(model, toy_batch(model), device=CPU, layers={"1"})
    with pytest.raises(TrainingError, match=r"no hidden states of layer 'last'[\s\S]*claim needs hidden:last"):
        _ = out.hidden_BTD
    assert layers_of({"hidden:0.5", "adapter:lora"}) == {"0.5"}


@pytest.mark.parametrize(
    ("name", "message"), [("3", "no layer 3"), ("mlpp", "no module 'mlpp'"), ("mlp", "2 modules are named 'mlp'")]
)
def test_layers_that_are_none(model, name, message):
    with pytest.raises(PlanError, match=message):
        layer_of(model, name)


def test_a_pass_that_ends_early_gives_the_same_states_and_runs_no_later_block(model):
    batch = toy_batch(model)
    whole = run_model(model, batch, device=CPU, layers={"1", "layers.0.mlp", "last"})
    ran = []
    handle = blocks_of(model)[1].mlp.register_forward_hook(lambda *_: ran.append(1))
    short = run_model(model, dataclasses.replace(batch, until="0.5"), device=CPU, layers={"1", "layers.0.mlp", "last"})
    assert not ran and set(short.hidden) == {"1", "layers.0.mlp"}
    assert all(torch.equal(short.hidden[name], whole.hidden[name]) for name in short.hidden)
    assert short.logits_NV.shape == (0, whole.logits_NV.shape[1]) and len(short.nll_N) == len(short.targets_N) == 0
    run_model(model, batch, device=CPU)
    handle.remove()
    assert len(ran) == 1 and not any("forward" in vars(block) for block in blocks_of(model))


@pytest.mark.parametrize("until", ["", "1"])
def test_gradients_of_inner_states_with_and_without_checkpointing(until):
    found = []
    for checkpointing in (False, True):
        model = tiny_model()
        adapted(model)
        set_modes(model, checkpointing=checkpointing)
        batch = dataclasses.replace(toy_batch(model), until=until)
        out = run_model(model, batch, device=CPU, layers={"1", "layers.0.mlp"})
        (out.hidden["1"].pow(2).mean() + out.hidden["layers.0.mlp"].pow(2).mean() + out.nll_N.sum()).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and any(float(g.norm()) > 0 for g in found[0].values())
    assert all(torch.allclose(found[0][n], found[1][n], rtol=1e-5, atol=1e-8) for n in found[0])
    if until:
        assert not any("layers.1." in n and "language" in n and float(g.norm()) > 0 for n, g in found[0].items())
