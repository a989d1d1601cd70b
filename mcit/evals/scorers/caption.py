"""Captions against several references, by the COCO toolkit (pycocoevalcap; extra ``captions``).

A row is worth its ROUGE-L (beta 1.2, best precision and best recall over the references), in both modes: it is the one metric
of the toolkit that is a mean over rows. BLEU-1 to -4, ROUGE-L and CIDEr of the whole set stand beside it in the score, under
``corpus``, times 100. Tokens are the lower-cased words without punctuation: the toolkit's own tokenizer and METEOR are Java
programs. For the number of UCIT's caption tasks, the mean of seven metrics, see scripts/coco_captions.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mcit.core.optional import needed
from mcit.evals.scorers.base import Gold, Scorer, references

_WORD = re.compile(r"\w+(?:'\w+)?")
_WHERE = "eval.scorer: caption"


class Caption(Scorer):
    """Overlap with what people wrote."""

    version = 2
    requires = "pycocoevalcap"

    def strict(self, prediction: str, gold: Gold) -> float:
        """ROUGE-L; 0 for an answer without a word."""
        said, written = tokens(prediction), [tokens(text) for text in references(gold)]
        return float(_metric("rouge", "Rouge").calc_score([said], written)) if said else 0.0

    def fixed(self, prediction: str, gold: Gold) -> float:
        """The same."""
        return self.strict(prediction, gold)

    def corpus(self, predictions: Sequence[str], golds: Sequence[Gold]) -> dict[str, float]:
        """BLEU, ROUGE-L and CIDEr of all rows together, times 100; CIDEr has no upper limit, and is 0 for one row alone."""
        said = {i: [tokens(text)] for i, text in enumerate(predictions)}
        written = {i: [tokens(text) for text in references(gold)] for i, gold in enumerate(golds)}
        bleu, _ = _metric("bleu", "Bleu").compute_score(written, said, verbose=0)
        rouge, _ = _metric("rouge", "Rouge").compute_score(written, said)
        cider, _ = _metric("cider", "Cider").compute_score(written, said)
        names = [*(f"bleu_{n}" for n in (1, 2, 3, 4)), "rouge_l", "cider"]
        return {name: 100 * float(value) for name, value in zip(names, [*bleu, rouge, cider], strict=True)}


def tokens(text: str) -> str:
    """Lower-cased words with blanks between them, as the toolkit's metrics want them."""
    return " ".join(_WORD.findall(text.lower()))


def _metric(module: str, name: str) -> Any:
    return getattr(needed(f"pycocoevalcap.{module}.{module}", where=_WHERE), name)()
