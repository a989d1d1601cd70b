"""Pure functions that compare output distributions, in fp32 (float64 stays so). Shapes: N positions, V vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation_kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 * KL(teacher / T || student / T)`` per position, fp32, shape (N,).

    The factor T^2 keeps the size of the gradient independent of T (Hinton et al. 2015, arXiv:1503.02531, section 2.1).
    """
    log_p_NV = F.log_softmax(_wide(teacher_NV) / temperature, dim=-1)
    log_q_NV = F.log_softmax(_wide(student_NV) / temperature, dim=-1)
    return temperature**2 * (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)


def top_log_probs(logits_NV: Tensor, count: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Ids (int32) and log-probabilities (fp32) of the `count` likeliest tokens at a temperature, each (N, K).

    Ordered by descending probability; K is `count` or the whole vocabulary.
    """
    log_p_NV = F.log_softmax(_wide(logits_NV.detach()) / temperature, dim=-1)
    values, ids = log_p_NV.topk(min(count, logits_NV.shape[-1]), dim=-1)
    return ids.int(), values


def top_kl(student_NV: Tensor, ids_NK: Tensor, log_p_NK: Tensor, temperature: float) -> Tensor:
    """``KL(teacher || student)`` at a temperature per position, fp32, shape (N,), without a factor T^2.

    All tokens that the teacher's K likeliest leave out count as one: a lower bound, exact when K is the vocabulary.
    """
    log_q_NV = F.log_softmax(_wide(student_NV) / temperature, dim=-1)
    log_q_NK = log_q_NV.gather(-1, ids_NK.long())
    kl_N = (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(-1)
    if ids_NK.shape[-1] == student_NV.shape[-1]:
        return kl_N
    tiny = torch.finfo(log_p_NK.dtype).tiny
    rest_p_N = (1 - log_p_NK.exp().sum(-1)).clamp_min(tiny)
    left_NV = log_q_NV.scatter(-1, ids_NK.long(), -torch.inf)  # as a sum, not 1 - sum: no cancellation
    return kl_N + rest_p_N * (rest_p_N.log() - left_NV.logsumexp(-1))


def candidate_bce(student_NV: Tensor, teacher_NV: Tensor, gold_N: Tensor, *, candidates: int = 0) -> Tensor:
    """Binary cross-entropy per position, fp32, (N,): target 1 for the gold token, sigmoid(teacher) for the others that count.

    Those are the teacher's `candidates` likeliest tokens beside the gold one (0: all); the loss is a sum over them.
    """
    student_NV, teacher_NV, gold_N1 = _wide(student_NV), _wide(teacher_NV.detach()), gold_N[:, None]
    target_NV = teacher_NV.sigmoid().scatter(-1, gold_N1, 1.0)
    loss_NV = F.binary_cross_entropy_with_logits(student_NV, target_NV, reduction="none")
    if 0 < candidates < student_NV.shape[-1]:
        others_NV = teacher_NV.scatter(-1, gold_N1, -torch.inf)
        ids_NK = torch.cat([others_NV.topk(candidates, dim=-1).indices, gold_N1], dim=-1)
        loss_NV = loss_NV.gather(-1, ids_NK)
    return loss_NV.sum(-1)


def feature_distance(new_BTD: Tensor, old_BTD: Tensor, *, mean: bool) -> Tensor:
    """Squared distance over the features of each position, fp32, (B, T); their mean or their sum."""
    square_BTD = (_wide(new_BTD) - _wide(old_BTD.detach())).square()
    return square_BTD.mean(-1) if mean else square_BTD.sum(-1)


def _wide(logits_NV: Tensor) -> Tensor:
    return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
