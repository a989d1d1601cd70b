"""What a pack holds: every needed position of every row once, shared pictures once, and nothing where it cannot be told."""

from dataclasses import replace

import pytest
import torch

from mcit.engine.pack import Run, like_probe, pack_rows
from tests.fakes.models import tiny_model
from tests.fakes.packs import questions
from tests.fakes.toy import toy_batch


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_the_picture_prefix_is_there_once(model):
    """Three questions of one picture and one of another: 20 common positions, then what is each row's own."""
    batch = questions(model, [3, 1], prefix=20, own=(6, 9, 4, 7))
    pack = pack_rows(batch, whole=True)
    assert len(pack) == 20 + 6 + 9 + 4 + 27
    assert pack.runs == (Run(0, 20), Run(20, 6, 0, 20), Run(26, 9, 0, 20), Run(35, 4, 0, 20), Run(39, 27))
    assert pack.pixels["pixel_values"].shape[0] == 2
    for b, row_T in enumerate(batch.place_ids):
        place_T = pack.place_BT[b, : len(row_T)]
        assert torch.equal(pack.input_ids_P[place_T], row_T)
        assert torch.equal(pack.positions_P[place_T], torch.arange(len(row_T)))
        assert (pack.place_BT[b, len(row_T) :] == -1).all()


def test_what_nothing_attends_to_is_left_out(model):
    """The last token of an answer predicts nothing and nothing sees it."""
    batch = questions(model, [2], prefix=20, own=(6, 9))
    pack = pack_rows(batch, whole=False)
    assert len(pack) == 20 + 5 + 8
    assert (pack.place_BT >= 0).sum() == 25 + 28


def test_a_row_that_teaches_nothing_stays_whole(model):
    batch = questions(model, [2], prefix=20, own=(6, 9))
    labels = batch.labels_BT.clone()
    labels[0] = -100
    pack = pack_rows(replace(batch, labels_BT=labels), whole=False)
    assert len(pack) == 20 + 6 + 8


def test_equal_file_names_with_other_pixels_are_not_shared(model):
    """A view of a row may show the same file cropped."""
    batch = questions(model, [2], prefix=20, own=(6, 9))
    pixels = batch.pixels["pixel_values"].clone()
    pixels[1] += 0.5
    pack = pack_rows(replace(batch, pixels={"pixel_values": pixels}), always=True)
    assert pack.runs == (Run(0, 26), Run(26, 29)) and len(pack.pixels["pixel_values"]) == 2


def test_a_question_before_its_picture_shares_nothing(model):
    batch = questions(model, [2], prefix=20, own=(6, 9))
    ids = batch.input_ids_BT.clone()
    ids[1, 0] += 1
    pack = pack_rows(replace(batch, input_ids_BT=ids), always=True)
    assert [run.shared for run in pack.runs] == [0, 0] and len(pack.pixels["pixel_values"]) == 2


def test_two_copies_of_a_row_are_one(model):
    batch = questions(model, [2], prefix=20, own=(6, 6))
    ids, labels = batch.input_ids_BT.clone(), batch.labels_BT.clone()
    ids[1], labels[1] = ids[0], labels[0]
    pack = pack_rows(replace(batch, input_ids_BT=ids, labels_BT=labels))
    assert pack.runs == (Run(0, 26),) and torch.equal(pack.place_BT[0], pack.place_BT[1])


def test_little_to_save_is_no_pack(model):
    batch = toy_batch(model)
    assert pack_rows(batch) is None and len(pack_rows(batch, always=True)) == batch.input_ids_BT.numel()


def test_rows_padded_on_the_left_are_no_pack(model):
    batch = questions(model, [2], prefix=20, own=(6, 9))
    flipped = replace(batch, attention_BT=batch.attention_BT.flip(1))
    assert pack_rows(flipped, always=True) is None


@pytest.mark.parametrize("entries,packed", [(6, True), (5, False)])
def test_tiles_go_to_rows_by_their_picture_positions(model, entries, packed):
    """Two rows with equally many picture positions: six tiles are three each, five cannot be told apart."""
    batch = questions(model, [1, 1], prefix=20, own=(6, 9))
    pack = pack_rows(replace(batch, pixels={"pixel_values": torch.randn(entries, 3, 8, 8)}), always=True)
    assert (pack is not None) == packed


def test_values_per_token_are_no_pack(model):
    batch = questions(model, [2], prefix=20, own=(6, 9))
    more = {**batch.pixels, "token_type_ids": torch.zeros_like(batch.input_ids_BT)}
    assert pack_rows(replace(batch, pixels=more), always=True) is None


def test_values_per_row_go_with_the_row_that_is_kept(model):
    batch = questions(model, [2, 1], prefix=20, own=(6, 9, 5))
    more = {**batch.pixels, "batch_num_images": torch.tensor([1, 1, 1])}
    pack = pack_rows(replace(batch, pixels=more, row_keys=frozenset({"batch_num_images"})))
    assert pack.pixels["batch_num_images"].tolist() == [1, 1]


def test_the_probe_has_two_rows_of_one_picture(model):
    batch = questions(model, [1, 1], prefix=20, own=(6, 9))
    probe = like_probe(batch)
    assert len(probe.rows) == 3 and probe.rows[0] is probe.rows[1]
    pack = pack_rows(probe, always=True)
    assert any(run.shared for run in pack.runs) and len(pack.pixels["pixel_values"]) == 2
    assert torch.equal(probe.labels_BT[0][probe.answer_BT[0]], probe.input_ids_BT[0][probe.answer_BT[0]])
