import pytest
import torch

from mcit.core.errors import PlanError, StateError
from mcit.core.schema import AdapterConfig
from mcit.engine.plain import run_model
from mcit.models import adapters
from mcit.models.adapterfile import AdapterFile, LoraPair, read_adapter, write_adapter
from tests.fakes.models import adapted, tiny_model
from tests.fakes.toy import toy_batch

CPU = torch.device("cpu")


def logits(model):
    with torch.no_grad():
        return run_model(model, toy_batch(model), device=CPU).logits_NV


def train_a_little(model, seed=0):
    """Random values in the live adapter and the projector."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def file_of(model):
    return adapters.read_live(model, full=[n for n, p in adapters.base_parameters(model).items() if p.requires_grad])


def test_fresh_adapter_changes_nothing_and_depends_on_the_seed_alone():
    plain, model = tiny_model(), tiny_model()
    before = logits(plain)
    state = torch.get_rng_state()
    adapted(model, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(model), before)
    other, third = tiny_model(), tiny_model()
    torch.randn(7)
    adapted(other, seed=3)
    adapted(third, seed=4)
    a, b, c = (
        adapters.read_live(m).lora["model.language_model.layers.0.mlp.up_proj"].A_RI for m in (model, other, third)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_merge_equals_the_live_adapter_and_removal_restores_plain_modules():
    model = tiny_model()
    names = [n for n, _ in model.named_parameters()]
    adapted(model)
    train_a_little(model)
    live, file = logits(model), file_of(model)
    adapters.remove(model)
    assert [n for n, _ in model.named_parameters()] == names and not adapters.lora_layers(model)
    adapters.merge(model, file)
    assert torch.allclose(logits(model), live, atol=1e-4)
    assert not hasattr(model, "peft_config")


def test_merge_is_an_fp32_add_with_one_cast():
    """bf16 weight 1.0 plus 0.003 in fp32 rounds to 1.0; two merges of it do not add up, one of 0.006 does (to 1.0078125)."""
    model = tiny_model(dtype="bf16")
    module = "model.language_model.layers.0.self_attn.o_proj"
    weight = model.get_submodule(module).weight
    with torch.no_grad():
        weight.fill_(1.0)

    def pair(value):
        A, B = torch.zeros(1, 64), torch.zeros(64, 1)
        A[0, 0], B[0, 0] = 1.0, value
        return AdapterFile({module: LoraPair(A, B, 1.0)}, {}, {})

    adapters.merge(model, pair(0.003))
    adapters.merge(model, pair(0.003))
    assert weight[0, 0].item() == 1.0
    adapters.merge(model, pair(0.006))
    assert weight[0, 0].item() == 1.0078125 and weight[0, 1].item() == 1.0


def test_disabled_gives_the_model_without_the_adapter_and_restores_flags():
    model = tiny_model()
    before = logits(model)
    adapted(model, also_train=())
    train_a_little(model)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    with adapters.disabled(model):
        assert torch.equal(logits(model), before)
    assert not torch.equal(logits(model), before)
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}


def test_stacked_adapters_all_act_and_only_the_new_one_trains():
    model = tiny_model()
    adapted(model)
    train_a_little(model)
    first, file = logits(model), file_of(model)
    adapters.remove(model)
    adapters.attach(model, file, name="stage01")
    assert torch.allclose(logits(model), first, atol=1e-5)
    adapted(model, seed=9)
    assert torch.allclose(logits(model), first, atol=1e-5)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert not any("stage01" in n for n in trained) and any(".default." in n for n in trained)
    train_a_little(model, seed=1)
    assert not torch.allclose(logits(model), first, atol=1e-3)
    with adapters.disabled(model):
        assert not torch.allclose(logits(model), logits(tiny_model()), atol=1e-3)
    adapters.remove(model)
    assert {n for layer in adapters.lora_layers(model).values() for n in layer.lora_A} == {"stage01"}


def test_adapter_of_another_model_is_refused():
    model = tiny_model()
    strange = AdapterFile({"model.nowhere": LoraPair(torch.zeros(1, 2), torch.zeros(2, 1), 1.0)}, {}, {})
    with pytest.raises(StateError, match="'model.nowhere' does not fit"):
        adapters.merge(model, strange)
    with pytest.raises(StateError, match="'x' does not fit"):
        adapters.set_full(model, AdapterFile({}, {"x": torch.zeros(1)}, {}))


def test_candidates_by_setting():
    model = tiny_model()
    full = adapters.candidates(model, AdapterConfig(kind="none", also_train=["projector", "head"]))
    groups = {adapters.group_of(n) for n in full}
    assert groups == {"language", "projector", "head"}
    adapted(model)
    lora = adapters.candidates(model, AdapterConfig(also_train=[]))
    assert lora and all(".lora_" in n for n in lora)
    with pytest.raises(PlanError, match="both adapted and trained"):
        clash = tiny_model()
        adapted(clash, targets=["multi_modal_projector.linear_1"], also_train=())
        adapters.candidates(clash, AdapterConfig())


def test_adapter_and_projector_on_the_vision_tower_only_when_asked():
    model = tiny_model()
    adapted(model)
    assert not any("vision_tower" in n for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_nothing_is_merged_into_quantised_weights(dtype):
    source = tiny_model()
    adapted(source)
    train_a_little(source)
    model = tiny_model(dtype=dtype)
    before = logits(model)
    with pytest.raises(StateError, match="is quantised, and merging") as error:
        adapters.merge(model, file_of(source))
    assert "keep or stack" in error.value.fix and torch.equal(before, logits(model))


@pytest.mark.parametrize("dtype", ["fp32", "nf4", "int8"])
def test_an_adapter_of_mixed_ranks_is_attached_in_groups(dtype):
    """Ranks 2 and 4 and a scale of its own for one module: three live adapters whose sum is the file's effect."""
    model = tiny_model(dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    pairs = {}
    for i, name in enumerate(adapters.lora_targets(model, "language-linear")):
        layer = model.get_submodule(name)
        rank, scale = (2, 1.0) if i % 2 else (4, 3.0 if i == 0 else 1.0)
        a, b = (
            torch.randn(*s, generator=generator) * 0.1 for s in ((rank, layer.in_features), (layer.out_features, rank))
        )
        pairs[name] = LoraPair(a, b, scale)
    projector = "model.multi_modal_projector.linear_1.bias"
    file = AdapterFile(pairs, {projector: torch.ones(64)})
    start = logits(model)
    adapters.attach_groups(model, file, name="start")
    live = {n for layer in adapters.lora_layers(model).values() for n in layer.lora_A}
    assert live == {"start00", "start01", "start02"} and not any(p.requires_grad for p in model.parameters())
    assert torch.equal(dict(model.named_parameters())[projector], torch.ones(64))
    name = "model.language_model.layers.0.mlp.down_proj"
    layer, x = model.get_submodule(name), torch.randn(2, 128, generator=generator)
    wanted = layer.get_base_layer()(x) + x @ pairs[name].A_RI.T @ pairs[name].B_OR.T * pairs[name].scale
    assert torch.allclose(layer(x), wanted, atol=1e-5) and not torch.equal(start, logits(model))
    if dtype == "fp32":
        merged = tiny_model()
        adapters.merge(merged, file)
        assert torch.allclose(logits(model), logits(merged), atol=1e-4)


def test_rslora_scales_as_pefts_own_and_its_file_loads_with_the_same_scale(tmp_path):
    from peft import LoraConfig, inject_adapter_in_model

    config = AdapterConfig(rank=6, alpha=9.0, rslora=True)
    model, theirs = tiny_model(), tiny_model()
    adapters.add_lora(model, config, seed=0)
    own = adapters.lora_layers(model)
    inject_adapter_in_model(LoraConfig(r=6, lora_alpha=9, use_rslora=True, target_modules=list(own)), theirs)
    found = adapters.lora_layers(theirs)
    assert all(own[n].scaling["default"] == pytest.approx(found[n].scaling["default"], rel=1e-12) for n in own)
    assert next(iter(own.values())).scaling["default"] == pytest.approx(9 / 6**0.5)
    write_adapter(tmp_path, adapters.read_live(model), base="b", base_sha256="0" * 64)
    again = read_adapter(tmp_path)
    assert all(again.lora[n].scale == pytest.approx(9 / 6**0.5, rel=1e-12) for n in own)
