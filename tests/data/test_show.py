"""Rows for people."""

from mcit.data.encode import Encoder
from mcit.data.show import show_rows
from tests.fakes.processors import make_processor
from tests.fakes.rows import row


def test_with_and_without_a_model():
    one = row("Is it red?", "yes", "And blue?", "no")
    (plain,) = show_rows([one])
    assert [p.text for p in plain.pieces if p.supervised] == ["yes", "no"] and plain.tokens is None
    assert "".join(p.text for p in plain.pieces) == "user: Is it red?\nassistant: yes\nuser: And blue?\nassistant: no"
    encoder = Encoder(make_processor("chatml"))
    (shown,) = show_rows([one], encoder=encoder)
    assert [p.text for p in shown.pieces if p.supervised] == ["yes<|im_end|>", "no<|im_end|>"]
    sample = encoder.encode(one)
    assert shown.tokens == len(sample.input_ids_T) and shown.supervised_tokens == int((sample.labels_T != -100).sum())
