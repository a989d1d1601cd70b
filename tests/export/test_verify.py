import pytest
import torch

from mcit.core.errors import StateError
from mcit.export.verify import Difference, difference, logits, probe, require_equal
from mcit.models.load import load_processor
from mcit.models.text import TextProcessor
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.processors import make_processor


def test_the_probe_has_pictures_padding_and_is_always_the_same():
    one, two = (probe(load_processor(tiny_path())) for _ in range(2))
    assert torch.equal(one.input_ids_BT, two.input_ids_BT)
    assert torch.equal(one.pixels["pixel_values"], two.pixels["pixel_values"])
    assert len(one.pixels["pixel_values"]) == 3 and not bool(one.attention_BT.all())
    assert one.pixels["pixel_values"].std() > 0.1


def test_the_probe_asks_nothing_of_answers_and_needs_no_pictures():
    """With this tokenizer no answer can follow the prompt cleanly; a language model has no picture processor."""
    processor = make_processor("llava", kind="melting")
    assert len(probe(processor).pixels["pixel_values"]) == 3
    processor.tokenizer.chat_template = processor.chat_template
    assert probe(TextProcessor(processor.tokenizer)).pixels == {}


def test_logits_leave_padding_out():
    batch = probe(load_processor(tiny_path()))
    found = logits(tiny_model(), batch, device=torch.device("cpu"))
    assert found.shape == (int(batch.attention_BT.sum()), 259)


def test_difference_by_hand():
    """|3 - 3.5| = 0.5 on logits up to 4, norm 0.5 of norm 5. Below 1 the scale stays 1."""
    assert difference(torch.tensor([3.0, -4.0]), torch.tensor([3.5, -4.0])) == Difference(0.5, 4.0, pytest.approx(0.1))
    assert difference(torch.tensor([0.25]), torch.tensor([0.0])) == Difference(0.25, 1.0, 1.0)


def test_not_a_number_is_never_equal():
    with pytest.raises(StateError):
        require_equal(difference(torch.tensor([1.0]), torch.tensor([float("nan")])), bf16=True, what="x")


def test_tolerances():
    require_equal(Difference(0.99e-5, 1.0, 1.0), bf16=False, what="x")
    with pytest.raises(StateError, match="1.10e-05"):
        require_equal(Difference(1.1e-5, 1.0, 0.0), bf16=False, what="adapter")
    require_equal(Difference(1.1e-5, 2.0, 0.0), bf16=False, what="x")
    require_equal(Difference(9.0, 1.0, 0.09), bf16=True, what="x")
    with pytest.raises(StateError):
        require_equal(Difference(0.0, 1.0, 0.11), bf16=True, what="x")
