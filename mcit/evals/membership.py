"""Can one still tell what was trained: scores of rows by likelihood or gradient, and how well they part two sets of rows.

Every score is higher for what looks less like a member. Rows to forget are label 0, rows of the same kind that were never
trained (the holdout) label 1: an AUC of 1 says that the forgotten rows still look trained, .5 that they do not.
Sources: LOSS (Yeom et al., 2018, arXiv:1709.01604), zlib and reference (Carlini et al., 2021, arXiv:2012.07805), Min-K (Shi
et al., 2024, arXiv:2310.16789), Min-K++ (Zhang et al., 2024, arXiv:2404.02936), PrivLeak (MUSE, arXiv:2407.06460), in the
conventions of open-unlearning (arXiv:2506.12618). Shapes: T tokens of an answer, without its end token.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

from mcit.core.optional import needed
from mcit.evals.memorisation import finite, mean_loss

SHARE = 0.4
"""Share of tokens that Min-K and Min-K++ look at."""
_LEAST_VARIANCE = 1e-6
UNKNOWN = 0.5
"""AUC of a gold model where there is none."""


def zlib_score(logprobs_T: Sequence[float], text: str) -> float:
    """Mean loss over the bytes of the compressed answer."""
    return mean_loss(logprobs_T) / len(zlib.compress(text.encode()))


def reference_score(loss: float, reference: float) -> float:
    """Mean loss minus that of a model that never saw the row."""
    return loss - reference


def min_k(logprobs_T: Sequence[float], share: float = SHARE) -> float:
    """Minus the mean of the lowest ``max(1, floor(share * T))`` log-probabilities; 0 for an empty answer."""
    lowest = sorted(logprobs_T)[: max(1, math.floor(share * len(logprobs_T)))]
    return -sum(lowest) / len(lowest) if lowest else 0.0


def min_k_plus(
    logprobs_T: Sequence[float], mean_T: Sequence[float], variance_T: Sequence[float], share: float = SHARE
) -> float:
    """`min_k` of z-scores: log-probabilities by mean and variance of log p under p itself at each position."""
    pairs = zip(logprobs_T, mean_T, variance_T, strict=True)
    return min_k([(value - mu) / math.sqrt(max(var, _LEAST_VARIANCE)) for value, mu, var in pairs], share)


def auc(forgotten: Sequence[float], holdout: Sequence[float]) -> float:
    """Area under the ROC curve: how often a holdout row scores above a forgotten one.

    Raises TrainingError for scores that are not finite.
    """
    labels = [0] * len(forgotten) + [1] * len(holdout)
    scores = finite([*forgotten, *holdout], what="scores", where="membership")
    found = needed("sklearn.metrics", where="membership").roc_auc_score(labels, scores)
    return float(found)


def priv_leak(found: float, gold: float = UNKNOWN) -> float | None:
    """``100 ((1 - AUC) - (1 - gold)) / (1 - gold)`` of Min-K: 0 is ideal, -100 still a member, above 0 over-unlearned.

    None where the gold model's AUC is 1: against that it is not defined.
    """
    return 100 * (gold - found) / (1 - gold) if gold < 1 else None
