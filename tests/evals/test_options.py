"""Which rows state options, who may choose among them, and what does not go with it."""

from types import SimpleNamespace

import pytest

from mcit.core import lookup
from mcit.core.schema import EvalConfig
from mcit.evals import options as module
from mcit.evals.options import chooser, chooses, choosing, none_chooses, options_of, setting_problems
from mcit.evals.scorers.base import Scorer
from tests.fakes.rows import row

TASK = SimpleNamespace(name="t", scorer="exact", style="yes_no", rows={"test": 2}, folder="folder")
LISTED = "Which is it?\nA. a cat\nB. a dog\nC. a car"


@pytest.mark.parametrize(
    ("gold", "style", "expected"),
    [
        ({"choices": ["cat", "dog"]}, "letter", "A B"),
        ({"question": LISTED}, "mcq", "A B C"),
        ({"question": "Which is it?"}, "letter", ""),
        ({"question": "Is it?"}, "yes_no", "yes no Yes No"),
        ({"question": "Is it?", "choices": ["No", "Yes"]}, "yn", "No Yes"),
        ({"question": "Is it?", "choices": ["cat", "dog"]}, "yes_no", "yes no Yes No"),
        ({"choices": ["cat", " dog ", "cat"]}, "word", "cat dog"),
        ({"choices": ["cat"]}, "word", ""),
        ({"choices": ["cat", 3]}, "name", ""),
        ({"choices": ["cat", "dog"]}, "text", ""),
        ({"choices": ["cat", "dog"]}, "", ""),
        ({"choices": ["cat", "dog"], "style": "letter"}, "text", "A B"),
        ({"choices": ["cat", "dog"], "style": "free"}, "letter", "A B"),
        ({"choices": ["1", "2", "3", "4"]}, "box", ""),
    ],
)
def test_what_a_row_states(gold, style, expected):
    assert options_of({"question": "", "answer": "never looked at", **gold}, style) == tuple(expected.split())


def test_scorers_of_one_letter_or_word_let_choose():
    allowed = {n for n in lookup.known("evals.scorers") if lookup.class_of("evals.scorers", n, base=Scorer).chooses}
    assert allowed == {"choice", "coin_choice", "exact", "fin", "gqa", "ocrvqa"}


def test_rows_by_the_scorer_and_style_of_their_task():
    asked = [row("Is it?", "yes"), row(LISTED, "B", style="letter"), row("Say it", "so", style="text")]
    options = chooser(choosing(TASK))
    assert [options(one) for one in asked] == [("yes", "no", "Yes", "No"), ("A", "B", "C"), ()]
    free = chooser(choosing(SimpleNamespace(scorer="contains", style="yes_no")))
    assert [free(one) for one in asked] == [(), (), ()]


def test_a_task_with_nothing_to_choose(monkeypatch):
    rows = [row("Say it", "so", style="text"), row("Is it?", "yes")]
    monkeypatch.setattr(module.DataFolder, "open", lambda path: SimpleNamespace(rows=lambda split: rows))
    assert chooses(TASK, rows=None) and not chooses(TASK, rows=1)
    for other in ({"scorer": "caption"}, {"rows": {"test": 0}}):
        assert not chooses(SimpleNamespace(**{**vars(TASK), **other}), rows=None)
    assert "t (scorer exact)" in none_chooses([TASK]).what


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, []),
        ({"filters": ["strip"]}, []),
        ({"filters": ["guard"]}, ["filter 'guard' acts while an answer is written, and none is"]),
        ({"backend": "vllm"}, ["options are compared by the run's own model, and eval.backend is vllm"]),
    ],
)
def test_what_does_not_go_with_choosing(given, said):
    assert [problem.what for problem in setting_problems(EvalConfig(options="forward", **given))] == said
    assert setting_problems(EvalConfig(**given)) == []
