"""Masks of entries by hand; how HFT keeps them is in tests/methods/test_hft.py."""

import torch

from mcit.core.types import WeightUnit
from mcit.methods.formulas.entries import decoder_units, drawn_mask, entries_digest


def unit(name, block):
    return WeightUnit(name, "tensor", {"weight": f"{name}.weight"}, (4, 2), block=block)


def test_the_decoder_is_the_longest_list_of_numbered_blocks():
    units = [unit("a", "tower.0"), unit("b", "m.layers.0"), unit("c", "m.layers.1"), unit("d", "norm")]
    assert [u.name for u in decoder_units(units)] == ["b", "c"] and decoder_units(units[3:]) == []


def test_rows_and_entries_have_masks_of_their_own_shape():
    given = unit("m.layers.0.q", "m.layers.0")
    assert drawn_mask(given, "row", seed=(1, "hft")).shape == (4,)
    assert drawn_mask(given, "element", seed=(1, "hft")).shape == (4, 2)


def test_a_digest_is_of_the_masked_entries_alone():
    weight, mask = torch.zeros(4, 2), torch.tensor([True, False, False, True])
    before = entries_digest(weight, mask)
    weight[1] = 1.0
    assert entries_digest(weight, mask) == before
    weight[3, 1] = 1e-7
    assert entries_digest(weight, mask) != before
