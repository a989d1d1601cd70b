"""Text read off pictures (OCRBench, the test of MLLM-CL's ability OCR).

Strict: one of the accepted answers stands in the prediction, anywhere; both lower-cased, line breaks taken out. For handwritten
formulas case counts and blanks do not. Fixed: whole words after normalising, formulas as before.
"""

from __future__ import annotations

from mcit.evals.normalise import contains
from mcit.evals.scorers.base import Gold, Scorer, references

_FORMULA = "Handwritten Mathematical Expression Recognition"


class OcrBench(Scorer):
    """One of several answers contained, or none."""

    version = 2
    published = "MLLM-CL eval_ocr.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """Anywhere in the text."""
        squeeze = _formula if gold.get("answer_type") == _FORMULA else _words
        text = squeeze(prediction)
        return float(any(squeeze(answer) in text for answer in references(gold)))

    def fixed(self, prediction: str, gold: Gold) -> float:
        """As whole words."""
        if gold.get("answer_type") == _FORMULA:
            return self.strict(prediction, gold)
        return float(any(contains(prediction, answer) for answer in references(gold)))


def _formula(text: str) -> str:
    return text.strip().replace(" ", "").replace("\n", "")


def _words(text: str) -> str:
    return text.lower().strip().replace("\n", "")
