"""A mixture of experts as an adapter: every token weighs E pairs of low rank by a softmax of a linear router.

MoELoRA as in CoIN (Chen et al., NeurIPS 2024, arXiv:2403.08350) and its released code: each adapted matrix has E pairs of rank
R / E and a router without bias on the same input, ``y = W x + (alpha / R) sum_e softmax(router x)_e B_e A_e x``; no top-k, no
balancing loss. A begins as N(0, 0.01^2), B as 0, the router as torch's linear layers do.

The A of all experts lie below one another and their B beside one another, so that the adapter is a LoRA pair of rank R whose
inner values are weighed: ``B diag(share) A``. With equal shares it is the plain pair at 1 / E of its scale.
Shapes: R rank of all experts together, E experts, I in features, O out features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExpertsA(nn.Linear):
    """The A of all experts (R, I); gives their values times each expert's share. Stands in the place of a pair's A."""

    def __init__(self, plain: nn.Linear, experts: int, dropout: float) -> None:
        """In the place of `plain`, with fresh values. R must be a multiple of `experts`."""
        given: dict[str, Any] = {"device": plain.weight.device, "dtype": torch.float32}
        super().__init__(plain.in_features, plain.out_features, bias=False, **given)
        self.router = nn.Parameter(torch.empty(experts, plain.in_features, **given))
        self.lora_dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        nn.init.normal_(self.weight, std=0.01)
        nn.init.kaiming_uniform_(self.router, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) to (…, R); dropout is on what the experts see, not on what the router sees."""
        inner = F.linear(self.lora_dropout(x), self.weight)
        return inner * self.shares(x).repeat_interleave(len(self.weight) // len(self.router), -1).to(inner.dtype)

    def shares(self, x: Tensor) -> Tensor:
        """Weight of each expert, (…, E), fp32."""
        return torch.softmax(F.linear(x, self.router).float(), -1)


def place(layer: Any, name: str, experts: int, dropout: float) -> None:
    """Make a pair of a peft layer a mixture."""
    layer.lora_A[name] = ExpertsA(layer.lora_A[name], experts, dropout)
    layer.lora_dropout[name] = nn.Identity()


def experts_of(layer: Any, name: str) -> int | None:
    """Experts of an adapter of a peft layer; None for a plain pair."""
    found = layer.lora_A[name]
    return len(found.router) if isinstance(found, ExpertsA) else None
