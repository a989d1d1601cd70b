"""Tokens of rows by style, and rows that a model refuses."""

from mcit.data.encode import Encoder
from mcit.data.measure import measure
from tests.fakes.processors import make_processor
from tests.fakes.rows import row


def test_means_by_style_and_the_longest_row():
    encoder = Encoder(make_processor("llava"))
    rows = [
        row("q?", "ab", id="1", style="word"),
        row("q?", "abcd", id="2", style="word"),
        row("q" * 90, "x" * 9, id="3", style="text"),
    ]
    found = measure(rows, encoder)
    answers = {r.id: int((encoder.encode(r).labels_T >= 0).sum()) for r in rows}
    assert found.supervised == {"text": answers["3"], "word": (answers["1"] + answers["2"]) / 2}
    assert found.longest == len(encoder.encode(rows[2]).input_ids_T) and not found.problems
    assert found.rows == 3 == measure(rows, encoder, sampled=1).rows  # the longest ones beside the sample, each once


def test_refused_rows_are_said_once():
    encoder = Encoder(make_processor("llava"), max_length=40)
    found = measure([row("q?", "a", id="1"), row("q" * 90, "a", id="2")], encoder)
    (problem,) = found.problems
    assert "the limit is 40" in problem.what and problem.where.endswith(":2")
