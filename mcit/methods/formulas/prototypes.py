"""Prototypes of what is to be forgotten or kept, and the distances from them.

GS-LoRA++, arXiv:2501.09705: a prototype is the mean embedding of a class. ``kl`` and ``l2`` are the authors' code; ``cosine``,
and taking the mean hidden state over the answer positions of a language model for the embedding, are ours.

Shapes: B rows, T positions, D features, K prototypes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mcit.methods.formulas.forgetting import predicting

Distance = Literal["cosine", "l2", "kl"]


def embed(hidden_BTD: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean hidden state of each row over the positions that predict its answers, fp32, (B, D); 0 for a row without."""
    keep_BT = predicting(labels_BT.to(hidden_BTD.device))
    chosen_BTD = hidden_BTD.float() * keep_BT[..., None]
    return chosen_BTD.sum(1) / keep_BT.sum(1, keepdim=True).clamp_min(1)


def distances(e_BD: Tensor, prototype_BD: Tensor, kind: Distance) -> Tensor:
    """Distance of each embedding from its prototype, (B,).

    ``cosine``: 1 - cos. ``l2``: mean squared difference. ``kl``: KL(softmax(prototype) || softmax(embedding)).
    """
    if kind == "cosine":
        return 1 - F.cosine_similarity(e_BD, prototype_BD, dim=-1)
    if kind == "l2":
        return (e_BD - prototype_BD).square().mean(-1)
    log_p_BD, log_q_BD = F.log_softmax(prototype_BD, dim=-1), F.log_softmax(e_BD, dim=-1)
    return (log_p_BD.exp() * (log_p_BD - log_q_BD)).sum(-1)


def median_distance(prototype_KD: Tensor, others_MD: Tensor, kind: Distance) -> float:
    """Median distance between two different sets of prototypes, K times M pairs; the lower one of an even number."""
    pairs = [distances(others_MD, one_D.expand_as(others_MD), kind) for one_D in prototype_KD]
    return float(torch.cat(pairs).median())
