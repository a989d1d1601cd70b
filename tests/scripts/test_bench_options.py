"""How chosen answers are compared with written ones."""

from argparse import Namespace

from mcit.data.memo import Memo
from mcit.models.load import load_processor
from scripts.bench.options import agreement, answers, forgetting, measure, shown
from tests.fakes.models import tiny_model, tiny_path


def test_what_counts_as_equal():
    found = agreement(["A", "b", "no idea"], ["A", "B", "C"], [["A", "B"], ["A", "B"], ["B", "C"]])
    assert found == {"rows": 3, "equal": 1, "greedy_is_option": 1}


def test_a_recipe_is_answered_both_ways(cache, monkeypatch):
    """The tiny model writes bytes at random: what matters is that the counts are those of the two lists of answers."""
    monkeypatch.setenv("MCIT_CACHE", str(cache))
    model, encoder = tiny_model().eval(), forgetting(load_processor(tiny_path()), Memo())
    args = Namespace(rows=4, repeat=1, clock="cpu")
    found = measure(model, encoder, "tiny/letter", args)
    assert found["rows"] == 4 and 0 <= found["equal"] <= found["greedy_is_option"] <= 4 and found["times"]["median"] > 0
    assert shown(found).startswith(f"tiny/letter: {found['equal']} of 4 answers equal (")


def test_options_change_the_answers(cache, tmp_path, monkeypatch):
    from tests.fakes.rows import row

    monkeypatch.setenv("MCIT_CACHE", str(cache))
    model, encoder = tiny_model().eval(), forgetting(load_processor(tiny_path()), Memo())
    rows = [row("Is it?", "yes")]
    assert "options" not in answers(model, encoder, rows, limit=2)[0]
    assert answers(model, encoder, rows, limit=2, options=lambda one: ("x",))[0]["text"] == "x"
