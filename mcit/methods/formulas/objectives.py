"""Losses of forget objectives on answer tokens, as pure functions in fp32.

Numbers in brackets are arXiv papers. Gradients flow through the present model's losses and logits only; what belongs to the
stage-start model comes in as numbers. Shapes: B rows, N supervised tokens in row order, V vocabulary, T positions, D hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def row_sums(nll_N: Tensor, row_N: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Sum of the token losses of each row, and its number of tokens; both (B,), 0 for a row without any."""
    sum_B = nll_N.new_zeros(rows).index_add(0, row_N, nll_N)
    return sum_B, nll_N.new_zeros(rows).index_add(0, row_N, torch.ones_like(nll_N))


def preference(margin_B: Tensor, beta: float) -> Tensor:
    """``-(2 / beta) log sigmoid(beta * margin)`` of each row, (B,).

    With ``S - S_ref`` as margin it is NPO [2404.05868], with ``M - delta`` SimNPO [2410.07163], with the difference of two
    such margins DPO [2305.18290] in the scale of NPO. Its slope at 0 is -1, as of ascent, and fades as the margin grows.
    """
    return -2 / beta * F.logsigmoid(beta * margin_B)


def reweighted(nll_N: Tensor, beta1: float, beta2: float) -> Tensor:
    """``p^beta1 (1 - p)^beta2`` times the loss, (N,): SatImp [2505.11953]; with `beta2` 0 WGA [2502.19301]. p is a constant."""
    p_N = (-nll_N.detach()).exp()
    return p_N**beta1 * (1 - p_N) ** beta2 * nll_N


def without_truth(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy to the model's own distribution with the true token taken out, (N,): CE-U [2503.01224]."""
    own_NV = logits_NV.detach().float().scatter(-1, targets_N[:, None], -torch.inf).softmax(-1)
    return -(own_NV * F.log_softmax(logits_NV.float(), dim=-1)).sum(-1)


def lowered(logits_NV: Tensor, reference_NV: Tensor, targets_N: Tensor, strength: float) -> Tensor:
    """Cross-entropy to the reference with the true token's logit lowered by `strength`, (N,): UNDIAL [2402.10052]."""
    less_N = torch.full_like(targets_N, -strength, dtype=torch.float32)[:, None]
    teacher_NV = reference_NV.detach().float().scatter_add(-1, targets_N[:, None], less_N).softmax(-1)
    return -(teacher_NV * F.log_softmax(logits_NV.float(), dim=-1)).sum(-1)


def peak(logits_NV: Tensor) -> Tensor:
    """Squared distance of the largest logit from the mean one, (N,): the margin that PDU [2506.05314] flattens."""
    wide_NV = logits_NV.float()
    return (wide_NV.max(-1).values - wide_NV.mean(-1)).square()


def activation_distance(hidden_BTD: Tensor, target_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over features and then over the masked positions of each row of the squared difference, (B,): RMU [2403.03218].

    A row without a masked position is 0.
    """
    square_BT = (hidden_BTD.float() - target_BTD.float()).square().mean(-1)
    return (square_BT * mask_BT).sum(-1) / mask_BT.sum(-1).clamp_min(1)


def apart(direction_D: Tensor, others: list[Tensor]) -> Tensor:
    """A unit vector along `direction_D` without its parts along `others`, which are orthonormal."""
    for other_D in others:
        direction_D = direction_D - (direction_D @ other_D) * other_D
    return direction_D / direction_D.norm()
