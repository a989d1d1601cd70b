"""Padding and pixels of a batch."""

from dataclasses import replace

import torch

from mcit.core.types import Sample
from mcit.data.collate import collate
from tests.fakes.rows import row


def sample(ids, labels, identity="r", **pixels):
    """A sample by hand."""
    one = row("q", "a", id=identity)
    return Sample(one, torch.tensor(ids), torch.tensor(labels), pixels)


A = sample([5, 6, 7], [-100, 6, 7], "a", pixel_values=torch.ones(1, 3, 2, 2))
B = sample([8, 9, 0, 3, 4], [-100, -100, 0, -100, 4], "b")


def test_right_padding():
    """Supervised tokens: 2 and 2. A real token that equals the pad id keeps its attention."""
    batch = collate([A, B], stream="task", pad_id=0)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 0, 0], [8, 9, 0, 3, 4]]
    assert batch.labels_BT.tolist() == [[-100, 6, 7, -100, -100], [-100, -100, 0, -100, 4]]
    assert batch.attention_BT.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.target_count == 4 and batch.stream == "task" and batch.row_ids == ("a", "b")
    assert batch.input_ids_BT.dtype == batch.labels_BT.dtype == batch.attention_BT.dtype == torch.int64


def test_left_padding_for_generation():
    batch = collate([A, B], stream="task", pad_id=0, side="left")
    assert batch.input_ids_BT.tolist()[0] == [0, 0, 5, 6, 7]
    assert batch.attention_BT.tolist()[0] == [0, 0, 1, 1, 1]


def test_a_label_at_the_first_position_predicts_nothing():
    """Position 0 has no position before it, so it is not counted: 1, not 2."""
    assert collate([sample([1, 2], [1, 2])], stream="task", pad_id=0).target_count == 1


def test_pictures_are_joined_in_row_order_and_text_rows_add_none():
    two = sample([1], [-100], pixel_values=torch.full((2, 3, 2, 2), 7.0))
    batch = collate([two, B, A], stream="task", pad_id=0)
    assert batch.pixels["pixel_values"].shape == (3, 3, 2, 2)
    assert batch.pixels["pixel_values"][:, 0, 0, 0].tolist() == [7, 7, 1]
    assert collate([B], stream="task", pad_id=0).pixels == {}


def test_ragged_tiles_are_filled_with_zeros():
    wide = sample([1], [-100], pixel_values=torch.ones(1, 3, 3, 2, 2))
    small = sample([1], [-100], pixel_values=torch.ones(1, 1, 3, 2, 2))
    joined = collate([small, wide], stream="task", pad_id=0).pixels["pixel_values"]
    assert joined.shape == (2, 3, 3, 2, 2)
    assert joined[0, 1:].abs().sum() == 0 and joined[0, 0].sum() == 12 and joined[1].sum() == 36


def test_types_per_token_are_padded_like_tokens():
    typed = sample([5, 6, 7], [-100, 6, 7], token_type_ids=torch.tensor([1, 1, 0]))
    batch = collate([typed, B], stream="task", pad_id=0)
    assert batch.pixels["token_type_ids"].tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    left = collate([typed, B], stream="task", pad_id=0, side="left")
    assert left.pixels["token_type_ids"].tolist()[0] == [0, 0, 1, 1, 0]


def test_image_positions_are_padded_with_false():
    """Two image positions in the first row, none in the second; without any image there is no mask."""
    shown = replace(A, image_T=torch.tensor([True, True, False]))
    batch = collate([shown, B], stream="task", pad_id=0)
    assert batch.image_BT.tolist() == [[True, True, False, False, False], [False] * 5]
    assert collate([A, B], stream="task", pad_id=0).image_BT is None
