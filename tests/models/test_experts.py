"""A mixture of experts as an adapter: by hand, on disk, in a run, folded where it is exact and refused elsewhere."""

import math

import pytest
import torch
from peft import PeftModel
from torch import nn

from mcit.core.config import load_yaml
from mcit.core.errors import McitError, StateError
from mcit.core.interfaces import Silent
from mcit.core.paths import shipped
from mcit.core.schema import AdapterConfig
from mcit.export.export import export_stage
from mcit.models import adapters
from mcit.models.adapterfile import (
    AdapterFile,
    LoraPair,
    concat,
    folded,
    product,
    read_adapter,
    truncate,
    write_adapter,
)
from mcit.models.experts import ExpertsA, experts_of
from mcit.plan.plan import parse_run
from mcit.plan.preflight import skeleton, trained_parameters
from mcit.plan.resources import estimate
from mcit.train.sequence import run_sequence
from tests.fakes.bench import config_of, plan_of, run_plan, tensors_of
from tests.fakes.method_plans import MOE
from tests.fakes.models import adapted, tiny_model, tiny_path
from tests.fakes.sharded import ShardedEngine
from tests.models.test_adapters import file_of, logits, train_a_little
from tests.train.test_sequence import opened

MIXTURE = {"kind": "moe_lora", "experts": 2, "carry": "keep"}


def layer_of(A, router, *, dropout=0.0):
    layer = ExpertsA(nn.Linear(len(A[0]), len(A), bias=False), len(router), dropout)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(A))
        layer.router.copy_(torch.tensor(router))
    return layer


def test_two_experts_by_hand():
    """x (1, 2), A1 (1, 0), B1 e1, A2 (0, 1), B2 e2, router rows 0 and (ln 3, 0): shares (0.25, 0.75), times 2: (0.5, 3)."""
    layer = layer_of([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [math.log(3), 0.0]])
    x = torch.tensor([[1.0, 2.0]])
    assert torch.allclose(layer.shares(x), torch.tensor([[0.25, 0.75]]))
    assert torch.allclose(2 * torch.eye(2) @ layer(x)[0], torch.tensor([0.5, 3.0]))


def test_shares_are_per_token_and_dropout_is_not_on_the_router():
    layer = layer_of([[1.0, 0.0]] * 4, [[0.0, 0.0], [1.0, 0.0]], dropout=0.5)
    x = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layer.shares(x)[1, 2], torch.softmax(torch.tensor([0.0, float(x[1, 2, 0])]), 0))
    assert torch.equal(layer.shares(x), layer.shares(x)) and not torch.equal(layer(x), layer(x))
    inner = layer.eval()(x)
    assert torch.allclose(inner[..., :2], x[..., :1] * layer.shares(x)[..., :1]) and inner.shape == (2, 3, 4)


def test_one_expert_is_plain_lora_bit_for_bit():
    model, plain = tiny_model(), tiny_model()
    adapted(model, kind="moe_lora", experts=1, carry="keep")
    train_a_little(model)
    file = file_of(model)
    adapters.attach(plain, AdapterFile({m: folded(p) for m, p in file.lora.items()}, file.full), name=adapters.ACTIVE)
    assert torch.equal(logits(model), logits(plain))


def test_a_fresh_mixture_changes_nothing_and_depends_on_the_seed_alone():
    before, model, other, third = logits(tiny_model()), tiny_model(), tiny_model(), tiny_model()
    state = torch.get_rng_state()
    adapted(model, **MIXTURE)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(logits(model), before)
    torch.randn(3)
    adapted(other, **MIXTURE)
    adapted(third, seed=9, **MIXTURE)
    name = "model.language_model.layers.0.mlp.up_proj"
    a, b, c = (adapters.read_live(m).lora[name] for m in (model, other, third))
    assert (
        torch.equal(a.A_RI, b.A_RI)
        and torch.equal(a.router_EI, b.router_EI)
        and not torch.equal(a.router_EI, c.router_EI)
    )
    assert float(a.A_RI.std()) == pytest.approx(0.01, rel=0.3) and not a.B_OR.any() and a.router_EI.shape[0] == 2


def test_units_are_single_tensors():
    """No method may take B A for what a mixture adds."""
    units = adapted(tiny_model(), also_train=(), **MIXTURE)
    assert {u.kind for u in units} == {"tensor"}
    assert {u.name.rpartition(".lora_")[2] for u in units} == {
        "A.default.router",
        "A.default.weight",
        "B.default.weight",
    }


def test_written_and_read_back_it_acts_the_same_and_peft_refuses_it(tmp_path):
    model, again = tiny_model(), tiny_model()
    adapted(model, **MIXTURE)
    train_a_little(model)
    known = {n for n in model.state_dict() if ".lora_" not in n}
    given = {"base": "b", "base_sha256": "0" * 64, "known": {n.replace(".base_layer.", ".") for n in known}}
    write_adapter(tmp_path / "own", file_of(model), mixtures=True, **given)
    adapters.attach(again, read_adapter(tmp_path / "own"), name="stage01")
    assert torch.equal(logits(model), logits(again))
    assert {experts_of(layer, "stage01") for layer in adapters.lora_layers(again).values()} == {2}
    with pytest.raises(Exception, match="MCIT_MOE_LORA"):
        PeftModel.from_pretrained(tiny_model(), str(tmp_path / "own"))
    with pytest.raises(StateError, match="mixture of 2 experts"):
        write_adapter(tmp_path / "plain", file_of(model), **given)
    assert not (tmp_path / "plain").exists()


def pair(router, B=((1.0,), (2.0,))):
    return LoraPair(torch.ones(2, 3), torch.tensor(B).repeat(1, 2), 3.0, torch.tensor(router))


def test_what_weighs_all_alike_or_does_nothing_is_folded_and_nothing_else():
    same = folded(pair([[0.5, 1.0, 2.0]] * 2))
    assert same.router_EI is None and same.scale == 1.5
    assert folded(pair([[0.0, 1.0, 2.0], [0.5, 1.0, 2.0]], B=((0.0,), (0.0,)))).router_EI is None
    mixed = AdapterFile({"m": pair([[0.0, 1.0, 2.0], [0.5, 1.0, 2.0]])})
    model = tiny_model()
    refused = (lambda: product(mixed.lora["m"]), lambda: concat([mixed]), lambda: truncate(mixed, 1))
    for call in (*refused, lambda: adapters.merge(model, AdapterFile({"lm_head": mixed.lora["m"]}))):
        with pytest.raises(StateError, match="no matrix and no PEFT adapter|does not fit"):
            call()


def test_folding_a_uniform_router_is_exact():
    model, plain = tiny_model(), tiny_model()
    adapted(model, **MIXTURE)
    train_a_little(model)
    with torch.no_grad():
        for layer in adapters.lora_layers(model).values():
            layer.lora_A[adapters.ACTIVE].router.fill_(0.25)
    adapters.merge(plain, file_of(model))
    assert torch.allclose(logits(plain), logits(model), atol=1e-4)


@pytest.fixture(scope="module")
def plan():
    return plan_of(defaults={"adapter": {**MOE, "dropout": 0.1}, "max_steps": 3})


def test_a_run_stopped_or_sharded_is_the_same_and_the_adapter_goes_on(plan, tmp_path):
    straight = tensors_of(run_plan(plan, tmp_path / "straight"))
    assert tensors_of(run_plan(plan, tmp_path / "resumed", stop_at=(2, 1))) == straight
    assert tensors_of(run_plan(plan, tmp_path / "sharded", engine=ShardedEngine)) == straight
    first, second = (read_adapter(tmp_path / "straight" / s.folder / "adapter").lora for s in plan.stages)
    assert all(p.router_EI is not None and p.router_EI.shape[0] == 2 for p in second.values())
    assert any(not torch.equal(first[m].router_EI, second[m].router_EI) for m in first)
    apart = [float((first[m].router_EI - second[m].router_EI).norm() / first[m].router_EI.norm()) for m in first]
    assert max(apart) < 0.9, "stage 2 began with another router than stage 1 ended with"


@pytest.mark.parametrize("lr", [1e-2, pytest.param(0.0, marks=pytest.mark.slow)])
def test_exports_are_refused_with_the_reason_or_exact(lr, tmp_path):
    """Without a step, B is 0: an adapter without effect is one that PEFT can hold."""
    defaults = {"adapter": MOE, "max_steps": 1, "optim": {"batch": 8, "lr": lr}}
    made = plan_of(stages=[{"recipe": "tiny/letter"}], defaults=defaults)
    run = opened(made, tmp_path)
    with run.locked():
        run_sequence(made, run, reporter=Silent())
        if lr == 0:
            assert export_stage(run, stage=1, kind="adapter").record["difference"] < 1e-4
            return
        for kind in ("adapter", "delta", "merged"):
            with pytest.raises(StateError, match="mixture of 2 experts"):
                export_stage(run, stage=1, kind=kind)
    assert not run.layout.exports.exists() or not list(run.layout.exports.glob("[!.]*"))


def test_settings():
    default = AdapterConfig.model_validate({"kind": "moe_lora"})
    assert (default.experts, default.carry) == (4, "keep") and AdapterConfig().experts is None
    (stage,) = parse_run(config_of(stages=[{"recipe": "tiny/letter", "adapter": {"use": "moe_lora", "rank": 64}}]))[
        0
    ].stages
    preset = load_yaml(shipped("configs") / "methods" / "moe_lora.yaml")["adapter"]
    assert stage.adapter == AdapterConfig.model_validate({**preset, "rank": 64})
    assert (preset["rank"], preset["alpha"], preset["experts"]) == (128, 256, 8)


@pytest.mark.parametrize(
    ("adapter", "what"),
    [
        ({"kind": "moe_lora", "rank": 4, "experts": 8}, "8 experts cannot share rank 4 evenly"),
        ({"kind": "moe_lora", "rank": 6, "experts": 4}, "could be one of [1, 2, 3, 6]"),
        ({"kind": "moe_lora", "carry": "merge"}, "no matrix; use keep"),
        ({"experts": 2}, "experts are of kind: moe_lora"),
        ({"use": "mole_lora"}, "there is no configs/methods/mole_lora.yaml"),
        ({"use": "l2"}, "holds no adapter"),
        ({**MOE, "carry": "pool", "also_train": []}, "must be plain LoRA"),
    ],
)
def test_what_does_not_fit(adapter, what):
    _, problems = parse_run(config_of(defaults={"adapter": adapter}, router={"use": "self_refined"}))
    if not problems:
        with pytest.raises(McitError) as caught:
            plan_of(defaults={"adapter": adapter}, router={"use": "self_refined"})
        problems = caught.value.problems
    assert any(what in p.what for p in problems), problems


def test_methods_that_need_pairs_and_stages_that_keep_another_adapter_are_refused():
    with pytest.raises(McitError, match="needs adapter:lora, but adapter.kind is moe_lora"):
        plan_of(defaults={"adapter": MOE, "methods": [{"name": "o_lora"}]})
    from mcit.plan.references import reference_problems

    stages = [{"recipe": "tiny/letter", "adapter": MOE}, {"recipe": "tiny/yesno", "adapter": {"rank": 4}}]
    (problem,) = reference_problems(parse_run(config_of(stages=stages))[0])
    assert "2 experts and no experts" in problem.what


def test_the_plan_counts_what_trains(plan):
    model = tiny_model()
    adapted(model, rank=4, alpha=8, also_train=("projector",), kind="moe_lora", experts=2, carry="keep")
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained_parameters(skeleton(plan), plan.stages[0]) == trains
    assert estimate(plan).stages[0].shape.trained == trains
    assert tiny_path()
