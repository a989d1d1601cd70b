import pytest

from mcit.core.errors import PlanError
from mcit.models.units import (
    audit,
    block_of,
    block_units,
    decoder_prefix,
    dtype_problems,
    group_of,
    lora_targets,
    outermost,
    weight_units,
)
from tests.fakes.models import adapted, tiny_model


def test_default_targets_are_the_linears_below_the_decoder():
    """2 layers x (4 attention + 3 mlp) = 14; nothing of tower, projector or head."""
    model = tiny_model()
    found = lora_targets(model, "language-linear")
    assert len(found) == 14 and found == sorted(found)
    assert decoder_prefix(model) == "model.language_model"
    assert all(n.startswith("model.language_model.layers.") for n in found)


def test_the_largest_modules_of_a_group():
    inner = tiny_model().model
    assert outermost(inner, "tower") == [inner.vision_tower]
    assert outermost(inner, "tower", "projector") == [inner.vision_tower, inner.multi_modal_projector]


def test_named_targets_match_at_a_dot_and_never_the_tower_unless_asked():
    model = tiny_model()
    found = lora_targets(model, ["q_proj", "mlp.up_proj"])
    assert len(found) == 4 and not any("vision" in n for n in found)
    towers = lora_targets(model, ["vision_tower.encoder.layers.0.self_attn.q_proj"])
    assert towers == ["model.vision_tower.encoder.layers.0.self_attn.q_proj"]
    with pytest.raises(PlanError, match="'_proj' matches no linear"):
        lora_targets(model, ["_proj"])
    with pytest.raises(PlanError) as error:
        lora_targets(model, ["qproj"])
    assert "did you mean 'q_proj'" in str(error.value)


def test_groups_by_name():
    assert group_of("model.multi_modal_projector.linear_1.weight") == "projector"
    assert group_of("model.vision_tower.encoder.layers.0.mlp.fc1.bias") == "tower"
    assert group_of("visual.merger.mlp.0.weight") == "projector"
    assert group_of("lm_head.weight") == "head"
    assert group_of("model.language_model.embed_tokens.weight") == "embeddings"
    assert group_of("model.language_model.norm.weight") == "language"


def test_units_pair_a_with_b_and_carry_shape_scale_and_block():
    model = tiny_model()
    units = {u.name: u for u in adapted(model, rank=4, alpha=8.0)}
    q = units["model.language_model.layers.1.self_attn.k_proj"]
    assert (q.kind, q.shape, q.scale, q.block) == ("lora", (32, 64), 2.0, "model.language_model.layers.1")
    assert sorted(q.params) == ["A", "B"]
    p = units["model.multi_modal_projector.linear_1.bias"]
    assert (p.kind, p.shape, p.params) == ("tensor", (64,), {"weight": p.name})
    assert len(units) == 14 + 4 and list(units) == sorted(units)


def test_half_a_pair_is_a_unit_of_one_role():
    names = ["x.lora_B.default.weight"]
    (unit,) = weight_units({names[0]: (4, 2)}, names, adapter="default", scales={"x": 1.0})
    assert unit.kind == "lora" and list(unit.params) == ["B"]


def test_block_of():
    assert block_of("a.layers.3.mlp.w") == "a.layers.3"
    assert block_of("a.norm.weight") == "a.norm"


def test_audit_counts_and_dtypes():
    model = tiny_model(dtype="bf16")
    adapted(model)
    rows = {r["group"]: r for r in audit(model)}
    assert rows["projector"]["trained"] == 32 * 64 + 64 + 64 * 64 + 64 and rows["projector"]["frozen"] == 0
    assert rows["tower"]["trained"] == 0 and rows["tower"]["dtypes"] == ["frozen bfloat16"]
    assert rows["adapter"]["dtypes"] == ["trained float32"]
    assert dtype_problems(model) == []
    model.lm_head.weight.requires_grad_(True)
    assert dtype_problems(model) == ["lm_head.weight"]


def test_the_audit_shows_quantised_weights_with_the_numbers_they_stand_for():
    """2 layers x (q, o: 64 x 64; k, v: 32 x 64; three of 128 x 64) = 73,728 numbers, and 5 norms of 64 in fp32."""
    for dtype, stored in (("nf4", "nf4"), ("int8", "int8")):
        model = tiny_model(dtype=dtype)
        adapted(model)
        rows = {r["group"]: r for r in audit(model)}
        assert rows["language"]["frozen"] == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64) + 5 * 64
        assert rows["language"]["dtypes"] == sorted(["frozen float32", f"frozen {stored}"])
        assert rows["tower"]["dtypes"] == rows["head"]["dtypes"] == ["frozen float32"]
        assert rows["projector"]["dtypes"] == rows["adapter"]["dtypes"] == ["trained float32"]


def test_block_units_gather_the_pairs_of_a_block():
    model = tiny_model()
    units = adapted(model, rank=4, alpha=8.0)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    first, second = block_units(units, shapes)
    assert (first.name, first.kind, first.block) == ("model.language_model.layers.0", "block", first.name)
    assert len(first.params) == len(second.params) == 14
    q = "model.language_model.layers.0.self_attn.q_proj"
    assert first.params[f"{q}:A"] == f"{q}.lora_A.default.weight"
    lora = {p for u in units if u.kind == "lora" for p in u.params.values()}
    assert {*first.params.values(), *second.params.values()} == lora
    assert first.shape == (sum(shapes[p][0] * shapes[p][1] for p in first.params.values()),)


def test_block_sizes_of_known_models():
    """The MLP linears of a block at rank 8: 40 960 numbers (ViT, 512 and 2048), 362 496 (LLaMA-7B, 4096 and 11008)."""
    for linears, size in ((["up", "down"], 40_960), (["up", "down", "gate"], 362_496)):
        wide, narrow = (2048, 512) if len(linears) == 2 else (11_008, 4096)
        shapes = {}
        for name in linears:
            o, i = (narrow, wide) if name == "down" else (wide, narrow)
            shapes |= {
                f"layers.0.{name}.lora_A.default.weight": (8, i),
                f"layers.0.{name}.lora_B.default.weight": (o, 8),
            }
        units = weight_units(shapes, shapes, adapter="default", scales={f"layers.0.{n}": 1.0 for n in linears})
        (one,) = block_units(units, shapes)
        assert one.shape == (size,)
