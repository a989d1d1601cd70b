"""Pure functions that compare output distributions. Shapes: N positions, V vocabulary."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 * KL(teacher / T || student / T)`` per position, fp32, shape (N,).

    The factor T^2 keeps the size of the gradient independent of T (Hinton et al. 2015, arXiv:1503.02531, section 2.1).
    """
    log_p_NV = F.log_softmax(teacher_NV.float() / temperature, dim=-1)
    log_q_NV = F.log_softmax(student_NV.float() / temperature, dim=-1)
    return temperature**2 * (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)
