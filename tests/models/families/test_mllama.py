"""Why batches of Mllama must hold equally many pictures, shown on the model."""

import pytest
import torch

from mcit.data.collate import collate
from mcit.data.encode import Encoder
from mcit.models.families.mllama import counts_problem
from mcit.models.load import load_base, load_processor
from tests.fakes.families.make import write
from tests.fakes.families.rows import pictures, rows


def test_like_counts_are_fine_and_others_are_named():
    assert counts_problem({1}) == counts_problem({0}) == counts_problem(set()) == ""
    assert "numbers of pictures (0, 1)" in counts_problem({1, 0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("mllama", tmp_path_factory.mktemp("mllama"))


@pytest.mark.parametrize("beside", ["image", "images"])
def test_rows_with_other_counts_change_each_other(folder, tmp_path, beside):
    """The day this fails, transformers masks the attention and the refusal can go."""
    encoder, model = Encoder(load_processor(folder)), load_base(folder)
    by_name = {row.id: encoder.encode(row) for row in rows(pictures(tmp_path), "mllama")}
    text = by_name["text" if beside == "image" else "image"]
    gaps = []
    with torch.no_grad():
        for samples in ([text], [text, by_name[beside]]):
            batch = collate(samples, stream="t", pad_id=0)
            out = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_BT, **batch.pixels).logits
            gaps.append(out[0, : len(text.input_ids_T)])
    assert (gaps[0] - gaps[1]).abs().max() > 1e-2
