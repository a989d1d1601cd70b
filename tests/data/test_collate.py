"""Padding and pixels of a batch."""

from dataclasses import replace

import torch

from mcit.core.types import Sample
from mcit.data.collate import collate
from tests.fakes.rows import row


def sample(ids, labels, identity="r", tokens=(), rows=(), **pixels):
    """A sample by hand; `tokens` and `rows` are the names with values per token and per row."""
    one = row("q", "a", id=identity)
    kinds = {"token_keys": frozenset(tokens), "row_keys": frozenset(rows)}
    return Sample(one, torch.tensor(ids), torch.tensor(labels), pixels, **kinds)


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
    typed = sample([5, 6, 7], [-100, 6, 7], tokens=["token_type_ids"], token_type_ids=torch.tensor([1, 1, 0]))
    batch = collate([typed, B], stream="task", pad_id=0)
    assert batch.pixels["token_type_ids"].tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    left = collate([typed, B], stream="task", pad_id=0, side="left")
    assert left.pixels["token_type_ids"].tolist()[0] == [0, 0, 1, 1, 0]


def test_tables_per_token_are_padded_on_the_tokens_side_and_by_zeros_behind():
    """Mllama's (T, images, tiles): three tokens of one image beside five of two; text rows see nothing."""
    key = "cross_attention_mask"
    one = sample([5, 6, 7], [-100, 6, 7], tokens=[key], cross_attention_mask=torch.ones(3, 1, 2, dtype=torch.int64))
    two = sample([1] * 5, [1] * 5, tokens=[key], cross_attention_mask=torch.ones(5, 2, 2, dtype=torch.int64))
    left = collate([one, two, B], stream="task", pad_id=0, side="left").pixels[key]
    assert left.shape == (3, 5, 2, 2)
    assert left[0, :, 0, 0].tolist() == [0, 0, 1, 1, 1] and left[0, :, 1].sum() == 0
    assert left[1].sum() == 20 and left[2].sum() == 0
    assert collate([one, two], stream="task", pad_id=0).pixels[key][0, :, 0, 0].tolist() == [1, 1, 1, 0, 0]


def test_values_per_row_have_a_line_for_every_row():
    """Idefics3's (rows, images, ...): a text row between two others gets zeros, not the next row's values."""
    one = sample([1], [-100], rows=["pixel_values"], pixel_values=torch.ones(1, 1, 3))
    two = sample([1], [-100], rows=["pixel_values"], pixel_values=torch.full((1, 2, 3), 2.0))
    joined = collate([one, B, two], stream="task", pad_id=0).pixels["pixel_values"]
    assert joined.shape == (3, 2, 3)
    assert joined[:, :, 0].tolist() == [[1, 0], [0, 0], [2, 2]]


def test_image_positions_are_padded_with_false():
    """Two image positions in the first row, none in the second; without any image there is no mask."""
    shown = replace(A, image_T=torch.tensor([True, True, False]))
    batch = collate([shown, B], stream="task", pad_id=0)
    assert batch.image_BT.tolist() == [[True, True, False, False, False], [False] * 5]
    assert collate([A, B], stream="task", pad_id=0).image_BT is None
