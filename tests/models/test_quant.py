import copy

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from mcit.core.errors import ConfigError, StateError
from mcit.models import quant
from mcit.models.adapters import lora_layers
from mcit.models.frozen import frozen_checksums
from mcit.models.load import load_base, skeleton
from mcit.models.units import lora_targets
from tests.fakes.models import adapted, tiny_model, tiny_path
from tests.fakes.toy import toy_batch

LOW = ("nf4", "int8")
TYPES = {"nf4": bnb.nn.Linear4bit, "int8": bnb.nn.Linear8bitLt}


def low_model(dtype, **settings):
    return load_base(tiny_path(), dtype=dtype, **settings)


def linear(dtype, weight_OI, bias_O=None, *, double_quant=True):
    """One quantised linear of given weights, prepared as a loaded model's are."""
    if dtype == "nf4":
        module = bnb.nn.Linear4bit(
            weight_OI.shape[1],
            weight_OI.shape[0],
            bias=bias_O is not None,
            compute_dtype=torch.float32,
            compress_statistics=double_quant,
            quant_type="nf4",
        )
        module.weight = bnb.nn.Params4bit(weight_OI, False, None, 64, double_quant, "nf4", module=module).to("cpu")
    else:
        module = bnb.nn.Linear8bitLt(*weight_OI.T.shape, bias_O is not None, has_fp16_weights=False, threshold=6.0)
        module.weight = bnb.nn.Int8Params(weight_OI, False, False).to("cpu")
    if bias_O is not None:
        module.bias = nn.Parameter(bias_O, requires_grad=False)
    holder = nn.ModuleDict({"m": module}).eval()
    quant.prepare(holder, ["m"])
    return module


def logits_of(model, batch):
    with torch.no_grad():
        return model(
            input_ids=batch.input_ids_BT, attention_mask=batch.attention_BT, use_cache=False, **batch.pixels
        ).logits


# ---- which modules ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", LOW)
def test_only_language_linears_are_quantised_and_the_rest_is_bitwise_the_fp32_load(dtype):
    full, low = tiny_model(), low_model(dtype)
    chosen = [n for n, m in low.named_modules() if isinstance(m, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))]
    assert sorted(chosen) == lora_targets(full, "language-linear") == list(quant.quantised_modules(low))
    assert {type(low.get_submodule(n)) for n in chosen} == {TYPES[dtype]} and len(chosen) == 14
    a, b = dict(full.named_parameters()), dict(low.named_parameters())
    untouched = [n for n in a if n.rpartition(".")[0] not in chosen]
    assert any("vision_tower" in n for n in untouched) and "lm_head.weight" in untouched
    assert any("multi_modal_projector" in n for n in untouched) and any("embed_tokens" in n for n in untouched)
    assert all(torch.equal(a[n], b[n]) and b[n].dtype == torch.float32 for n in untouched)
    assert not any(p.requires_grad for p in low.parameters()) and not low.training


def test_the_skip_list_is_explicit_and_read_off_the_skeleton():
    shape = skeleton(tiny_path())
    given = quant.settings(shape, dtype="nf4", double_quant=False, compute=torch.bfloat16)
    linears = {n for n, m in shape.named_modules() if isinstance(m, nn.Linear)}
    assert sorted(linears - set(given.llm_int8_skip_modules)) == quant.language_linears(shape)
    assert not given.bnb_4bit_use_double_quant and given.bnb_4bit_quant_type == "nf4"
    assert given.bnb_4bit_compute_dtype is torch.bfloat16


def test_another_set_of_modules_than_planned_is_an_error():
    low = low_model("int8")
    names = list(quant.quantised_modules(low))
    with pytest.raises(StateError, match="1 modules were quantised against the plan.*down_proj"):
        quant.prepare(low, names[1:])
    with pytest.raises(StateError, match="lm_head"):
        quant.prepare(low, [*names, "lm_head"])


def test_precision_of_everything_else_follows_the_device():
    assert quant.full_dtype("nf4", "cpu") is torch.float32 and quant.full_dtype("int8", "cuda:1") is torch.bfloat16
    assert quant.full_dtype("bf16", "cpu") is torch.bfloat16 and quant.full_dtype("fp32", "cuda") is torch.float32
    assert not quant.runs_bf16("nf4", "cpu") and quant.runs_bf16("nf4", "cuda") and quant.runs_bf16("bf16", "cpu")


# ---- values ----------------------------------------------------------------------------------------------------------
def test_nf4_keeps_zero_and_the_largest_of_each_block_exactly():
    """NF4's 16 levels include -1, 0 and 1, so blocks of 64 made of -a, 0 and a come back exactly (QLoRA, section 3)."""
    generator = torch.Generator().manual_seed(0)
    signs_OI = torch.randint(-1, 2, (8, 128), generator=generator).float()
    signs_OI[:, ::64] = 1.0
    weight_OI = signs_OI * torch.tensor([0.5, 3.0]).repeat_interleave(64)
    module = linear("nf4", weight_OI.clone(), double_quant=False)
    x = torch.eye(128)
    assert torch.equal(module(x).T, weight_OI)


def test_int8_by_hand():
    """Scale of a row is its largest |w|, code = round(127 w / scale): [127, -64, 1] keeps its values, and row
    [1, 0.5, 0] becomes codes [127, 64, 0] (63.5 rounds to even), so 64/127."""
    module = linear("int8", torch.tensor([[127.0, -64.0, 1.0], [1.0, 0.5, 0.0]]), torch.tensor([10.0, 20.0]))
    assert module.weight.tolist() == [[127, -64, 1], [127, 64, 0]] and module.weight.dtype == torch.int8
    found = module(torch.eye(3)).T
    wanted = torch.tensor([[137.0, -54.0, 11.0], [21.0, 20 + 64 / 127, 20.0]])
    assert torch.allclose(found, wanted, rtol=1e-6, atol=0)


def test_int8_gradient_is_that_of_the_dequantised_weights():
    torch.manual_seed(0)
    module = linear("int8", torch.randn(6, 5), torch.randn(6))
    weight_OI = quant.dequantised(module.weight.data, module.weight.SCB, torch.float64)
    x = torch.randn(2, 3, 5, requires_grad=True)
    y = x.detach().double().requires_grad_(True)
    out, wanted = module(x), y @ weight_OI.T + module.bias.double()
    out.square().sum().backward()
    wanted.square().sum().backward()
    assert torch.allclose(out.double(), wanted, atol=1e-5) and torch.allclose(x.grad.double(), y.grad, atol=1e-4)
    assert module.weight.grad is None


def test_int8_follows_autocast_and_leaves_its_bias_alone():
    """Under bf16 autocast 1 + 2^-10 loses its last bit (8 bits of precision); the stored bias stays fp32."""
    module = linear("int8", torch.tensor([[127.0]]), torch.tensor([1.0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(torch.tensor([[1 + 2.0**-10]]))
    assert out.dtype == torch.bfloat16 and float(out) == 128.0 and module.bias.dtype == torch.float32


@pytest.mark.parametrize("dtype", LOW)
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype):
    """LLM.int8()'s own product fails here: a large value in one row makes its column an outlier of all rows."""
    torch.manual_seed(0)
    module = linear(dtype, torch.randn(32, 64))
    x = torch.randn(4, 64)
    x[3, 7] = 60.0
    for mode in (True, False):
        module.train(mode)
        with torch.no_grad():
            together, alone = module(x), torch.cat([module(row[None]) for row in x])
        assert (together - alone).abs().max() < 1e-5 * float(together.abs().max())


@pytest.mark.parametrize("dtype", LOW)
def test_close_to_the_full_model(dtype):
    """A sanity check only: rounding to 16 levels moves these logits by about a fifth of their norm, to 8 bits by 2 %."""
    batch = toy_batch(tiny_model())
    full, low = logits_of(tiny_model(), batch), logits_of(low_model(dtype), batch)
    assert float((full - low).norm() / full.norm()) < {"nf4": 0.5, "int8": 0.05}[dtype] and not torch.equal(full, low)


# ---- bytes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("double_quant, per_weight", [(True, 0.5 + 1 / 64 + 4 / 64 / 256), (False, 0.5 + 4 / 64)])
def test_nf4_takes_about_half_a_byte_per_weight(double_quant, per_weight):
    """4 bits each, per block of 64 one scale: 8 bits and 4 bytes per 256 of them, or 4 bytes; code tables are constant."""
    module = linear("nf4", torch.randn(1024, 1024), double_quant=double_quant)
    tables = 16 * 4 + (256 * 4 + 4 if double_quant else 0)
    assert quant.stored_bytes(module) == per_weight * 2**20 + tables
    assert quant.stored_bytes(module) <= 0.6 * 2**20
    assert module.weight.nbytes == 2**19


def test_int8_takes_a_byte_per_weight_and_a_scale_per_row():
    assert quant.stored_bytes(linear("int8", torch.randn(256, 512))) == 256 * 512 + 4 * 256


@pytest.mark.parametrize("dtype", LOW)
def test_loading_twice_gives_equal_bytes_and_passes_change_none(dtype):
    """The second pass without gradients is the one in which bitsandbytes would repack 4-bit weights on some CPUs."""
    one, two = low_model(dtype), low_model(dtype)
    first = frozen_checksums(one)
    assert first == frozen_checksums(two) and sum(n.startswith("scale ") for n in first) >= 14
    adapted(one)
    names = {n.replace(".base_layer.", "."): n for n, _ in one.named_parameters()}
    for _ in range(2):
        logits_of(one, toy_batch(tiny_model()))
    now = frozen_checksums(one)
    assert all(now[names.get(n, n)] == first[n] for n in first if names.get(n, n) in now)
    assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in one.modules())


def test_double_quantisation_is_a_setting_of_nf4_alone():
    on, off = (low_model("nf4", double_quant=flag) for flag in (True, False))
    size = {flag: sum(map(quant.stored_bytes, quant.quantised_modules(m).values())) for flag, m in ((1, on), (0, off))}
    first = [next(iter(quant.quantised_modules(model).values())) for model in (on, off)]
    assert [module.weight.quant_state.nested for module in first] == [True, False]
    assert size[1] != size[0]
    assert frozen_checksums(low_model("int8", double_quant=False)) == frozen_checksums(low_model("int8"))
    assert torch.equal(tiny_model().lm_head.weight, load_base(tiny_path(), double_quant=False).lm_head.weight)


# ---- adapters on top -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", LOW)
def test_lora_trains_in_fp32_on_quantised_layers(dtype):
    model = low_model(dtype)
    batch = toy_batch(tiny_model())
    before = logits_of(model, batch)
    adapted(model)
    assert torch.equal(before, logits_of(model, batch))  # B is zero
    assert {type(layer.get_base_layer()) for layer in lora_layers(model).values()} == {TYPES[dtype]}
    out = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_BT, use_cache=False, **batch.pixels).logits
    out.float().square().mean().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in trained.values())
    assert all(float(p.grad.norm()) > 0 for n, p in trained.items() if ".lora_B." in n)
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)
    assert list(quant.quantised_modules(model)) == lora_targets(tiny_model(), "language-linear")


@pytest.mark.parametrize("dtype", LOW)
def test_a_copy_computes_the_same(dtype):
    model = low_model(dtype)
    batch = toy_batch(tiny_model())
    assert torch.equal(logits_of(model, batch), logits_of(copy.deepcopy(model), batch))


def test_a_folder_says_whether_it_is_quantised_already(tmp_path):
    assert quant.quantised_already(tiny_path()) is None and quant.quantised_already(tmp_path) is None
    (tmp_path / "config.json").write_text('{"text_config": {"quantization_config": {"quant_method": "gptq"}}}')
    assert quant.quantised_already(tmp_path) == "gptq"
    for text in ('{"quantization_config": ["gptq"]}', '{"quantization_config": {}, "text_config": [1]}', "{}"):
        (tmp_path / "config.json").write_text(text)
        assert quant.quantised_already(tmp_path) == ("unknown" if "gptq" in text else None)


@pytest.mark.parametrize("text", ["[1]", "{cut", "[" * 3000])
def test_a_config_that_is_no_mapping_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        quant.quantised_already(tmp_path)
    assert error.value.where == str(tmp_path / "config.json") and error.value.fix


def test_rounded_to_nf4_and_back_bit_for_bit():
    model, batch = tiny_model(), toy_batch(tiny_model())
    names = lora_targets(model, "language-linear")
    kept = {n: t.clone() for n, t in model.state_dict().items()}
    with quant.rounded_to_4bit(model):
        changed = {n for n, t in model.state_dict().items() if not torch.equal(t, kept[n])}
        assert changed == {f"{name}.weight" for name in names}
        assert torch.equal(logits_of(model, batch), logits_of(model, batch))
        assert len(model.get_submodule(names[0]).weight.detach()[0, :64].unique()) <= 16
    assert all(torch.equal(t, kept[n]) for n, t in model.state_dict().items())
    with pytest.raises(ValueError), quant.rounded_to_4bit(model):
        raise ValueError
    assert all(torch.equal(t, kept[n]) for n, t in model.state_dict().items())
