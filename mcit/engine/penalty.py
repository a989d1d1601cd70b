"""Weight penalties, streamed: one unit at a time, differentiated on detached copies, once per optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mcit.core.interfaces import Weights
from mcit.engine.base import EVERY_TENSOR, PenaltyFn


def stream_penalties(
    weights: Weights,
    penalty: PenaltyFn,
    add: Callable[[str, Tensor], None],
    *,
    kinds: frozenset[str] = EVERY_TENSOR,
) -> dict[str, Tensor]:
    """Differentiate the sum of all penalties over units of these kinds; `add` takes parameter name and gradient.

    Returns the summed penalty of each method. Peak memory is one unit; no parameter enters an autograd graph.
    """
    totals: dict[str, Tensor] = {}
    units = [unit for unit in weights.units() if unit.kind in kinds]
    for unit in [*units, *(weights.units("block") if "block" in kinds else ())]:
        with weights.gathered(unit) as copies, torch.enable_grad():
            tensors: Mapping[str, Tensor] = {role: t.requires_grad_(True) for role, t in copies.items()}
            values = penalty(unit, tensors)
            for name, value in values.items():
                totals[name] = totals[name] + value.detach() if name in totals else value.detach()
            live = [value for value in values.values() if value.requires_grad]
            if not live:
                continue
            roles = list(tensors)
            grads = torch.autograd.grad(torch.stack(live).sum(), [tensors[r] for r in roles], allow_unused=True)
        for role, grad in zip(roles, grads, strict=True):
            if grad is not None:
                add(unit.params[role], grad)
    return totals
