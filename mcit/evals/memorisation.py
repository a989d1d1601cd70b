"""What a model still says of rows: how likely an answer is, how much of it comes by itself, and what follows from that.

Definitions of open-unlearning (Dorna et al., 2025, arXiv:2506.12618) and of TOFU (Maini et al., 2024, arXiv:2401.06121),
section 2 (truth ratio, forget quality, model utility). Pure Python on numbers; libraries do ROUGE and the two-sample test.
Shapes: T tokens of an answer, without its end token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from mcit.core.errors import TrainingError
from mcit.core.optional import needed

_WHERE = "the forgetting kit"
_LARGEST = 700.0
"""Largest exponent taken, so that ratios stay below the largest fp64 number."""


def finite(values: Sequence[float], *, what: str, where: str = _WHERE) -> list[float]:
    """The values. Raises TrainingError for one that is infinite or no number."""
    bad = sum(not math.isfinite(value) for value in values)
    if bad:
        told = f"{bad} of {len(values)} {what} are not finite: the model's likelihoods are broken"
        raise TrainingError(told, where=where, fix="forget with fewer steps or a smaller learning rate")
    return list(values)


def mean_loss(logprobs_T: Sequence[float]) -> float:
    """Mean negative log-likelihood per token, in nats; 0 for an empty answer."""
    return -sum(logprobs_T) / len(logprobs_T) if logprobs_T else 0.0


def probability(losses: Sequence[float]) -> float:
    """Mean over rows of ``exp(-loss)``: the probability of an answer, normalised by its length."""
    return sum(math.exp(-loss) for loss in losses) / len(losses)


def exact_memorisation(hits_T: Sequence[bool]) -> float:
    """Share of tokens that are the likeliest ones given the true tokens before them; 0 for an empty answer."""
    return sum(hits_T) / len(hits_T) if hits_T else 0.0


def extraction_strength(hits_T: Sequence[bool]) -> float:
    """``1 - k / T`` for the smallest k from which on all tokens are the likeliest ones.

    As in the released code k is at most ``T - 1``, so that the least value is ``1 / T`` and not 0; 0 for an empty answer.
    """
    if not hits_T:
        return 0.0
    last_miss = max((k for k, hit in enumerate(hits_T) if not hit), default=-1)
    return 1 - min(last_miss + 1, len(hits_T) - 1) / len(hits_T)


def rouge_recall(reference: str, text: str) -> float:
    """ROUGE-L recall: longest common subsequence of words over the words of the reference, stemmed."""
    return float(_rouge().score(target=reference, prediction=text)["rougeL"].recall)


@cache
def _rouge() -> Any:
    return needed("rouge_score.rouge_scorer", where=_WHERE).RougeScorer(["rougeL"], use_stemmer=True)


# ---- truth ratio -----------------------------------------------------------------------------------------------------
def truth_ratio(correct: float, wrong: Sequence[float]) -> float:
    """``exp(-mean wrong loss) / exp(-correct loss)``: above 1 where the wrong answers are the likelier ones.

    At most ``exp(700)``. Raises TrainingError for losses that are not finite.
    """
    finite([correct, *wrong], what="losses")
    return math.exp(min(correct - sum(wrong) / len(wrong), _LARGEST))


def truth_forgotten(ratios: Sequence[float]) -> float:
    """Mean of ``min(TR, 1 / TR)`` over rows to forget; its target is the gold model's value, not 1."""
    return sum(min(ratio, 1 / ratio) if ratio > 0 else 0.0 for ratio in ratios) / len(ratios)


def truth_retained(ratios: Sequence[float]) -> float:
    """Mean of ``max(0, 1 - TR)`` over retained rows."""
    return sum(max(0.0, 1 - ratio) for ratio in ratios) / len(ratios)


def truth_probability(correct: float, wrong: Sequence[float]) -> float:
    """``P / (P + P_wrong)`` with probabilities ``exp(-loss)``, the wrong ones by their mean loss."""
    return 1 / (1 + truth_ratio(correct, wrong))


def option_probability(correct: float, wrong: Sequence[float]) -> float:
    """Probability of the right option among all options, given their probabilities; 0 where all are 0."""
    total = correct + sum(wrong)
    return correct / total if total > 0 else 0.0


# ---- a whole model ---------------------------------------------------------------------------------------------------
def utility(parts: Mapping[str, float]) -> float:
    """Harmonic mean of the parts; 0 as soon as one of them is 0."""
    if not parts or min(parts.values()) <= 0:
        return 0.0
    return len(parts) / sum(1 / value for value in parts.values())


def forget_quality(ratios: Sequence[float], gold: Sequence[float]) -> tuple[float, float]:
    """Statistic and p-value of the two-sample Kolmogorov-Smirnov test of truth ratios against a gold model's.

    A p-value near 1: the model cannot be told from one that never saw the rows.
    """
    found = needed("scipy.stats", where=_WHERE).ks_2samp(list(ratios), list(gold))
    return float(found.statistic), float(found.pvalue)
