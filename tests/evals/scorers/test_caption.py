"""Captions: ROUGE-L per row, the toolkit's metrics of the whole set."""

import pytest

from mcit.core import optional
from mcit.core.errors import ConfigError
from mcit.evals.score import score_predictions
from mcit.evals.scorers.caption import Caption, tokens

TWO = {"answer": "a cat sits", "answers": ["A cat sits.", "The black cat is on a mat"]}


def test_rouge_l_by_hand():
    """Against "a cat sits" the common subsequence is "cat sits", P = R = 2/3; against the other "the cat", P 2/3, R 2/7.

    Best of each 2/3: F = (1 + 1.44) 4/9 / (2/3 + 1.44 x 2/3) = 2/3.
    """
    assert Caption().strict("The cat sits!", TWO) == pytest.approx(2 / 3)
    assert Caption().fixed("the cat sits", TWO) == Caption().strict("the cat sits", TWO)
    assert Caption().strict("a cat sits", TWO) == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["", " . ", "?!", "\n"])
def test_nothing_said_is_worth_nothing(text):
    assert Caption().strict(text, TWO) == 0


def test_tokens_are_words():
    assert tokens("It's a cat, isn't it? 3.5 km") == "it's a cat isn't it 3 5 km"


def test_corpus_metrics_by_hand():
    """Both captions equal a reference: BLEU and ROUGE-L are 100, and CIDEr is 10 per caption, its value for equal n-grams."""
    golds = [{"answer": "a b c d e"}, {"answer": "p q r s t"}]
    found = Caption().corpus(["a b c d e", "p q r s t"], golds)
    assert [found[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx([100] * 4, abs=1e-4)
    assert found["rouge_l"] == pytest.approx(100) and found["cider"] == pytest.approx(1000)
    swapped = Caption().corpus(["p q r s t", "a b c d e"], golds)
    assert swapped["cider"] == 0 and swapped["rouge_l"] == 0


def test_the_score_holds_them():
    rows = [
        {"id": f"{i}", "text": text, "question": "", "tokens": 3, "truncated": False, "gold": {**TWO, "style": ""}}
        for i, text in enumerate(["a cat sits", "dog"])
    ]
    score = score_predictions(rows, scorer="caption", style="text").score
    assert score["corpus"]["rouge_l"] == pytest.approx(score["strict"]["accuracy"]) == pytest.approx(50)
    assert "corpus" not in score_predictions(rows, scorer="exact", style="text").score


def test_without_the_library_the_extra_is_named(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(optional, "import_module", absent)
    with pytest.raises(ConfigError) as error:
        Caption().strict("a", TWO)
    assert "mcit[captions]" in error.value.fix and error.value.where == "eval.scorer: caption"
