"""Unequal shapes in one tensor."""

import torch

from mcit.data.ragged import join


def test_longest_of_each_axis():
    """(1, 2, 1) and (2, 1, 3) become (3, 2, 3), filled with zeros at the end of each axis."""
    joined = join([torch.ones(1, 2, 1), torch.full((2, 1, 3), 5.0)])
    assert joined.tolist() == [[[1, 0, 0], [1, 0, 0]], [[5, 5, 5], [0, 0, 0]], [[5, 5, 5], [0, 0, 0]]]


def test_equal_shapes_and_types_stay():
    parts = [torch.tensor([[1, 2]]), torch.tensor([[3, 4]])]
    assert join(parts).tolist() == [[1, 2], [3, 4]] and join(parts).dtype == torch.int64
