import dataclasses

import torch

from mcit.core.types import Sample
from mcit.data.ghost import Ghost, has_image
from mcit.engine.forward import run_model
from tests.fakes.engine_checks import ToyGhost
from tests.fakes.models import tiny_model
from tests.fakes.toy import toy_batch, toy_rows


def test_a_batch_with_an_image_is_left_alone():
    model = tiny_model()
    batch = toy_batch(model)
    assert has_image(batch) and ToyGhost(model)(batch) is batch


def test_a_text_batch_gets_an_unsupervised_row_and_keeps_its_outputs():
    """A shorter batch is padded to the ghost's length; losses per token are those of the batch alone."""
    model = tiny_model()
    model.eval()
    batch = toy_batch(model, rows=2, length=12, images=False)
    more = ToyGhost(model)(batch)
    assert has_image(more) and more.input_ids_BT.shape == (3, 30) and more.target_count == batch.target_count
    assert (more.labels_BT[2] == -100).all() and more.attention_BT[:2, 12:].sum() == 0
    cpu = torch.device("cpu")
    alone, beside = run_model(model, batch, device=cpu), run_model(model, more, device=cpu)
    assert torch.allclose(alone.nll_N, beside.nll_N, atol=1e-5) and torch.equal(alone.row_N, beside.row_N)
    assert torch.equal(alone.targets_N, beside.targets_N)


def test_values_per_token_are_joined():
    model = tiny_model()
    ghost = ToyGhost(model)
    batch = toy_batch(model, rows=1, length=10, images=False)
    types = torch.ones(1, 10, dtype=torch.int64)
    more = ghost(dataclasses.replace(batch, pixels={"token_type_ids": types}))
    assert more.pixels["token_type_ids"].tolist() == [[1] * 10 + [0] * 20, [0] * 30]
    assert set(more.pixels) == {"token_type_ids", "pixel_values"}


def test_values_per_row_and_tables_per_token_come_with_the_ghost():
    """Two rows of text before it: zeros for both; the ghost's own table is padded to the longer text."""
    model = tiny_model()
    ids_T = torch.tensor([1, 2])
    values = {"pixel_values": torch.ones(1, 2, 3), "cross_attention_mask": torch.ones(2, 2, 4, dtype=torch.int64)}
    kinds = {"token_keys": frozenset(["cross_attention_mask"]), "row_keys": frozenset(["pixel_values"])}
    ghost = Ghost(Sample(toy_rows(1)[0], ids_T, ids_T, values, **kinds), pad_id=0)
    more = ghost(toy_batch(model, rows=2, length=3, images=False))
    assert more.pixels["pixel_values"].sum((1, 2)).tolist() == [0, 0, 6]
    assert more.pixels["cross_attention_mask"].shape == (3, 3, 2, 4)
    assert more.pixels["cross_attention_mask"].sum((2, 3)).tolist() == [[0, 0, 0], [0, 0, 0], [8, 8, 0]]


def test_the_shortest_row_with_an_image_is_taken_or_none():
    class Encoder:
        pad_id = 0

        def encode(self, row):
            return row

    text, image = toy_rows(2, images=False), toy_rows(1)
    assert Ghost.of(text, Encoder()) is None
    assert Ghost.of([*text, *image], Encoder())._sample is image[0]
