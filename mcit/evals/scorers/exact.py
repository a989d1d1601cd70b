"""Equality with the single gold answer (VQAv2, VizWiz; ImageNet-R, ArxivQA, IconQA, CLEVR-Math of UCIT).

Strict: equal in upper case, nothing else: "2" is not "two", "cat." is not "cat". In upper case sharp s equals "SS"; the
script of OCR-VQA compares in lower case and is scorer ``ocrvqa``. Fixed: equal after normalising.
"""

from __future__ import annotations

from mcit.evals.normalise import same
from mcit.evals.scorers.base import Gold, Scorer, answer_of


class Exact(Scorer):
    """Equal or not."""

    version = 3
    chooses = True
    published = "SEFE eval_vqav2.py, eval_vizwiz.py; MCITlib eval_deepseek_r1.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """Equal in upper case."""
        return float(prediction.upper() == answer_of(gold).upper())

    def fixed(self, prediction: str, gold: Gold) -> float:
        """Equal after normalising."""
        return float(same(prediction, answer_of(gold)))
