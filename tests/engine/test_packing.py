"""A stage's passes over packs give the loss, outputs and gradients of padded rows; models that cannot are told apart."""

from dataclasses import replace

import pytest
import torch

from mcit.core.schema import OptimConfig
from mcit.engine.base import EngineSpec
from mcit.engine.packing import NAME, difference, refusal
from mcit.engine.plain import PlainEngine
from tests.fakes.models import adapted, off, tiny_model
from tests.fakes.packs import questions

OPTIM = OptimConfig(batch=4, lr=1e-2, schedule="constant", warmup=0)


def engine(*, packs, **spec):
    model = tiny_model()
    units = adapted(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    made = PlainEngine(model, EngineSpec(units, OPTIM, 10, is_projector=lambda n: "projector" in n, **spec))
    if packs:
        made.use_packs(questions(model, [1, 1]))
        assert made._packs and made._cut is not None and not made.notes
    return model, made


def gradients(made, batches, *, needs=frozenset(), weigh=None):
    counts = made.target_counts(batches)
    outs = []
    for i, batch in enumerate(batches):
        with made.micro_batch(last=i == len(batches) - 1):
            out = made.forward(batch, needs)
            nll = out.nll_N if weigh is None else out.nll_N * weigh(out)
            made.backward(nll.sum() / counts.of(batch.stream, "tokens"), batch)
            outs.append(out)
    return outs, torch.cat([t.flatten() for u in made.weights.units() for t in made.gradients().full(u).values()])


def text_rows(batch):
    """Its first rows without their pictures."""
    ids = batch.input_ids_BT.clone()
    ids[batch.image_BT] = 7
    rows = tuple(replace(row, images=()) for row in batch.rows)
    return replace(batch, rows=rows, input_ids_BT=ids, pixels={}, image_BT=None)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_padded_rows(checkpointing):
    """Pictures shared and not, text rows of unlike length, tokens weighted by row; two micro-batches of unlike counts."""
    found = []
    for packs in (False, True):
        model, made = engine(packs=packs, checkpointing=checkpointing)
        batches = [questions(model, [3, 1]), text_rows(questions(model, [4], seed=1, own=(3, 30, 12, 5)))]
        found.append(gradients(made, batches, weigh=lambda out: 1.0 + out.row_N))
    (padded, before), (packed, after) = found
    assert (before - after).norm() <= 1e-6 * before.norm()
    for one, other in zip(padded, packed, strict=True):
        assert torch.equal(one.targets_N, other.targets_N) and torch.equal(one.row_N, other.row_N)
        assert one.real_rows == other.real_rows
        assert torch.allclose(one.logits_NV, other.logits_NV, atol=1e-4)


def test_a_pack_runs_fewer_positions():
    """The tokens of the step are still those of rows."""
    counted = []
    for packs in (False, True):
        model, made = engine(packs=packs)
        seen = []
        handle = (
            model.get_decoder().layers[0].register_forward_hook(lambda m, a, out, seen=seen: seen.append(out.shape))
        )
        gradients(made, [questions(model, [3, 1])])
        handle.remove()
        made.step()
        counted.append((seen[-1].numel() // seen[-1][-1:].numel(), made.metrics()["tokens"]))
    assert counted[0][1] == counted[1][1] == 106
    assert counted[1][0] < 0.6 * counted[0][0]


def test_hidden_states_are_those_of_rows():
    """What methods claim: (B, T, D) of any layer, at real positions what padded rows have."""
    needs = frozenset({"hidden:last", "hidden:1"})
    states = []
    for packs in (False, True):
        model, made = engine(packs=packs)
        batch = questions(model, [3, 1])
        outs, _ = gradients(made, [batch], needs=needs)
        states.append({name: x[batch.attention_BT.bool()] for name, x in outs[0].hidden.items()})
    assert set(states[0]) == {"last", "1"}
    for name in states[0]:
        assert torch.allclose(states[0][name], states[1][name], atol=1e-5)


def test_a_pass_that_ends_early_has_the_same_states():
    states = []
    for packs in (False, True):
        model, made = engine(packs=packs)
        batch = replace(questions(model, [3, 1]), until="1")
        out = made.forward(batch, frozenset({"hidden:1"}))
        assert len(out.nll_N) == 0
        states.append(out.hidden["1"][batch.attention_BT.bool()])
    assert torch.allclose(*states, atol=1e-5)


def test_references_and_effective_gradients_are_those_of_padded_rows():
    found = []
    for packs in (False, True):
        model, made = engine(packs=packs, needs=frozenset({"reference:stage_start"}))
        made.spec = replace(made.spec, adapter_off=off(model))
        batch = questions(model, [3, 1])
        reference = made.reference(batch).nll_N
        with made.traced():
            gradients(made, [batch])
        unit = made.weights.units("lora")[0]
        found.append((reference, made.gradients().effective(unit)))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


def test_padded_rows_keep_their_bits():
    """The decoder's attention function on rows that are not packed is SDPA itself; after the stage it is so by name."""
    model, made = engine(packs=True)
    batch = questions(model, [1])
    out = made.forward(batch).logits_NV
    assert model.get_decoder().config._attn_implementation == NAME
    made.finish()
    assert model.get_decoder().config._attn_implementation == "sdpa"
    _, plain = engine(packs=False)
    assert torch.equal(out, plain.forward(batch).logits_NV)


def test_a_block_of_other_parts_is_packed_and_not_cut():
    """A second residual that only the block's own forward knows: outputs with the cut differ, without it they do not."""
    model = tiny_model()
    adapted(model)
    block = model.get_decoder().layers[-1]
    own = block.forward
    changed = block.forward = lambda hidden_states, **kwargs: own(hidden_states, **kwargs) + hidden_states
    made = PlainEngine(model, EngineSpec([], OPTIM, 10))
    made.use_packs(questions(model, [1, 1]))
    assert made._packs and made._cut is None and not made.notes and block.forward is changed


def test_a_model_that_answers_otherwise_is_left_alone(monkeypatch):
    """Positions that a model makes itself, for example: its own arange instead of the row's."""
    model = tiny_model()
    adapted(model)
    made = PlainEngine(model, EngineSpec([], OPTIM, 10))
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, position_ids=None, segments=None, ends=None, **k: forward(self, **k)
    )
    made.use_packs(questions(model, [1, 1]))
    assert not made._packs and "token losses would change" in made.notes[0]
    assert model.get_decoder().config._attn_implementation == "sdpa"


def test_a_model_that_cannot_take_a_pack_is_left_alone(monkeypatch):
    model = tiny_model()
    adapted(model)
    made = PlainEngine(model, EngineSpec([], OPTIM, 10))
    forward = type(model).forward

    def own(self, input_ids, attention_mask, logits_to_keep, use_cache, pixel_values):
        given = {"logits_to_keep": logits_to_keep, "use_cache": use_cache, "pixel_values": pixel_values}
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **given)

    monkeypatch.setattr(type(model), "forward", own)
    made.use_packs(questions(model, [1, 1]))
    assert not made._packs and "TypeError" in made.notes[0] and "position_ids" in made.notes[0]


@pytest.mark.parametrize(
    "change,reason",
    [
        ({}, ""),
        ({"rope_parameters": {"mrope_section": [1, 1, 2]}}, "three numbers"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "depend on the length"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "depend on the length"),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "depend on the length"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, ""),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of sliding_attention"),
        ({"layer_types": ["linear_attention"]}, "layers of linear_attention"),
        ({"sliding_window": 64}, "sliding window"),
        ({"cross_attention_layers": [1]}, "cross attention"),
        ({"_attn_implementation": "eager"}, "base.attention is eager"),
    ],
)
def test_what_a_config_says_is_enough_to_refuse(change, reason):
    model = tiny_model()
    for name, value in change.items():
        setattr(model.get_decoder().config, name, value)
    assert (reason in refusal(model)) if reason else refusal(model) == ""


def test_the_attention_that_a_model_will_be_loaded_with_counts():
    model = tiny_model()
    assert refusal(model, attention="sdpa") == ""
    assert refusal(model, attention="eager") == "base.attention is eager, and packs need sdpa"


def test_differences_are_named():
    model, made = engine(packs=False)
    with torch.no_grad():
        out = made.forward(questions(model, [2]))
    assert difference(out, out) == ""
    assert "other numbers" in difference(out, replace(out, nll_N=out.nll_N[:1]))
    assert "up to 0.5" in difference(out, replace(out, nll_N=out.nll_N + 0.5))
