"""PaliGemma's layout against the family's own processor, which builds it from prefix and suffix."""

import pytest
import torch
import transformers
from PIL import Image

from mcit.core.errors import DataError
from mcit.data.encode import IGNORE, Encoder
from mcit.models.load import load_processor
from tests.fakes.families import table
from tests.fakes.families.make import write
from tests.fakes.families.rows import conversation, pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("paligemma", tmp_path_factory.mktemp("paligemma"))


@pytest.fixture(scope="module")
def encoder(folder):
    return Encoder(load_processor(folder))


@pytest.mark.parametrize("images", [(0,), (1, 2)])
def test_a_row_is_what_prefix_and_suffix_give(folder, encoder, tmp_path, images):
    """Ids, token types (0 on the prompt, 1 on the answer and its end), labels and pixels."""
    real = transformers.PaliGemmaProcessor.from_pretrained(folder)
    row = conversation(pictures(tmp_path), "<image>\n" * len(images) + "Is it red?", "two words", images=images)
    shown = [Image.open(tmp_path / name) for name in row.images]
    out = real(images=[shown], text=["<image>" * len(images) + "Is it red?"], suffix=["two words"])
    mine = encoder.encode(row)
    assert mine.input_ids_T.tolist() == list(out["input_ids"][0])
    assert mine.pixels["token_type_ids"].tolist() == list(out["token_type_ids"][0])
    assert mine.labels_T.tolist() == list(out["labels"][0])
    assert torch.equal(mine.pixels["pixel_values"], torch.stack([torch.as_tensor(p) for p in out["pixel_values"]]))
    assert set(mine.pixels) == {"pixel_values", "token_type_ids"}
    table.cell("paligemma", "prompt ids", "equal")
    table.cell("paligemma", "conversation ids", "one turn, as prefix and suffix")


def test_a_prompt_is_all_prefix(encoder, tmp_path):
    prompt = encoder.prompt(conversation(pictures(tmp_path), "<image>\nIs it red?", "yes", images=(0,)))
    assert prompt.pixels["token_type_ids"].sum() == 0 and (prompt.labels_T == IGNORE).all()
    assert encoder.supervised_text(prompt) == [("<image><bos>Is it red?\n", False)]


def test_text_alone_and_no_conversations(encoder, tmp_path):
    sample = encoder.encode(conversation(tmp_path, "Is it red?", "yes"))
    assert encoder.supervised_text(sample) == [("<bos>Is it red?\n", False), ("yes<eos>", True)]
    with pytest.raises(DataError, match="PaliGemma takes one question") as caught:
        encoder.encode(conversation(tmp_path, "Is it?", "yes", "And?", "no"))
    assert caught.value.where == "f.json:1:r"
