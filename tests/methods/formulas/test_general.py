"""States of a small pool against a plain computation: types apart, image slots and padding out, any number of ranks."""

import pytest
import torch

from mcit.core.errors import StateError, TrainingError
from mcit.core.types import Batch, ModelOutput
from mcit.methods.formulas import general
from mcit.methods.formulas.general import (
    build_hidden,
    build_logits,
    build_states,
    constrained,
    places_of,
    real_rows,
    row_hidden,
)
from mcit.methods.formulas.margin import unpack
from tests.fakes.rows import row

D, V = 9, 7  # D is one feature more than a byte of states holds
ROWS = [row("q", "a", id="t0"), row("q", "a", id="i0", images=("x.png",)), row("q", "a", id="t1")]
LENGTHS = {"t0": 3, "i0": 6, "t1": 5}
SLOTS = 2
"""The picture row's first positions."""


def hidden_of(place, length):
    return torch.randn(length, D, generator=torch.Generator().manual_seed(place)) * (place + 1)


class Base:
    """The part of a context that building uses; rank r of `world` gets every world-th row, one row per batch."""

    def __init__(self, rank=0, world=1, others=()):
        self.rank, self.world, self.others, self.sums, self.passes = rank, world, list(others), [], 0

    def base_pass(self, rows, *, logits=False):
        self.passes += 1
        for place, item in enumerate(rows):
            if place % self.world != self.rank:
                continue
            length = LENGTHS[item.id]
            attention = torch.zeros(1, length + 2, dtype=torch.int64)
            attention[0, :length] = 1
            image = torch.zeros(1, length + 2, dtype=torch.bool)
            image[0, :SLOTS] = bool(item.images)
            labels = torch.full_like(attention, -100)
            labels[0, 1:length] = 1
            batch = Batch("base", (item,), attention, labels, attention, {}, length - 1, image if item.images else None)
            hidden = torch.full((1, length + 2, D), 100.0)
            hidden[0, :length] = hidden_of(place, length)
            scores = torch.randn(length - 1, V, generator=torch.Generator().manual_seed(50 + place))
            yield [place], batch, ModelOutput(scores, labels, torch.zeros(length - 1).long(), labels, {"last": hidden})

    def all_sum(self, tensor):
        self.sums.append(tensor.clone())
        return sum((other[len(self.sums) - 1] for other in self.others), tensor)


def text_hidden(place):
    hidden = hidden_of(place, LENGTHS[ROWS[place].id])
    return hidden[SLOTS:] if ROWS[place].images else hidden


def test_states_and_thresholds_of_each_type():
    """Text: 8 positions of rows 0 and 2; image-text: 4 of row 1, its two slots and all padding left out."""
    tensors, index = build_states(Base(), ROWS, multiplier=1.0)
    assert index == {"rows": {"t0": [0, 3, 1], "i0": [3, 7, 0], "t1": [7, 12, 1]}, "types": ["image-text", "text"]}
    pools = {0: text_hidden(1), 1: torch.cat([text_hidden(0), text_hidden(2)])}
    for kind, values in pools.items():
        std = values.double().std(0, unbiased=False)
        assert torch.allclose(tensors["high"][kind].double(), values.double().mean(0) + std, rtol=1e-6)
        assert torch.allclose(tensors["low"][kind].double(), values.double().mean(0) - std, rtol=1e-6)
    assert tensors["states"].shape == (12, 2, 2) and tensors["states"].dtype == torch.uint8
    bits = unpack(tensors["states"], D)
    for place, item in enumerate(ROWS):
        start, end, kind = index["rows"][item.id]
        assert torch.equal(bits[start:end, 0], text_hidden(place) >= tensors["high"][kind])
        assert torch.equal(bits[start:end, 1], text_hidden(place) <= tensors["low"][kind])


@pytest.mark.parametrize("build", [
    lambda ctx: build_states(ctx, ROWS, multiplier=0.5),
    lambda ctx: build_hidden(ctx, ROWS),
    lambda ctx: build_logits(ctx, ROWS, count=3, temperature=2.0),
])  # fmt: skip
def test_two_ranks_give_the_bits_of_one(build, monkeypatch):
    """What each rank puts into a sum is found by running it with the other's sums so far; the last rounds agree."""
    whole, index = build(Base())
    known = {0: [], 1: []}
    for _ in range(8):  # each round both ranks get one sum further
        for rank in (0, 1):
            ctx = Base(rank, 2, [known[1 - rank]])
            try:
                found, found_index = build(ctx)
            except IndexError:
                found = None
            known[rank] = ctx.sums
    assert found_index == index and found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_large_pools_run_the_base_twice(monkeypatch):
    """Held hidden states save the second pass; the result is the same bits."""
    once = Base()
    held, _ = build_states(once, ROWS, multiplier=1.0)
    monkeypatch.setattr(general, "HELD_BYTES", 100)
    twice = Base()
    again, _ = build_states(twice, ROWS, multiplier=1.0)
    assert (once.passes, twice.passes) == (1, 2) and all(torch.equal(held[k], again[k]) for k in held)


def test_hidden_states_are_held_up_to_the_limit_and_no_further(monkeypatch):
    """12 text positions of 9 features in fp32 are 432 bytes: held at a limit of 432, computed again at 431."""
    for limit, passes in ((432, 1), (431, 2)):
        monkeypatch.setattr(general, "HELD_BYTES", limit)
        base = Base()
        build_hidden(base, ROWS)
        assert base.passes == passes


def test_hidden_is_kept_in_bf16():
    tensors, index = build_hidden(Base(), ROWS)
    assert torch.equal(tensors["hidden"], torch.cat([text_hidden(p) for p in range(3)]).bfloat16())
    assert index == {"rows": {"t0": [0, 3, 0], "i0": [3, 7, 0], "t1": [7, 12, 0]}, "types": []}  # one kind for all


def test_an_empty_pool_has_no_entries():
    """No rows: no positions, and no width either, as nothing says how wide they would be."""
    tensors, index = build_hidden(Base(), [])
    assert tensors["hidden"].shape == (0, 0) and index == {"rows": {}, "types": []}


def test_logits_keep_the_likeliest_tokens():
    """Rows have 2, 5 and 4 supervised tokens; three kept of seven, most likely first."""
    tensors, index = build_logits(Base(), ROWS, count=3, temperature=2.0)
    assert tensors["ids"].shape == tensors["log_p"].shape == (11, 3) and index["rows"]["i0"][:2] == [2, 7]
    scores = torch.randn(2, V, generator=torch.Generator().manual_seed(50))
    expected = (scores / 2).log_softmax(-1).sort(descending=True)
    assert torch.equal(tensors["ids"][:2].long(), expected.indices[:, :3])
    assert torch.allclose(tensors["log_p"][:2], expected.values[:, :3])
    assert build_logits(Base(), ROWS, count=99, temperature=2.0)[0]["ids"].shape == (11, V)


def test_a_row_never_gets_its_neighbours_states():
    _, index = build_states(Base(), ROWS, multiplier=1.0)
    assert places_of(index, ROWS[2], 5) == (7, 12, 1)
    with pytest.raises(StateError, match="has 4 positions, its states of the base model are for 5"):
        places_of(index, ROWS[2], 4)
    with pytest.raises(StateError, match="has no states"):
        places_of(index, row("q", "a", id="new"), 5)


def test_masks():
    """Padding and image slots are not constrained; a row without supervision is not a row of the step."""
    (batch,) = [b for _, b, _ in Base().base_pass(ROWS) if b.rows[0].id == "i0"]
    assert constrained(batch).tolist() == [[False] * 2 + [True] * 4 + [False] * 2]
    assert real_rows(batch) == [0]
    labels = torch.full_like(batch.labels_BT, -100)
    labels[0, 0] = 1  # the first position is predicted by nothing
    assert real_rows(Batch("gere", batch.rows, labels, labels, labels, {}, 0)) == []
    labels[0, 1] = 1  # the second by the first: a one-token answer counts
    assert real_rows(Batch("gere", batch.rows, labels, labels, labels, {}, 1)) == [0]
    with pytest.raises(TrainingError, match="no hidden states"):
        row_hidden(ModelOutput(labels, labels, labels, labels), constrained(batch), 0)


def test_a_pool_without_text_positions_is_refused(monkeypatch):
    monkeypatch.setitem(LENGTHS, "i0", SLOTS)
    with pytest.raises(StateError, match="image-text rows of the pool have no text position"):
        build_states(Base(), ROWS, multiplier=1.0)
