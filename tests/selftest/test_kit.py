"""Rows, batches and the reference of the self-test."""

import math

import pytest
import torch

from mcit.core.schema import EngineConfig
from mcit.selftest.kit import (
    Reference,
    backward,
    difference,
    distance,
    exact_fp32,
    gradients,
    make_kit,
    norm,
    same,
)


@pytest.fixture(scope="module")
def kit(tmp_path_factory, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        return make_kit(EngineConfig(device="cpu"), tmp_path_factory.mktemp("kit"))


def test_rows_depend_on_the_seed_alone_and_answers_differ_in_length(kit):
    first, again, other = kit.rows(4, seed=0), kit.rows(4, seed=0), kit.rows(4, seed=1)
    assert all(a.input_ids_BT.equal(b.input_ids_BT) for a, b in zip(first, again, strict=True))
    assert not first[0].pixels["pixel_values"].equal(other[0].pixels["pixel_values"])
    assert len({row.target_count for row in first}) > 1
    assert [bool(r.pixels) for r in kit.rows(4, seed=0, image=lambda i: i % 2 == 0)] == [True, False] * 2


def test_rows_together_are_padded_and_keep_their_tokens(kit):
    rows = kit.rows(3, seed=0, image=lambda i: i != 1)
    batch = kit.together(rows)
    assert batch.target_count == sum(r.target_count for r in rows) == int((batch.labels_BT[:, 1:] != -100).sum())
    for line, row in enumerate(rows):
        length = row.input_ids_BT.shape[1]
        assert batch.input_ids_BT[line, :length].equal(row.input_ids_BT[0])
        assert int(batch.attention_BT[line].sum()) == length
    assert len(batch.pixels["pixel_values"]) == 2
    assert [len(b.rows) for b in kit.mine(rows, 2)] == [2, 1]


def test_the_reference_is_the_mean_over_all_answer_tokens(kit):
    """Rows with different numbers of tokens: the mean of the rows' sums over all tokens, not of their means."""
    rows, reference = kit.rows(3, seed=0), Reference(kit)
    with torch.no_grad():
        whole = float(reference.loss(rows))
        parts = [(float(reference.loss([row])), row.target_count) for row in rows]
    assert whole == pytest.approx(sum(mean * n for mean, n in parts) / sum(n for _, n in parts), rel=1e-5)
    assert whole != pytest.approx(sum(mean for mean, _ in parts) / 3, rel=1e-4)


def test_engine_and_reference_start_alike(kit):
    rows = kit.rows(2, seed=0)
    _, engine = kit.build()
    backward(engine, kit.mine(rows, 2))
    reference = Reference(kit)
    reference.loss(rows).backward()
    found = reference.gradients()
    assert set(found) == set(gradients(engine)) and norm(found) > 0
    engine.discard()


def test_distances_by_hand():
    """(3, 4) has norm 5; (3, 4) against (0, 4) is 3 apart, relative to 4."""
    a, b = {"x": torch.tensor([3.0]), "y": torch.tensor([4.0])}, {"x": torch.tensor([0.0]), "y": torch.tensor([4.0])}
    assert norm(a) == 5 and norm(difference(a, b)) == 3 and distance(a, b) == 0.75
    assert same(a, a) and not same(a, b)
    assert distance({"x": torch.tensor([math.nan])}, {"x": torch.tensor([1.0])}) == math.inf
    assert distance(a, {"x": torch.zeros(1)}) == math.inf


def test_tf32_is_off_in_the_block_and_as_before_after_it():
    before = torch.backends.cudnn.allow_tf32
    with exact_fp32():
        assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32 == before
