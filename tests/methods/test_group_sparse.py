"""Group sparsity: norms, the proximal step and pruning by hand, zero groups in a run."""

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import torch

from mcit.core.schema import AdapterConfig
from mcit.core.types import WeightUnit
from mcit.methods.group_sparse import GroupSparse
from mcit.models import adapters
from mcit.models.adapterfile import AdapterFile, LoraPair, read_adapter
from mcit.models.load import load_base
from mcit.models.units import lora_targets
from tests.fakes.bench import tensors_of
from tests.fakes.forgetting import STAGES, step_context, trained
from tests.fakes.models import tiny_model
from tests.fakes.settings import refused, shipped_config
from tests.fakes.sharded import ShardedEngine

PROX = {"name": "group_sparse", "treatment": "proximal", "alpha": 1e4}
FORGET = {"name": "bounded_forget", "per_step": 4}


def method(**settings):
    return GroupSparse(GroupSparse.Config(**settings))


def block(name="layers.0", size=2):
    return WeightUnit(name, "block", {"a": f"{name}.a", "b": f"{name}.b"}, (size,), block=name)


def test_penalty_is_one_norm_per_block():
    """Oracles 1 and 5: norms 3, 4, 12 in a block: alpha 0.1 times 13, and gradient alpha theta / 13; by matrix 1.9."""
    tensors = {k: torch.tensor([v], requires_grad=True) for k, v in (("a", 3.0), ("b", 4.0), ("c", 12.0))}
    value = method(alpha=0.1).weight_penalty(block(), tensors, step_context())
    value.backward()
    assert value.item() == pytest.approx(1.3)
    assert [t.grad.item() for t in tensors.values()] == pytest.approx([0.3 / 13, 0.4 / 13, 1.2 / 13])
    assert method(alpha=0.1, groups="matrix").weight_penalty(block(), tensors, step_context()).item() == pytest.approx(
        1.9
    )


def test_penalty_waits_for_its_epoch():
    """Oracle 15: 480 rows in steps of 48: nothing in step 199, epoch 19; all of it in step 200, epoch 20."""
    given, tensors = method(alpha=0.01, alpha_epoch=20), {"a": torch.tensor([2.0])}
    assert given.weight_penalty(block(), tensors, step_context(step=199)) is None
    assert given.weight_penalty(block(), tensors, step_context(step=200)).item() == pytest.approx(0.02)


def test_units_asked_for():
    assert method().penalty_kinds == {"block"} and method(groups="pair").penalty_kinds == {"lora"}
    assert method(treatment="proximal").penalty_kinds == method(alpha=0).penalty_kinds == frozenset()


class FakeWeights:
    """Units with tensors that hooks may edit."""

    def __init__(self, **values):
        self.values = {name: {"a": torch.tensor(v)} for name, v in values.items()}
        self.forgotten = []

    def units(self, kind):
        return [block(name, size=t["a"].numel()) for name, t in self.values.items()] if kind == "block" else []

    @contextlib.contextmanager
    def edit(self, unit):
        yield self.values[unit.name]

    def forget_moments(self, unit):
        self.forgotten.append(unit.name)


def test_proximal_step_on_groups():
    """Oracle 6 at lr 0.1: (3, 4) at alpha 10 becomes (2.4, 3.2); a group of norm 1 becomes 0 for good, without moments."""
    given, ctx = method(treatment="proximal", alpha=10.0), step_context()
    ctx.weights = weights = FakeWeights(x=[3.0, 4.0], y=[0.6, -0.8])
    given.after_step(ctx)
    assert weights.values["x"]["a"].tolist() == pytest.approx([2.4, 3.2])
    assert weights.values["y"]["a"].tolist() == [0, 0] and weights.forgotten == ["y"]
    assert ctx.logged == {"penalty/group_sparse": pytest.approx(60), "group_sparse/zero_groups": 1}
    weights.values["y"]["a"].fill_(3.0)  # somebody else moved it
    given.after_step(ctx)
    assert weights.values["y"]["a"].tolist() == [0, 0] and weights.forgotten == ["y"]


def test_proximal_step_waits_and_weighs():
    """Sizes 1 and 3: the threshold 1 becomes sqrt(1/2) and sqrt(3/2)."""
    given, ctx = method(treatment="proximal", alpha=10.0, alpha_epoch=1, size_weights=True), step_context(step=9)
    ctx.weights = weights = FakeWeights(x=[2.0], y=[2.0, 0, 0])
    given.after_step(ctx)
    assert weights.values["x"]["a"].tolist() == [2.0] and not ctx.logged
    ctx.step = 10
    given.after_step(ctx)
    assert weights.values["x"]["a"].item() == pytest.approx(2 - math.sqrt(0.5))
    assert weights.values["y"]["a"].tolist() == pytest.approx([2 - math.sqrt(1.5), 0, 0])


def test_a_learning_rate_of_zero_shrinks_nothing():
    """The first step of a warm-up: the threshold is 0, so the factor is 1 and no group counts as zero."""
    given, ctx = method(treatment="proximal", alpha=10.0), step_context()
    ctx.weights, ctx.lr = FakeWeights(x=[3.0, 4.0]), 0.0
    given.after_step(ctx)
    assert ctx.weights.values["x"]["a"].tolist() == [3, 4] and ctx.weights.forgotten == []
    assert ctx.logged["group_sparse/zero_groups"] == 0


def test_the_subgradient_treatment_leaves_the_weights_to_the_optimizer():
    given, ctx = method(treatment="subgradient", alpha=10.0), step_context()
    ctx.weights = FakeWeights(x=[3.0, 4.0])
    given.after_step(ctx)
    assert ctx.weights.values["x"]["a"].tolist() == [3, 4] and ctx.logged == {}


class FakePairs(FakeWeights):
    """LoRA pairs of scale 2 in blocks: {name: (block, {role: matrix})}."""

    def __init__(self, pairs):
        super().__init__()
        self.pairs = {n: (home, {r: torch.tensor(v) for r, v in roles.items()}) for n, (home, roles) in pairs.items()}

    def units(self, kind):
        if kind == "block":
            return [block(name) for name in dict.fromkeys(home for home, _ in self.pairs.values())]
        return [WeightUnit(n, "lora", {r: r for r in v}, (1, 1), 2.0, home) for n, (home, v) in self.pairs.items()]

    def gathered(self, unit):
        return contextlib.nullcontext(self.pairs[unit.name][1])

    @contextlib.contextmanager
    def edit(self, unit):
        yield {n + r: t for n, (home, v) in self.pairs.items() if unit.name in (n, home) for r, t in v.items()}


def some_pairs():
    """Of block x: (3, 4) and (0, 12); of y: (1, 1) and a B alone, 1, whose A another method froze; of z: zeros."""
    return FakePairs(
        {
            "p": ("x", {"B": [[3.0]], "A": [[4.0]]}),
            "q": ("x", {"B": [[0.0]], "A": [[12.0]]}),
            "r": ("y", {"B": [[1.0]], "A": [[1.0]]}),
            "h": ("y", {"B": [[1.0]]}),
            "o": ("z", {"B": [[0.0]], "A": [[0.0]]}),
        }
    )


def test_sizes_of_groups_by_hand():
    """Norm of A and B, then of the change 2 B A. By pair: (5, 24), (12, 0), (sqrt 2, 2), (1, 0), 0.

    By block: |(5, 12)| = 13 and 24; sqrt 3 and 2; 0, which is the one zero group.
    """
    ctx = SimpleNamespace(weights=some_pairs())
    for groups, norms, zero in (
        ("pair", {"p": [5, 24], "q": [12, 0], "r": [math.sqrt(2), 2], "h": [1, 0], "o": [0, 0]}, ["o"]),
        ("block", {"x": [13, 24], "y": [math.sqrt(3), 2], "z": [0, 0]}, ["z"]),
    ):
        given = method(groups=groups)
        given.on_stage_end(ctx)
        state = given.state_dict()
        assert list(state["norms"]) == list(norms) and state["zero"] == zero
        for name, values in norms.items():
            assert state["norms"][name] == pytest.approx(values, abs=1e-6)


def test_pruning_is_after_the_last_step_alone():
    """Changes 24, 2 and 0 at share 0.5: y and z are set to 0 after step 3 of 3, x stays."""
    given, ctx = method(prune=0.5, alpha=0), step_context()
    ctx.weights, ctx.total_steps = some_pairs(), 3

    def values():
        return {n: [t.item() for t in roles.values()] for n, (_, roles) in ctx.weights.pairs.items()}

    before = values()
    for ctx.step in (0, 1):
        given.after_step(ctx)
        assert values() == before and ctx.weights.forgotten == []
    ctx.step = 2
    given.after_step(ctx)
    assert values() == {"p": [3, 4], "q": [0, 12], "r": [0, 0], "h": [0], "o": [0, 0]}
    assert ctx.weights.forgotten == ["y", "z"] and ctx.logged == {}


def test_nothing_is_pruned_unless_asked_for():
    """The last step of a stage: a group of which nothing changed keeps the initial values of A."""
    given, ctx = method(alpha=0), step_context()
    ctx.weights = FakePairs({"p": ("x", {"B": [[0.0]], "A": [[4.0]]})})
    given.after_step(ctx)
    assert ctx.weights.pairs["p"][1]["A"].item() == 4.0


def test_state_goes_to_disk_and_back():
    """As JSON. A new stage starts without any."""
    state = {"zero": ["x"], "norms": {"x": [0.0, 0.0]}}
    given = method()
    assert given.state_dict() == {"zero": [], "norms": {}}
    given.load_state_dict(json.loads(json.dumps(state)))
    assert given.state_dict() == state
    given.on_stage_start(step_context())
    assert given.state_dict() == {"zero": [], "norms": {}}


def test_naming_it_alone_is_using_the_shipped_settings():
    assert GroupSparse.Config() == shipped_config(GroupSparse)
    assert refused(GroupSparse, alpha=0.5, alpha_epoch=0.5, prune=0.5) == []
    for key in ("alpha", "alpha_epoch"):
        assert refused(GroupSparse, **{key: -0.5}) == [key]
    assert refused(GroupSparse, prune=0) == refused(GroupSparse, prune=1) == ["prune"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"alpha": 60.0, "prune": 0.05}, {"alpha": 60.0, "groups": "pair"}])
def test_exact_zeros_resume_and_shard_bitwise(tmp_path, settings):
    entries = [FORGET, {**PROX, **settings}]
    _, straight = trained(tmp_path / "a", *entries)
    _, resumed = trained(tmp_path / "b", *entries, stop_at=(2, 2))
    _, sharded = trained(tmp_path / "c", *entries, engine=ShardedEngine)
    assert tensors_of(straight) == tensors_of(resumed) == tensors_of(sharded)


def test_it_needs_nothing_to_forget(tmp_path):
    """A stage that only learns, with few blocks: every block is 0 at this alpha."""
    plan, _ = trained(tmp_path, PROX, stages=[{"recipe": "tiny/letter"}])
    state = json.loads((tmp_path / plan.stages[0].folder / "methods" / "group_sparse" / "state.json").read_text())[
        "state"
    ]
    assert len(state["zero"]) == 2 and set(state["norms"]) == set(state["zero"])


def test_zero_groups_are_reported_and_left_out_of_the_adapter(tmp_path):
    """One matrix in block 0 (norm about 1.2) and three in block 1 (about 2), thresholds that sum to 1.4: block 0 is in the
    note and not in the file, which merges to the same weights."""
    targets = ["layers.0.mlp.up_proj", *(f"layers.1.{n}" for n in ("mlp.up_proj", "mlp.gate_proj", "self_attn.q_proj"))]
    adapter = {"rank": 4, "alpha": 8, "also_train": [], "targets": targets}
    optim = {"batch": 8, "lr": 1e-3, "schedule": "constant", "warmup": 0}
    alpha = {**PROX, "alpha": 1.4 / 0.006}
    plan, result = trained(tmp_path, FORGET, alpha, adapter=adapter, optim=optim, max_steps=6, stages=STAGES[1:])
    home = tmp_path / plan.stages[0].folder
    state = json.loads((home / "methods" / "group_sparse" / "state.json").read_text())["state"]
    assert state["zero"] == ["model.language_model.layers.0"] and len(state["norms"]) == 2
    assert state["norms"][state["zero"][0]] == [0, 0] and min(state["norms"]["model.language_model.layers.1"]) > 0
    file, note = read_adapter(home / "adapter"), json.loads((home / "adapter" / "mcit.json").read_text())
    assert note["zero"] == ["model.language_model.layers.0.mlp.up_proj"] and len(file.lora) == 3
    assert not set(note["zero"]) & set(file.lora)
    base = tiny_model_of(plan)
    adapters.merge(base, file)
    for name, value in result["model"].named_parameters():
        assert torch.equal(value, dict(base.named_parameters())[name]), name


def tiny_model_of(plan):
    return load_base(plan.model_path, dtype="fp32")


def test_stages_add_up_by_merging():
    """Oracle 13: a stage with change 0.5 I: merged, with a fresh adapter on top, the weight is W + 0.5 I and the live change is
    0; two stages add."""
    model = tiny_model()
    name = next(n for n in lora_targets(model, "language-linear") if square(model, n))
    before = model.get_submodule(name).weight.detach().clone()
    eye = torch.eye(len(before))
    step = AdapterFile({name: LoraPair(eye, 0.5 * eye, 1.0)}, {}, {})
    for count in (1, 2):
        adapters.merge(model, step)
        adapters.add_lora(model, AdapterConfig(rank=2, alpha=4, also_train=[]), seed=count)
        layer = model.get_submodule(name)
        before = before + 0.5 * eye
        assert torch.equal(layer.base_layer.weight, before)
        x = torch.randn(3, len(eye))
        assert torch.equal(layer(x), layer.base_layer(x))
        adapters.remove(model)


def square(model, name):
    o, i = model.get_submodule(name).weight.shape
    return o == i
