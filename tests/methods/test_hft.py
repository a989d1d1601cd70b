"""HFT on the tiny model: frozen values stay bit for bit, on every adapter kind, after a resume, on sharded weights.

One decoder block of the tiny model: Q, O 64 x 64; K, V 32 x 64; gate, up, down 128 x 64; two norms of 64.
"""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mcit.core.errors import PlanError, StateError, TrainingError
from mcit.core.files import read_json
from mcit.core.schema import AdapterConfig, OptimConfig
from mcit.core.tensorfile import load_tensors
from mcit.core.types import WeightUnit
from mcit.engine.plain import EngineSpec, PlainEngine
from mcit.evals import continual
from mcit.methods.compose import MethodSet
from mcit.methods.formulas.halves import part_name
from mcit.methods.hft import HFT
from mcit.models import adapters
from mcit.models.load import load_base
from mcit.plan.selection import Names
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.models import tiny_model
from tests.fakes.settings import shipped_config
from tests.fakes.sharded import ShardedEngine

NONE = {"kind": "none", "also_train": ["projector", "embeddings", "head"]}
LORA = {"rank": 4, "alpha": 8, "also_train": ["projector"]}
OPTIM = {"batch": 8, "lr": 1e-2, "lr_projector": 1e-3, "warmup": 0, "weight_decay": 0.1}


def plan_with(*others, adapter, **settings):
    methods = [{"name": "hft", **settings}, *({"name": n} for n in others)]
    return plan_of(defaults={"methods": methods, "adapter": adapter, "optim": OPTIM, "max_steps": 2})


def log_of(folder):
    return read_json(folder / "methods" / "hft" / "state.json")["state"]["log"]


def parameters(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def tiny_names(adapter=None, *, stage_seed=7, index=1):
    """Candidates of a stage on the tiny model, and the context that a draw gets."""
    model = tiny_model()
    config = AdapterConfig(**(adapter or NONE))
    if config.kind == "lora":
        adapters.add_lora(model, config, seed=1)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    stage = SimpleNamespace(index=index, name=f"s{index}")
    return adapters.candidates(model, config), Names(stage, stage_seed, shapes)


def after(method, chosen, ctx):
    """What on_stage_start does at the start of a stage that trains `chosen`."""
    units = [WeightUnit(n, "tensor", {"weight": n}, ctx.shapes[n]) for n in sorted(chosen)]
    method.on_stage_start(SimpleNamespace(stage=ctx.stage, weights=SimpleNamespace(units=lambda kind=None: units)))


# ---- frozen tensors -------------------------------------------------------------------------------------------------
def test_full_fine_tuning_beside_a_penalty_freezes_half_of_the_decoder_exactly(tmp_path):
    """HFT + L2, weight decay 0.1: frozen tensors equal the base bit for bit, trained ones differ, and Adam holds
    moments of the trained ones alone. A block of the tiny model has 12,288 + 24,576 + 128 = 36,992 numbers, 2 blocks 73,984,
    half 36,992. Cut in the middle of the stage, it goes on bitwise."""
    plan = plan_with("l2", adapter=NONE)
    base = parameters(load_base(plan.model_path, dtype="fp32"))
    straight = run_plan(plan, tmp_path / "straight", only=1)
    resumed = run_plan(plan, tmp_path / "resumed", only=1, stop_at=(1, 1))
    assert tensors_of(straight) == tensors_of(resumed)
    folder = tmp_path / "resumed" / plan.stages[0].folder
    (entry,) = log_of(folder)
    trained = set(entry["trained"])
    final = parameters(resumed["model"])
    assert set(final) == set(base)
    for name, value in final.items():
        assert torch.equal(value, base[name]) == (name not in trained), name
    in_blocks = sum(base[n].numel() for n in trained if ".language_model.layers." in n)
    assert in_blocks == 36_992 and {"model.language_model.norm.weight", "lm_head.weight"} < trained
    moments = load_tensors(tmp_path / "resumed" / "draft-1" / "live" / "optimizer.safetensors")
    assert {key.split("|")[1] for key in moments} == trained
    assert set(load_tensors(folder / "weights" / "model.safetensors")) == trained


@pytest.mark.parametrize("carry", ["merge", "keep"])
def test_lora_pairs_are_frozen_whole(carry, tmp_path):
    """Of 14 pairs 7 train: 2 + 2 of attention, 2 + 1 of the FFN. After a merge the matrices of the others equal the base
    bit for bit; under keep the frozen pairs of stage 2 equal what stage 1 left."""
    plan = plan_with(adapter={**LORA, "carry": carry})
    base = parameters(load_base(plan.model_path, dtype="fp32"))
    result = run_plan(plan, tmp_path, only=1 if carry == "merge" else None)
    folders = [tmp_path / s.folder for s in plan.stages]
    files = [load_tensors(f / "adapter" / "adapter_model.safetensors") for f in folders if f.exists()]
    entry = log_of(folders[len(files) - 1])[-1]
    pairs = {}
    for name in entry["trained"]:
        if ".lora_" in name:
            pairs.setdefault(part_name(name), set()).add(name.split(".lora_")[1][0])
    assert len(pairs) == 7 and all(roles == {"A", "B"} for roles in pairs.values())
    if carry == "merge":
        for name, value in parameters(result["model"]).items():
            if ".language_model.layers." in name:
                assert torch.equal(value, base[name]) == (part_name(name) not in pairs), name
    else:
        first, second = files
        moved = {k.split(".lora_")[0] for k in second if ".lora_" in k and not torch.equal(first[k], second[k])}
        assert {m.removeprefix("base_model.model.") for m in moved} == set(pairs)


@pytest.mark.parametrize("selection", ["row", "element"])
def test_entries_keep_their_bits_and_the_complement_trains_next(selection, tmp_path):
    """Half of the rows of each matrix (32 of 64), or about half of the entries: those frozen in stage 1 equal the base,
    those frozen in stage 2 are the others and equal stage 1. Resumed and sharded runs are the same bitwise."""
    plan = plan_with(adapter={"kind": "none", "also_train": ["projector"]}, selection=selection, schedule="complement")
    base = parameters(load_base(plan.model_path, dtype="fp32"))
    straight = run_plan(plan, tmp_path / "a", stop_at=(2, 1))
    sharded = run_plan(plan, tmp_path / "b", engine=ShardedEngine)
    assert tensors_of(straight) == tensors_of(sharded)
    weights, masks = [], []
    for stage in plan.stages:
        home = tmp_path / "a" / stage.folder
        weights.append(load_tensors(home / "weights" / "model.safetensors"))
        masks.append(load_tensors(home / "methods" / "hft" / "tensors.safetensors"))
    assert len(masks[0]) == 18
    for key, frozen in masks[0].items():
        name = key.split("|")[1]
        first, second = weights[0][name], weights[1][name]
        assert torch.equal(masks[1][key], ~frozen)
        assert torch.equal(first[frozen], base[name][frozen]) and torch.equal(second[~frozen], first[~frozen])
        assert not torch.equal(first[~frozen], base[name][~frozen]) and not torch.equal(second[frozen], first[frozen])
        if selection == "row":
            assert frozen.shape == first.shape[:1] and frozen.sum() * 2 == len(frozen)


class One(nn.Module):
    """One matrix with one entry."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))


@pytest.mark.parametrize("momentum, moved", [(None, 0.999), ((0.1, 0.01), 1 - 0.001 - 0.0090)])
def test_a_gradient_mask_alone_is_not_freezing(momentum, moved):
    """AdamW, p = 1, g = 0, lr 0.01, decay 0.1: decay alone moves p to 1 - 0.01 * 0.1 = 0.999. With stale moments m 0.1,
    v 0.01, late in training: m' 0.09, v' 0.00999, a step of -0.01 * 0.09 / 0.09995 = -0.0090 more. HFT leaves 1.0."""
    for frozen in (False, True):
        model = One()
        unit = WeightUnit("weight", "tensor", {"weight": "weight"}, (1, 1))
        optim = OptimConfig(lr=0.01, weight_decay=0.1, schedule="constant", warmup=0)
        engine = PlainEngine(model, EngineSpec([unit], optim, 10))
        if momentum:
            m, v = momentum
            engine._optimizer.state[model.weight] = {
                "step": torch.tensor(100_000.0),
                "exp_avg": torch.full((1, 1), m),
                "exp_avg_sq": torch.full((1, 1), v),
            }
        grads = engine.gradients()
        if frozen:
            model.weight.grad = torch.full((1, 1), 5.0)
            method = HFT(HFT.Config(selection="row"))
            method.tensors.put("frozen", "weight", torch.tensor([True]))
            method.before_step(grads, SimpleNamespace())
            assert float(model.weight.grad) == 0.0
        else:
            grads.replace(unit, "weight", torch.zeros(1, 1))
        engine.step()
        assert model.weight.item() == (1.0 if frozen else pytest.approx(moved, abs=2e-5))


class Values:
    """Matrices of ones by name; the block is what comes before the last two parts."""

    def __init__(self, *names, shape=(4, 2)):
        self.values = {name: torch.ones(shape) for name in names}

    def units(self, kind=None):
        return [
            WeightUnit(n, "tensor", {"weight": n}, tuple(v.shape), block=n.rpartition(".")[0].rpartition(".")[0])
            for n, v in self.values.items()
        ]

    def gathered(self, unit):
        return contextlib.nullcontext({"weight": self.values[unit.name].clone()})


def started(method, weights, *, index=1, seed=1):
    ctx = SimpleNamespace(stage=SimpleNamespace(index=index, name=f"s{index}"), seed=seed, weights=weights)
    method.on_stage_start(ctx)
    return ctx


def masks_of(method):
    return {name: method.tensors.get("frozen", name).tolist() for name in method.tensors.names("frozen")}


@pytest.mark.parametrize("selection", ["row", "element"])
def test_masks_are_of_the_longest_list_of_blocks(selection):
    """Two decoder blocks against one block of a projector and a matrix in no block: those train whole and may change."""
    decoder = ["m.layers.0.q.weight", "m.layers.1.q.weight"]
    weights = Values("a.blocks.0.q.weight", *decoder, "norm.inner.weight")
    method = HFT(HFT.Config(selection=selection))
    ctx = started(method, weights)
    assert sorted(masks_of(method)) == decoder == sorted(method.state_dict()["digests"])
    for name in ("a.blocks.0.q.weight", "norm.inner.weight"):
        weights.values[name].zero_()
    method.on_stage_end(ctx)
    shape = (4,) if selection == "row" else (4, 2)
    assert all(tuple(method.tensors.get("frozen", n).shape) == shape for n in decoder)


@pytest.mark.parametrize("selection", ["row", "element"])
def test_masks_follow_the_schedule(selection):
    """Stage 2, with another seed: another draw, the opposite, or the same; of 64 x 8 entries no two draws agree."""
    after = {}
    for schedule in ("independent", "complement", "fixed"):
        method = HFT(HFT.Config(selection=selection, schedule=schedule))
        weights = Values("m.layers.0.q.weight", shape=(64, 8))
        started(method, weights)
        first = method.tensors.get("frozen", "m.layers.0.q.weight").clone()
        started(method, weights, index=2, seed=2)
        after[schedule] = first, method.tensors.get("frozen", "m.layers.0.q.weight")
    assert torch.equal(*after["fixed"]) and torch.equal(after["complement"][0], ~after["complement"][1])
    assert not torch.equal(*after["independent"])
    assert not torch.equal(after["independent"][0], ~after["independent"][1])


def test_a_stage_that_starts_again_replaces_its_entry_in_the_log():
    method = HFT(HFT.Config())
    for index in (1, 2, 2):
        started(method, Values("m.layers.0.q.weight"), index=index)
    assert [entry["stage"] for entry in method.state_dict()["log"]] == [1, 2]


def test_an_entry_that_moved_is_found_at_stage_end():
    method = HFT(HFT.Config(selection="row"))
    unit = WeightUnit("m.layers.0.q.weight", "tensor", {"weight": "m.layers.0.q.weight"}, (4, 2), block="m.layers.0")
    value = torch.zeros(4, 2)

    class Weights:
        def units(self, kind=None):
            return [unit]

        def gathered(self, unit):
            return contextlib.nullcontext({"weight": value.clone()})

    ctx = SimpleNamespace(stage=SimpleNamespace(index=1, name="s"), seed=1, weights=Weights())
    method.on_stage_start(ctx)
    frozen = method.tensors.get("frozen", unit.name)
    value[~frozen] = 1.0
    method.on_stage_end(ctx)
    value[frozen] = 1e-7
    with pytest.raises(TrainingError, match="frozen entries"):
        method.on_stage_end(ctx)


# ---- draws and schedules --------------------------------------------------------------------------------------------
def test_schedules():
    """Independent: another draw in the next stage. Complement: of 18 decoder parts stage 2 trains the 9 that stage 1
    froze, none is untouched after two. Fixed: the same."""
    names, ctx = tiny_names()
    _, later = tiny_names(stage_seed=8, index=2)
    chosen = {}
    for schedule in ("independent", "complement", "fixed"):
        method = HFT(HFT.Config(schedule=schedule))
        first = method.select_trainable(names, ctx)
        assert first == HFT(HFT.Config()).select_trainable(names, ctx)
        after(method, first, ctx)
        again = HFT(HFT.Config(schedule=schedule))
        again.load_state_dict(json.loads(json.dumps(method.state_dict())))
        second = again.select_trainable(names, later)
        chosen[schedule] = ({part_name(n) for n in first}, {part_name(n) for n in second})
        after(again, second, later)
        if schedule == "complement":
            assert again.select_trainable(names, tiny_names(index=3)[1]) == first
        if schedule == "independent":
            fixed = HFT(HFT.Config(schedule="fixed"))
            fixed.load_state_dict(again.state_dict())
            assert fixed.select_trainable(names, tiny_names(stage_seed=9, index=3)[1]) == first
    everything = {part_name(n) for n in names}
    outside = {n for n in everything if ".language_model.layers." not in n}
    first, second = chosen["complement"]
    assert first | second == everything and first & second == outside and len(first - outside) == 9
    assert chosen["fixed"][0] == chosen["fixed"][1]
    assert chosen["independent"][0] != chosen["independent"][1]


@pytest.mark.parametrize("selection", ["category", "layer", "model"])
def test_a_draw_again_is_the_same_and_trains_what_is_outside_the_decoder(selection):
    """With a tied head there is one tensor for both, so ``model`` draws it once: in or out, both seen in 20 draws."""
    names, ctx = tiny_names()
    method = HFT(HFT.Config(selection=selection))
    assert method.select_trainable(names, ctx) == method.select_trainable(names, ctx) < names
    projector = {n for n in names if "projector" in n}
    assert projector < method.select_trainable(names, ctx)
    tied = {n: s for n, s in ctx.shapes.items() if n != "lm_head.weight"}
    seen = set()
    for seed in range(20):
        chosen = method.select_trainable(names & set(tied), Names(ctx.stage, seed, tied))
        seen.add("model.language_model.embed_tokens.weight" in chosen)
        assert projector < chosen
    assert seen == ({True, False} if selection == "model" else {True})


def test_a_schedule_follows_earlier_stages_alone():
    """The log has stages 1 and 2. Stage 2, begun again, trains what 1 froze; stage 1, begun again, draws anew."""
    names, first = tiny_names()
    _, second = tiny_names(stage_seed=8, index=2)
    method = HFT(HFT.Config(schedule="complement"))
    drawn = method.select_trainable(names, first)
    after(method, drawn, first)
    after(method, method.select_trainable(names, second), second)
    assert [entry["stage"] for entry in method.state_dict()["log"]] == [1, 2]
    again = method.select_trainable(names, second)
    everything, outside = {part_name(n) for n in names}, {n for n in names if ".language_model.layers." not in n}
    assert {part_name(n) for n in again} == everything - {part_name(n) for n in drawn - outside}
    assert method.select_trainable(names, first) == drawn


def test_a_schedule_that_leaves_nothing_is_refused():
    """One pair: stage 1 trains it, its complement is nothing."""
    names, ctx = tiny_names(LORA)
    one = frozenset(n for n in names if "layers.0.self_attn.q_proj" in n)
    method = HFT(HFT.Config(schedule="complement"))
    assert method.select_trainable(one, ctx) == one
    after(method, one, ctx)
    with pytest.raises(PlanError, match="leaves no part"):
        method.select_trainable(one, tiny_names(LORA, index=2)[1])
    with pytest.raises(PlanError, match="no decoder blocks"):
        method.select_trainable(frozenset(n for n in names if "projector" in n), ctx)


def test_a_changed_log_is_refused():
    names, ctx = tiny_names()
    method = HFT(HFT.Config())
    after(method, method.select_trainable(names, ctx), ctx)
    state = json.loads(json.dumps(method.state_dict()))
    state["log"][0]["trained"].pop()
    with pytest.raises(StateError, match="sha256"):
        HFT(HFT.Config()).load_state_dict(state)


# ---- plan -----------------------------------------------------------------------------------------------------------
def test_estimate_of_the_masks_by_hand():
    """3 x 2 and 5 numbers: a byte for each of 3 + 5 rows or of 6 + 5 entries; whole tensors have no masks."""
    sizes = {"row": 8, "element": 11, "category": 0, "layer": 0, "model": 0}
    for selection, size in sizes.items():
        assert HFT(HFT.Config(selection=selection)).state_bytes({"a": (3, 2), "b": (5,)}, stages=2) == size


def test_naming_it_alone_is_using_the_shipped_settings():
    """``{name: hft}`` and ``{use: hft}`` in a config are the same run."""
    assert HFT.Config() == shipped_config(HFT)


def test_notes_say_what_is_frozen_and_hooks_follow_the_settings():
    plan = plan_with("l2", adapter={"kind": "none"})
    assert any("the paper also trains embeddings" in n for n in plan.notes)
    assert any("l2: half of the decoder is frozen by hft" in n for n in plan.notes)
    for selection, used in (("category", False), ("row", True)):
        method = HFT(HFT.Config(selection=selection))
        assert method.overrides("before_step") is used
        assert MethodSet([method]).order("before_step") == ([method] if used else [])


def test_overall_performance_and_backward_transfer_by_hand():
    """R = [[50], [40, 60], [35, 55, 70]]: OP (35 + 55 + 70)/3 = 53.333; BWT (-15 - 5 + 0)/3 = -6.667, over t - 1: -10."""
    found = continual.metrics(continual.ScoreMatrix.of([[50], [40, 60], [35, 55, 70]]))
    assert found["mfn"] == pytest.approx(53.333, abs=1e-3)
    assert found["bwt_all"] == pytest.approx(-6.667, abs=1e-3) and found["bwt_earlier"] == pytest.approx(-10.0)
