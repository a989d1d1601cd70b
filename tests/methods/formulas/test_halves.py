"""The draws of HFT by hand, on parameter names and shapes as in Llama."""

from collections import Counter

import pytest
import torch

from mcit.methods.formulas.halves import (
    block_parts,
    decoder_container,
    draw_category,
    draw_layer,
    draw_model,
    element_mask,
    half_reset,
    matmul_share,
    outside_parts,
    part_name,
    row_mask,
    spread,
)

NORMS = ("input_layernorm", "post_attention_layernorm")


def llama(layers, hidden, ffn, vocab, *, kv=None, prefix="model."):
    kv = kv or hidden
    shapes = {f"{prefix}embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    shapes[f"{prefix}norm.weight"] = (hidden,)
    for i in range(layers):
        home = f"{prefix}layers.{i}."
        for role, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            shapes[f"{home}self_attn.{role}_proj.weight"] = (rows, hidden)
        for role in ("gate", "up"):
            shapes[f"{home}mlp.{role}_proj.weight"] = (ffn, hidden)
        shapes[f"{home}mlp.down_proj.weight"] = (hidden, ffn)
        for norm in NORMS:
            shapes[f"{home}{norm}.weight"] = (hidden,)
    return shapes


def parts_of(shapes):
    return block_parts(shapes, decoder_container(shapes))


def trained(parts, chosen, category=None):
    return sum(p.size for p in parts if p.name in chosen and category in (None, p.category))


def test_tiny_model_by_hand():
    """h 8, f 24, vocab 32, 2 layers: a block is 4*64 + 3*192 + 2*8 = 848, so 1696; half of it is 848: attention
    2*2*64 = 256, FFN (2+1)*192 = 576, norms 2*8 = 16. With embedding 256, head 256 and final norm 8: 1368 of 2216."""
    shapes = llama(2, 8, 24, 32)
    parts = parts_of(shapes)
    assert sum(p.size for p in parts) == 1696
    for seed in range(50):
        chosen = draw_category(parts, seed=seed)
        by = [trained(parts, chosen, c) for c in ("attention", "ffn", "norm")]
        assert by == [256, 576, 16] and sum(by) == 848
        outside = [n for n in shapes if part_name(n) not in {p.name for p in parts}]
        assert 848 + sum(torch.Size(shapes[n]).numel() for n in outside) == 1368


def test_llama_2_7b_by_hand():
    """32 * (4*4096^2 + 3*4096*11008 + 2*4096) = 6,476,267,520, half 3,238,133,760; with embedding and head
    2*32000*4096 = 262,144,000 it is 3,500,277,760, and with the final norm's 4,096 it is 3,500,281,856: 51.945 % of
    6,738,415,616."""
    shapes = llama(32, 4096, 11008, 32000)
    parts = parts_of(shapes)
    half = trained(parts, draw_category(parts, seed=1))
    assert sum(p.size for p in parts) == 6_476_267_520 and half == 3_238_133_760
    total = half + 262_144_000 + 4_096
    assert total == 3_500_281_856 and total / 6_738_415_616 == pytest.approx(0.51945, abs=1e-5)


def test_every_block_and_the_number_of_two_of_three_blocks():
    """Each block: 2 of 4 attention matrices, 1 of 2 norms, 1 or 2 of 3 FFN matrices; 2 in exactly 16 of 32 blocks, and
    in 2 or 3 of 5, both seen."""
    for layers, expected in ((32, {16}), (5, {2, 3})):
        parts = parts_of(llama(layers, 8, 24, 32))
        seen = set()
        for seed in range(30):
            chosen = draw_category(parts, seed=seed)
            count = Counter((p.block, p.category) for p in parts if p.name in chosen)
            assert {count[i, "attention"] for i in range(layers)} == {2}
            assert {count[i, "norm"] for i in range(layers)} == {1}
            assert {count[i, "ffn"] for i in range(layers)} <= {1, 2}
            seen.add(sum(count[i, "ffn"] == 2 for i in range(layers)))
        assert seen == expected


def test_every_part_is_trained_half_of_the_time():
    """Over 10,000 seeds each part is trained with frequency 0.5 +- 0.02; the standard error is 0.005."""
    parts = parts_of(llama(2, 8, 24, 32))
    count = Counter()
    for seed in range(10_000):
        count.update(draw_category(parts, seed=seed))
    assert len(count) == 18
    assert all(abs(n / 10_000 - 0.5) <= 0.02 for n in count.values()), count


def test_a_draw_depends_on_the_seed_alone_and_another_overlaps_by_half():
    """288 parts, half of them (144) trained; two draws share about 72, and over 40 pairs 50 % within 4 points."""
    parts = parts_of(llama(32, 8, 24, 32))
    assert draw_category(parts, seed=3) == draw_category(parts[::-1], seed=3)
    draws = [draw_category(parts, seed=seed) for seed in range(41)]
    shared = [len(a & b) / len(a) for a, b in zip(draws, draws[1:], strict=False)]
    assert all(a != b for a, b in zip(draws, draws[1:], strict=False))
    assert sum(shared) / len(shared) == pytest.approx(0.5, abs=0.04)


def test_grouped_query_attention_is_halved_exactly():
    """Q, O 4096 x 4096 and K, V 1024 x 4096: 41,943,040 numbers. Q and O would be 80 %, K and V 20 %, one of each pair
    20,971,520: 50 %. The paired draw gives nothing but the last."""
    shapes = llama(1, 4096, 64, 8, kv=1024)
    parts = [p for p in parts_of(shapes) if p.category == "attention"]
    size = {p.member[-6]: p.size for p in parts}
    total = sum(size.values())
    assert total == 41_943_040
    assert [(size["q"] + size["o"]) / total, (size["k"] + size["v"]) / total] == [0.8, 0.2]
    seen = set()
    for seed in range(100):
        chosen = draw_category(parts, seed=seed)
        assert trained(parts, chosen) == 20_971_520
        seen.add(chosen)
    assert len(seen) == 4


def test_an_odd_number_of_equal_parts_trains_the_halves_beside_the_middle():
    """Five equal experts in each of four blocks: 5 // 2 = 2 train in two blocks and 3 in the other two, 10 of 20."""
    shapes = {f"layers.{i}.mlp.expert{k}.weight": (4, 6) for i in range(4) for k in range(5)}
    parts = block_parts(shapes, "layers")
    for seed in range(20):
        chosen = draw_category(parts, seed=seed)
        per_block = Counter(name.split(".")[1] for name in chosen)
        assert sorted(per_block.values()) == [2, 2, 3, 3]


def test_independent_stages_leave_a_part_untouched_with_half_to_the_k():
    """After 1, 2, 4, 8 independent stages: 0.5, 0.25, 0.0625, 0.00390625, counted over 600 runs of 18 parts (the
    standard error is at most 0.005 for independent parts); a draw and its complement leave none."""
    parts = parts_of(llama(2, 8, 24, 32))
    names = {p.name for p in parts}
    untouched = Counter()
    for run in range(600):
        left = set(names)
        for stage in range(1, 9):
            left -= draw_category(parts, seed=run * 8 + stage)
            untouched[stage] += len(left)
    shares = {k: untouched[k] / (600 * 18) for k in (1, 2, 4, 8)}
    assert shares == pytest.approx({1: 0.5, 2: 0.25, 4: 0.0625, 8: 0.00390625}, abs=0.012)
    assert shares[8] == pytest.approx(0.00390625, rel=0.5)


def test_biases_follow_their_matrix_and_do_not_unbalance_it():
    """Q with a bias and O without are still of one size: exactly one of them trains."""
    shapes = {**llama(2, 8, 24, 32, kv=4), **{f"model.layers.{i}.self_attn.q_proj.bias": (8,) for i in range(2)}}
    parts = parts_of(shapes)
    assert part_name("model.layers.0.self_attn.q_proj.bias") in {p.name for p in parts}
    for seed in range(20):
        names = [n for n in draw_category(parts, seed=seed) if n.endswith(("q_proj", "o_proj"))]
        assert len(names) == 2 and len({n.split(".")[2] for n in names}) == 2


def test_adapters_are_pairs_and_single_targets_train_in_half_of_the_blocks():
    """Of q_proj alone in 4 blocks 2 pairs train; of one pair in one block always that one, so a draw is never empty."""
    shapes = {"model.embed_tokens.weight": (9, 8)}
    for i in range(4):
        for ending, shape in (("lora_A.default", (2, 8)), ("lora_B.default", (8, 2))):
            shapes[f"model.layers.{i}.self_attn.q_proj.{ending}.weight"] = shape
    parts = parts_of(shapes)
    assert [(p.name, p.size) for p in parts[:1]] == [("model.layers.0.self_attn.q_proj", 32)] and len(parts) == 4
    assert {len(draw_category(parts, seed=s)) for s in range(20)} == {2}
    assert {len(draw_category(parts[:1], seed=s)) for s in range(20)} == {1}


def test_layer_and_model_draws():
    """4 blocks: 2 whole ones; of 28 matrices 14 and of 8 norms 4, whatever their category."""
    parts = parts_of(llama(4, 8, 24, 32))
    by_layer = draw_layer(parts, seed=1)
    assert len({p.block for p in parts if p.name in by_layer}) == 2 and len(by_layer) == 18
    by_model = draw_model(parts, seed=1)
    kinds = Counter(p.category == "norm" for p in parts if p.name in by_model)
    assert kinds == {False: 14, True: 4}
    assert len({draw_model(parts, seed=s) for s in range(5)}) == 5


def test_a_seed_draws_what_it_always_drew():
    """Three blocks, seeds 0 to 3: whole blocks; FFN matrices of each block; norms; rows of three.

    Recorded once, not derived: the complement of each is as good a half, but a seed in a published recipe, and a run that a
    later version continues, must train the half that they began with.
    """
    parts = parts_of(llama(3, 8, 24, 32))

    def drawn(seed):
        layer, category, model = (draw(parts, seed=seed) for draw in (draw_layer, draw_category, draw_model))
        count = Counter(p.block for p in parts if p.name in category and p.category == "ffn")
        norms = [(p.block, NORMS.index(p.member)) for p in parts if p.name in model and p.category == "norm"]
        blocks, rows = {p.block for p in parts if p.name in layer}, row_mask(3, seed=seed).tolist()
        return blocks, [count[i] for i in range(3)], norms, rows

    assert [drawn(seed) for seed in range(4)] == [
        ({2}, [1, 2, 2], [(0, 0), (0, 1), (1, 1)], [False, True, False]),
        ({0, 2}, [1, 2, 2], [(0, 1), (1, 0), (2, 1)], [True, True, False]),
        ({1}, [2, 1, 1], [(0, 1), (2, 0), (2, 1)], [True, False, False]),
        ({1, 2}, [2, 1, 2], [(1, 1), (2, 0), (2, 1)], [True, False, True]),
    ]


def test_the_decoder_is_found_beside_tower_and_projector():
    shapes = llama(2, 8, 24, 32, prefix="model.language_model.")
    shapes |= {f"model.vision_tower.encoder.layers.{i}.mlp.fc{k}.weight": (4, 4) for i in range(30) for k in (1, 2)}
    shapes |= {"model.mm_projector.0.weight": (4, 4), "model.mm_projector.2.weight": (4, 4)}
    assert decoder_container(shapes) == "model.language_model.layers"
    flat = {**llama(2, 8, 24, 32), "model.mm_projector.0.weight": (4, 4), "model.visual.blocks.0.fc.weight": (4, 4)}
    assert decoder_container(flat) == "model.layers"
    assert decoder_container(["net.0.weight"]) is None


def test_blocks_are_numbered_modules_beside_the_embeddings():
    """Embeddings at the top have their blocks at the top. A block may have a parameter of its own, three names deep below
    nothing; numbered parameters without a module between, such as a list of scales, are no blocks."""
    assert decoder_container(llama(2, 8, 24, 32, prefix="")) == "layers"
    assert decoder_container(["embed_tokens.weight", "layers.0.weight"]) == "layers"
    assert decoder_container(["embed_tokens.weight", "scales.0", "scales.1"]) is None


def test_only_members_of_numbered_blocks_are_parts():
    """Below the container a number, below that a name: neither a shared module without a number nor a block's own matrix."""
    shapes = {"layers.0.fc.weight": (2, 3), "layers.shared.fc.weight": (2, 3), "layers.1.weight": (2, 3)}
    assert [(p.name, p.block, p.member, p.size) for p in block_parts(shapes, "layers")] == [("layers.0.fc", 0, "fc", 6)]


def test_names():
    for name in ("a.0.q.base_layer.weight", "a.0.q.base_layer.bias", "a.0.q.lora_A.default.weight", "a.0.q.weight"):
        assert part_name(name) == "a.0.q"
    for name in ("a.0.experts.gate_up_proj_bias", "a.0.experts.gate_up_proj"):
        assert part_name(name) == "a.0.experts.gate_up_proj"


def test_masks():
    """Half of 10 rows is 5; of 10,000 entries about 5,000 (standard deviation 50)."""
    mask_O = row_mask(10, seed=1)
    assert mask_O.sum() == 5 and torch.equal(mask_O, row_mask(10, seed=1))
    assert not torch.equal(mask_O, row_mask(10, seed=2))
    assert {int(row_mask(3, seed=s).sum()) for s in range(20)} == {1, 2}
    mask_OI = element_mask((100, 100), seed=1)
    assert abs(int(mask_OI.sum()) - 5000) < 250 and torch.equal(mask_OI, element_mask((100, 100), seed=1))
    wide = spread(torch.tensor([True, False]), (2, 3))
    assert wide.tolist() == [[True] * 3, [False] * 3]


def test_half_reset_by_hand():
    """Tuned [2, 4], base [1, 1], keep the first: [2, 1]."""
    out = half_reset(torch.tensor([2.0, 4.0]), torch.ones(2), torch.tensor([True, False]))
    assert out.tolist() == [2.0, 1.0]


def test_matmul_share_by_hand():
    """(1 + 1 + 0.5) / 3 = 0.8333; with recomputation (1 + 1 + 1 + 0.5) / 4 = 0.875."""
    assert matmul_share(0.5, checkpointing=False) == pytest.approx(0.8333, abs=1e-4)
    assert matmul_share(0.5, checkpointing=True) == 0.875


def test_matrices_outside_the_blocks_by_name():
    """Embeddings and head are one part each, a bias goes with its matrix; a lone vector and the projector are none."""
    shapes = {
        "m.embed_tokens.weight": (9, 4),
        "m.layers.0.q.weight": (4, 4),
        "m.projector.weight": (4, 4),
        "lm_head.weight": (9, 4),
        "lm_head.bias": (9,),
        "m.wte.scale": (4,),
    }
    parts = outside_parts(shapes)
    assert [(p.name, p.category) for p in parts] == [("lm_head", "other"), ("m.embed_tokens", "other")]
    assert [p.name for p in outside_parts({"lm_head.weight": (9, 4)})] == ["lm_head"]
