import json

import pytest
import torch

from mcit.core.errors import StateError
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.models import adapters
from mcit.models.adapterfile import (
    AdapterFile,
    LoraPair,
    concat,
    live_name,
    modules_to_save,
    negated,
    product,
    read_adapter,
    truncate,
    without_zeros,
    write_adapter,
)
from tests.fakes.models import adapted, tiny_model, tiny_path
from tests.fakes.toy import toy_batch

Q = "model.language_model.layers.0.self_attn.q_proj"
V = "model.language_model.layers.1.self_attn.v_proj"


def pair(rank=2, out=5, inner=3, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LoraPair(torch.randn(rank, inner, generator=generator), torch.randn(out, rank, generator=generator), scale)


def write(folder, file, **kwargs):
    return write_adapter(folder, file, base="/base", base_sha256="0" * 64, **kwargs)


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_BT, **batch.pixels).logits


def trained_tiny(**kwargs):
    """A tiny LLaVA with moved adapter and projector, what was trained, and its logits."""
    model = tiny_model()
    adapted(model, **kwargs)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    full = [
        n.replace(".base_layer.", ".") for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n
    ]
    batch = toy_batch(model)
    return model, adapters.read_live(model, full=full), batch, logits(model, batch)


# ---- arithmetic -----------------------------------------------------------------------------------------------------
def test_product_by_hand():
    """2 * [[1], [3]] @ [[1, 2]] = [[2, 4], [6, 12]]."""
    found = product(LoraPair(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [3.0]]), 2.0))
    assert torch.equal(found, torch.tensor([[2.0, 4.0], [6.0, 12.0]]))


def test_concat_sums_effects_of_unequal_rank_scale_and_modules():
    one = AdapterFile({Q: pair(2, scale=2.0, seed=1), V: pair(3, scale=0.5, seed=2)}, {"p.w": torch.ones(1)})
    two = AdapterFile({Q: pair(4, scale=-1.0, seed=3)}, {"p.w": torch.zeros(1), "p.b": torch.ones(2)})
    joined = concat([one, two])
    assert joined.lora[Q].rank == 6 and joined.lora[V].rank == 3
    assert {p.scale for p in joined.lora.values()} == {1.0}
    expected = product(one.lora[Q]) + product(two.lora[Q])
    assert torch.allclose(product(joined.lora[Q]), expected, atol=1e-6)
    assert torch.allclose(product(joined.lora[V]), product(one.lora[V]), atol=1e-6)
    assert float(joined.full["p.w"]) == 0.0 and set(joined.full) == {"p.w", "p.b"}


def test_concat_with_the_negated_adapter_is_nothing():
    one = AdapterFile({Q: pair(3)}, {"p.w": torch.ones(1)})
    gone = concat([one, negated(one)])
    assert product(gone.lora[Q]).abs().max() < 1e-6
    assert torch.equal(gone.full["p.w"], torch.ones(1))


def test_truncate_states_the_error_by_hand():
    """Singular values 3 and 4 of one module and 5 (rank 1) of another: cutting to rank 1 loses 3 of sqrt(50)."""
    a = LoraPair(torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), 1.0)
    b = LoraPair(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0], [0.0], [0.0]]), 1.0)
    short, error = truncate(AdapterFile({Q: a, V: b}, {"p.w": torch.ones(1)}), 1)
    assert error == pytest.approx(3 / 50**0.5, abs=1e-9)
    assert torch.allclose(product(short.lora[Q]), torch.tensor([[0.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), atol=1e-6)
    assert short.lora[V] is b and set(short.full) == {"p.w"}


def test_truncate_is_the_best_approximation_and_scale_matters():
    file = AdapterFile({Q: pair(6, out=9, inner=8, scale=0.25, seed=4)})
    short, error = truncate(file, 2)
    whole = product(file.lora[Q]).double()
    values = torch.linalg.svdvals(whole)
    assert short.lora[Q].rank == 2
    assert error == pytest.approx(float(values[2:].square().sum().sqrt() / values.square().sum().sqrt()), rel=1e-5)
    lost = (whole - product(short.lora[Q])).norm() / whole.norm()
    assert float(lost) == pytest.approx(error, rel=1e-4)


def test_truncate_of_too_many_ranks_loses_nothing():
    """Rank 7 on a 3 x 2 matrix has two singular values: cut to 2 it is the same matrix."""
    file = AdapterFile({Q: pair(7, out=3, inner=2)})
    short, error = truncate(file, 2)
    assert short.lora[Q].rank == 2 and error == pytest.approx(0.0, abs=1e-9)
    assert torch.allclose(product(short.lora[Q]), product(file.lora[Q]), atol=1e-5)
    same, error = truncate(file, 7)
    assert same.lora[Q] is file.lora[Q] and error == 0.0


# ---- folders --------------------------------------------------------------------------------------------------------
def test_what_is_written_is_read_back_and_bytes_are_stable(tmp_path):
    full = {"model.multi_modal_projector.linear_1.weight": torch.randn(4, 4)}
    file = AdapterFile({V: pair(2, scale=2.5), Q: pair(2, scale=2.5, seed=1)}, full)
    assert write(tmp_path / "a", file, note={"stages": ["01-a"]}) == []
    write(tmp_path / "b", AdapterFile(dict(reversed(file.lora.items())), full), note={"stages": ["01-a"]})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    again = read_adapter(tmp_path / "a")
    assert set(again.lora) == {Q, V} and again.lora[Q].scale == 2.5
    assert torch.equal(again.lora[Q].A_RI, file.lora[Q].A_RI) and torch.equal(again.lora[V].B_OR, file.lora[V].B_OR)
    assert torch.equal(again.full["model.multi_modal_projector.linear_1.weight"], next(iter(full.values())))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == [Q, V] and config["lora_alpha"] == 5 and config["r"] == 2
    assert json.loads((tmp_path / "a" / "mcit.json").read_text())["base_sha256"] == "0" * 64


def test_unequal_ranks_and_scales_become_patterns(tmp_path):
    other = V.replace("v_proj", "o_proj")
    file = AdapterFile({Q: pair(2, scale=2.0), V: pair(3, scale=2.0), other: pair(2, scale=0.5)})
    write(tmp_path, file)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {V: 3} or config["r"] == 3
    again = read_adapter(tmp_path)
    assert {n: (p.rank, p.scale) for n, p in again.lora.items()} == {Q: (2, 2.0), V: (3, 2.0), other: (2, 0.5)}


def test_older_layout_is_read_and_named_as_the_live_model_does(tmp_path):
    one = pair(4, scale=1.0)
    save_tensors(
        tmp_path / "adapter_model.safetensors",
        {
            "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight": one.A_RI,
            "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_B.weight": one.B_OR,
            "base_model.model.multi_modal_projector.linear_1.weight": torch.ones(2, 2),
            "base_model.model.language_model.lm_head.weight": torch.zeros(2, 2),
        },
    )
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "use_rslora": True,
        "rank_pattern": {"layers.0.self_attn.q_proj": 4},
        "alpha_pattern": {"language_model.model.layers.0.self_attn.q_proj": 6},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = read_adapter(tmp_path)
    assert set(found.lora) == {Q}
    assert found.lora[Q].scale == pytest.approx(6 / 4**0.5)  # rank-stabilised: alpha / sqrt(r)
    assert set(found.full) == {"model.multi_modal_projector.linear_1.weight", "lm_head.weight"}
    assert found.config == config


def test_adapter_names_inside_keys_are_taken_out(tmp_path):
    one = pair(8)
    save_tensors(
        tmp_path / "adapter_model.safetensors",
        {
            f"base_model.model.{Q}.lora_A.default.weight": one.A_RI,
            f"base_model.model.{Q}.lora_B.default.weight": one.B_OR,
            "base_model.model.model.multi_modal_projector.modules_to_save.default.linear_1.bias": torch.ones(2),
        },
    )
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 8}')
    found = read_adapter(tmp_path)
    assert set(found.lora) == {Q} and set(found.full) == {"model.multi_modal_projector.linear_1.bias"}


def test_names_are_matched_with_a_model_whose_own_layout_looks_old():
    assert live_name("language_model.model.x.weight") == "model.language_model.x.weight"
    known = {"language_model.model.x.weight", "projector.weight"}
    assert live_name("language_model.model.x.weight", known=known) == "language_model.model.x.weight"
    assert live_name("language_model.model.x", known=known, suffix=".weight") == "language_model.model.x"
    assert live_name("projector.weight", known=known) == "projector.weight"
    assert live_name("visual.patch.weight") == "model.visual.patch.weight"
    assert live_name("model.a.weight") == "model.a.weight" and live_name("lm_head.weight") == "lm_head.weight"


def test_names_we_wrote_are_never_guessed(tmp_path):
    odd = "language_model.model.layers.0.q"
    write(tmp_path, AdapterFile({odd: pair()}, {"projector.weight": torch.ones(1)}))
    again = read_adapter(tmp_path)
    assert set(again.lora) == {odd} and set(again.full) == {"projector.weight"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 3}, "rank is 2"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ],
)
def test_what_cannot_be_read_right_is_refused(tmp_path, change, match):
    write(tmp_path, AdapterFile({Q: pair(2)}))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(StateError, match=match):
        read_adapter(tmp_path)


def test_damaged_and_incomplete_folders_are_named(tmp_path):
    with pytest.raises(StateError, match="missing"):
        read_adapter(tmp_path)
    write(tmp_path, AdapterFile({Q: pair(2)}))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_tensors(path)
    save_tensors(path, {name: t for name, t in tensors.items() if "lora_A" in name})
    with pytest.raises(StateError, match="has lora_A only"):
        read_adapter(tmp_path)
    save_tensors(path, {n: t[:, :1] if "lora_B" in n else t for n, t in tensors.items()})
    with pytest.raises(StateError, match="do not fit"):
        read_adapter(tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StateError, match="not a whole safetensors file"):
        read_adapter(tmp_path)
    save_tensors(path, {f"base_model.model.{Q}.lora_embedding_A": torch.ones(2, 2)})
    with pytest.raises(StateError, match="not supported"):
        read_adapter(tmp_path)


def test_modules_to_save_names_whole_modules_only():
    known = {"p.a.weight", "p.a.bias", "p.b.weight", "e.w", "e.sub.weight", "norm.weight"}
    assert modules_to_save(["p.a.weight", "p.a.bias"], known=known) == (["p.a"], [])
    assert modules_to_save(["p.a.weight", "norm.weight"], known=known) == (["norm"], ["p.a.weight"])
    assert modules_to_save(["e.w", "e.sub.weight"], known=known) == (["e"], [])
    assert modules_to_save(["e.w"], known=known) == ([], ["e.w"])
    assert modules_to_save(["alone"]) == ([], ["alone"])
    assert modules_to_save(["e.w", "e.sub.weight"], adapted=["e.sub"]) == ([], ["e.sub.weight", "e.w"])
    assert modules_to_save(["norm.weight"], adapted=["norm"], known=known) == ([], ["norm.weight"])


def test_unnamed_tensors_are_returned_and_not_written(tmp_path):
    full = {"p.a.weight": torch.ones(2), "alone": torch.ones(2)}
    assert write(tmp_path, AdapterFile({Q: pair()}, full), known={"p.a.weight", "alone"}) == ["alone"]
    assert set(read_adapter(tmp_path).full) == {"p.a.weight"}


def test_pairs_that_are_zero_are_left_out():
    zero = LoraPair(torch.zeros(2, 3), torch.zeros(4, 2), 1.0)
    fresh = LoraPair(torch.ones(2, 3), torch.zeros(4, 2), 1.0)
    file, left_out = without_zeros(AdapterFile({"a": zero, "b": fresh, "c": zero}, {"p": torch.ones(1)}))
    assert set(file.lora) == {"b"} and left_out == ["a", "c"] and set(file.full) == {"p"}
    file, left_out = without_zeros(AdapterFile({"a": zero}))
    assert set(file.lora) == {"a"} and left_out == ["a"]
    assert without_zeros(AdapterFile()) == (AdapterFile(), [])


# ---- with peft ------------------------------------------------------------------------------------------------------
def with_peft(folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(tiny_model(), str(folder)).eval()


def test_peft_loads_what_we_write_projector_included(tmp_path):
    model, file, batch, expected = trained_tiny(rank=4, alpha=10.0)
    assert write(tmp_path / "a", file, known=adapters.base_parameters(model)) == []
    assert torch.allclose(logits(with_peft(tmp_path / "a"), batch), expected, atol=1e-5)
    assert (logits(tiny_model(), batch) - expected).abs().max() > 0.1
    without = AdapterFile(file.lora, {})
    write(tmp_path / "b", without)
    assert (logits(with_peft(tmp_path / "b"), batch) - expected).abs().max() > 1e-3  # the projector takes effect


def test_peft_loads_an_adapter_without_its_zero_pairs(tmp_path):
    """Block 0 set to zero: half of the modules are in the file, and peft's logits are those of all of them merged."""
    _, file, batch, _ = trained_tiny(rank=4, alpha=10.0)
    lora = {
        m: LoraPair(torch.zeros_like(p.A_RI), torch.zeros_like(p.B_OR), p.scale) if ".layers.0." in m else p
        for m, p in file.lora.items()
    }
    whole = AdapterFile(lora, file.full)
    merged = tiny_model()
    adapters.merge(merged, whole)
    part, left_out = without_zeros(whole)
    assert len(part.lora) == len(left_out) == 7
    write(tmp_path, part, known=adapters.base_parameters(merged))
    assert torch.allclose(logits(with_peft(tmp_path), batch), logits(merged, batch), atol=1e-5)


def test_peft_loads_joined_ranks_with_patterns(tmp_path):
    model, file, batch, expected = trained_tiny()
    half = {n: LoraPair(p.A_RI, 0.5 * p.B_OR, p.scale) for n, p in file.lora.items()}
    third = {n: p for i, (n, p) in enumerate(half.items()) if i % 3 == 0}
    rest = {n: p for i, (n, p) in enumerate(half.items()) if i % 3}
    joined = concat([AdapterFile(half), AdapterFile(third, file.full), AdapterFile(rest)])
    uneven = AdapterFile({**joined.lora, next(iter(rest)): file.lora[next(iter(rest))]}, joined.full)
    write(tmp_path, uneven)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]
    assert torch.allclose(logits(with_peft(tmp_path), batch), expected, atol=1e-5)


def test_peft_loads_trained_embeddings_head_and_norms(tmp_path):
    model = tiny_model()
    adapted(model, also_train=("projector", "embeddings", "head"))
    names = ["model.language_model.norm.weight", "model.language_model.embed_tokens.weight", "lm_head.weight"]
    torch.manual_seed(6)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).add_(torch.randn_like(model.get_parameter(name)), alpha=0.1)
    batch = toy_batch(model)
    file = adapters.read_live(model, full=names)
    assert write(tmp_path, file, known=list(model.state_dict())) == []
    assert torch.allclose(logits(with_peft(tmp_path), batch), logits(model, batch), atol=1e-5)


def test_what_peft_itself_saves_is_read(tmp_path):
    _, file, batch, expected = trained_tiny()
    write(tmp_path / "ours", file)
    with_peft(tmp_path / "ours").save_pretrained(str(tmp_path / "theirs"))
    theirs = read_adapter(tmp_path / "theirs")
    model = tiny_model()
    adapters.merge(model, theirs)
    assert set(theirs.full) == set(file.full)
    assert torch.allclose(logits(model, batch), expected, atol=1e-5)


def test_the_base_is_the_one_the_tests_think(tmp_path):
    write_adapter(tmp_path, AdapterFile({Q: pair()}), base=str(tiny_path()), base_sha256="ab" * 32)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_path())
