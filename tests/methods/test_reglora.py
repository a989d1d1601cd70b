import contextlib
from types import SimpleNamespace

import pytest
import torch

from mcit.core.config import parse
from mcit.core.errors import PlanError, StateError
from mcit.core.schema import AdapterConfig, OptimConfig, RunConfig
from mcit.core.types import MethodSpec, Plan, Stage, WeightUnit
from mcit.methods.check import check_stage
from mcit.methods.formulas.lowrank import pack_keys, unpack_keys
from mcit.methods.reglora import RegLoRA
from mcit.models import adapters
from mcit.models.adapterfile import AdapterFile, LoraPair
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import context, unit

A, B = torch.tensor([[1.0, -2, 0.5], [0, 1, 2]]), torch.tensor([[2.0, 1], [-1, 3]])
SHAPE = (2, 3)


def method(**settings):
    return RegLoRA(RegLoRA.Config(**settings))


def with_keys(positions=(1, 5), *, units=("m",), **settings):
    made = method(**settings)
    for name in units:
        made.tensors.put("keys", name, pack_keys(torch.tensor(positions), shape=SHAPE))
    return made


def stage_context(updates, **settings):
    """A stage context whose LoRA units hold the given (A, B) by name."""

    def units(kind=None):
        return [unit(name, shape=(len(b), a.shape[1])) for name, (a, b) in updates.items()]

    def gathered(one):
        a, b = updates[one.name]
        return contextlib.nullcontext({"A": a, "B": b})

    made = context(**settings)
    made.weights = SimpleNamespace(units=units, gathered=gathered)
    return made


def kept(reglora, name="m", shape=SHAPE):
    return unpack_keys(reglora.tensors.get("keys", name), shape=shape).tolist()


def test_penalty_by_hand():
    """O3 at weight 2: keys (0,1), (1,2) of [[2,-3,3],[-1,5,5.5]] mean (3 + 5.5) / 2 = 4.25, so 8.5 with one unit and 4.25
    with two; the LoRA scale 2 does not enter, with `scaled` it does: 17."""
    tensors, scaled_unit = {"A": A, "B": B}, unit(scale=2.0)
    assert with_keys(weight=2).weight_penalty(scaled_unit, tensors, context()).item() == 8.5
    assert with_keys(weight=2).weight_penalty(scaled_unit, tensors, context(num_units=2)).item() == 4.25
    assert with_keys(weight=2, scaled=True).weight_penalty(scaled_unit, tensors, context()).item() == 17.0


def test_gradients_by_hand():
    """O4 at weight 1: dB = [[1,-0.5],[0.25,1]], dA = [[0,-1,-0.5],[0,-0.5,1.5]]; weight 3 over 2 units is 1.5 times that."""
    tensors = {"A": A.clone().requires_grad_(), "B": B.clone().requires_grad_()}
    with_keys(weight=3).weight_penalty(unit(), tensors, context(num_units=2)).backward()
    assert tensors["B"].grad.tolist() == [[1.5, -0.75], [0.375, 1.5]]
    assert tensors["A"].grad.tolist() == [[0, -1.5, -0.75], [0, -0.75, 2.25]]


def test_mean_over_the_units_of_the_stage_by_hand():
    """O8: 14 matrices whose keys mean 0.5 give 2500 * 0.5 = 1250 (a fixed 224 would give 78.125); 4.25 * 2 / 17 = 0.5."""
    names = [f"m{i}" for i in range(14)]
    reglora = with_keys(units=names)
    tensors = {"A": A, "B": B * 2 / 17}
    total = sum(reglora.weight_penalty(unit(n), tensors, context(num_units=14)).item() for n in names)
    assert total == pytest.approx(1250)


def test_default_weight_by_hand():
    """O9: cross-entropy 1.2 and a mean over matrices of 4e-4 make 1.2 + 2500 * 4e-4 = 2.2."""
    tensors = {"A": A, "B": B * (4e-4 / 4.25)}
    assert 1.2 + with_keys().weight_penalty(unit(), tensors, context()).item() == pytest.approx(2.2)


def test_ranks_that_share_the_units_get_the_same_by_hand():
    """O13: m0 means 4, m1 means 2. Over both (4 + 2) / 2 = 3; rank 0 with 2 * m0 / 2 = 4 and rank 1 with 2 average to 3."""
    reglora = with_keys(units=("m0", "m1"), weight=1)
    sizes = {"m0": 4 / 4.25, "m1": 2 / 4.25}
    both = context(num_units=2)
    value = {n: reglora.weight_penalty(unit(n), {"A": A, "B": B * f}, both).item() for n, f in sizes.items()}
    assert value["m0"] + value["m1"] == pytest.approx(3)
    assert (2 * value["m0"] + 2 * value["m1"]) / 2 == pytest.approx(3)


def test_nothing_in_the_first_stage_for_a_plain_tensor_or_at_weight_zero():
    tensors = {"A": A, "B": B}
    assert method().weight_penalty(unit(), tensors, context(index=1)) is None
    assert with_keys(weight=0).weight_penalty(unit(), tensors, context()) is None
    assert with_keys().weight_penalty(unit("added later"), tensors, context()) is None
    plain = WeightUnit("m", "tensor", {"weight": "m"}, SHAPE)
    assert with_keys().weight_penalty(plain, {"weight": A}, context()) is None


def test_stage_end_records_the_largest_entries_by_hand():
    """O2: 0.34 of 6 entries is 2, (1,1) and (1,2), flat 4 and 5; 0.02 of 6 is none, so the one largest, flat 5."""
    first = method(keep=0.34)
    first.on_stage_end(stage_context({"m": (A, B)}))
    assert kept(first) == [4, 5] and first.state_dict() == {"shapes": {"m": [2, 3]}}
    least = method()
    least.on_stage_end(stage_context({"m": (A, B)}))
    assert kept(least) == [5]


@pytest.mark.parametrize(("repeats", "keys", "penalty"), [(False, [1, 4, 5], 4.5), (True, [1, 4, 4, 5], 4.625)])
def test_stages_are_united_or_counted_by_hand(repeats, keys, penalty):
    """Stage 1 chooses {4, 5}; stage 2, whose update is [[2,-3,2],[-1,3,2]], chooses {1, 4}.
    On B A: united (3 + 5 + 5.5) / 3 = 4.5; counted (3 + 5 + 5 + 5.5) / 4 = 4.625."""
    reglora = method(keep=0.34, count_repeats=repeats, weight=1)
    reglora.on_stage_end(stage_context({"m": (A, B)}))
    A2, B2 = torch.tensor([[1.0, -2, 0], [0, 1, 2]]), torch.tensor([[2.0, 1], [-1, 1]])
    assert (B2 @ A2).tolist() == [[2, -3, 2], [-1, 3, 2]]
    reglora.on_stage_end(stage_context({"m": (A2, B2)}))
    assert kept(reglora) == keys
    assert reglora.weight_penalty(unit(), {"A": A, "B": B}, context()).item() == pytest.approx(penalty)


def test_an_update_of_zero_has_no_keys():
    reglora = method()
    reglora.on_stage_end(stage_context({"m": (A, torch.zeros(2, 2)), "n": (A, B)}))
    assert reglora.tensors.names("keys") == ["n"] and reglora.state_dict() == {"shapes": {"n": [2, 3]}}


def test_merged_weight_by_hand():
    """O11: onto zeros with scale 2 the update becomes [[4,-6,6],[-2,10,11]], and answers stay those of the live pair."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
    adapters.merge(model, AdapterFile({"0": LoraPair(A, B, 2.0)}))
    assert model[0].weight.tolist() == [[4, -6, 6], [-2, 10, 11]]
    x = torch.tensor([[1.0, -3, 2], [0, 5, -1]])
    assert torch.equal(model(x), 2 * (x @ A.T) @ B.T)


def names_context(units, *, shape=SHAPE):
    shapes = {}
    for name in units:
        shapes[f"{name}.lora_A.default.weight"] = (2, shape[1])
        shapes[f"{name}.lora_B.default.weight"] = (shape[0], 2)
    shapes["projector.weight"] = (4, 4)
    return frozenset(shapes), SimpleNamespace(stage=SimpleNamespace(name="second"), shapes=shapes)


def test_state_of_another_adapter_is_refused_before_training():
    reglora = method()
    assert reglora.select_trainable(*names_context([])) == frozenset({"projector.weight"})
    reglora.on_stage_end(stage_context({"m": (A, B)}))
    names, ctx = names_context(["m", "added"])
    assert reglora.select_trainable(names, ctx) == names
    with pytest.raises(StateError, match="'m' of shape .2, 3., which is not adapted"):
        reglora.select_trainable(*names_context(["other"]))
    for shape in ((2, 4), (3, 3)):
        with pytest.raises(StateError, match="'m' of shape .2, 3., which is"):
            reglora.select_trainable(*names_context(["m"], shape=shape))
    again = method()
    again.load_state_dict(reglora.state_dict())
    with pytest.raises(StateError, match="not adapted"):
        again.select_trainable(*names_context(["other"]))


def test_half_a_pair_is_refused_before_training():
    ctx = stage_context({"m": (A, B)})
    method().on_stage_start(ctx)
    ctx.weights.units = lambda kind=None: [WeightUnit("m", "lora", {"B": "m.lora_B"}, ())]
    with pytest.raises(PlanError, match="'m' trains only B"):
        method().on_stage_start(ctx)


@pytest.mark.parametrize("keep", [0, -0.1, 1.5])
def test_shares_outside_0_to_1_are_refused(keep):
    _, problems = parse(RegLoRA.Config, {"keep": keep})
    assert [p.where for p in problems] == ["keep"]


@pytest.mark.parametrize("adapter", [{"carry": "stack"}, {"carry": "keep"}, {"kind": "none"}])
def test_another_carry_or_no_adapter_is_refused_by_the_plan(adapter):
    config, _ = parse(RunConfig, {"name": "x", "stages": [{"recipe": "r"}]})
    specs = (MethodSpec("reglora", RegLoRA.Config()),)
    stage = Stage(1, "s", (), specs, AdapterConfig(**adapter), OptimConfig(), 1, 1, 8, 0)
    problems = check_stage(stage, Plan(config, (stage,), (), None, "d"), where="stages[0]")
    assert any("needs carry:merge, but adapter.carry is" in p.what and "carry: merge" in p.fix for p in problems)


def test_the_first_stage_trains_as_without_it_and_leaves_keys(tmp_path):
    """The first stage has no keys: its delta is that of plain LoRA bit for bit."""
    plan = plan_of(defaults={"methods": [{"name": "reglora"}]})
    listed = tensors_of(run_plan(plan, tmp_path / "with", only=1))
    without = tensors_of(run_plan(plan_of(), tmp_path / "without", only=1))
    (files,), (plain,) = listed.values(), without.values()
    assert {f: sha for f, sha in files.items() if "methods/" not in f} == plain
    assert "methods/reglora/tensors.safetensors" in files


def test_estimate_of_the_keys_by_hand():
    """B 20 x 4 and A 4 x 80: 2 % of 1,600 are 32 positions of 4 bytes per stage, or 20 x 10 bytes of bits.

    One stage: 128. Two: 256, more than 200. Counted, two stages take 2 planes (400, more than 256), eight take 4 (800, less
    than 1,024). A second pair, 10 x 4 and 4 x 10: 2 positions, 8 bytes. A projector has no keys.
    """
    one = {"m.lora_B.default.weight": (20, 4), "m.lora_A.default.weight": (4, 80), "projector.weight": (9, 9)}
    two = {**one, "n.lora_A.default.weight": (4, 10), "n.lora_B.default.weight": (10, 4)}
    sets, counted = method(), method(count_repeats=True)
    assert [sets.state_bytes(one, stages=n) for n in (1, 2)] == [128, 200]
    assert [counted.state_bytes(one, stages=n) for n in (1, 2, 8)] == [128, 256, 800]
    assert sets.state_bytes(two, stages=1) == 136 and sets.state_bytes({"projector.weight": (9, 9)}, stages=1) == 0


def test_naming_it_alone_is_using_the_shipped_settings():
    """``{name: reglora}`` and ``{use: reglora}`` in a config are the same run, at the values of the authors' code."""
    assert RegLoRA.Config() == shipped_config(RegLoRA)
    assert refused(RegLoRA, weight=0.5, keep=1) == [] and refused(RegLoRA, weight=-0.5) == ["weight"]
