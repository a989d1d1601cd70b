"""Norm of a row's gradient: mean over tensors of their norms, of the mean loss of its answer; members have small ones.

Definition of open-unlearning (arXiv:2506.12618), p = 2, one row at a time, in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mcit.core.ranks import ONE, Ranks
from mcit.core.types import Row
from mcit.data.collate import collate
from mcit.data.encode import Encoder
from mcit.engine.forward import run_model
from mcit.evals.likelihood import last_answer
from mcit.models.units import group_of


def gradient_norms(
    model: Any, encoder: Encoder, rows: Sequence[Row], *, device: torch.device | str, ranks: Ranks = ONE
) -> list[float]:
    """One number per row, of the gradients of the language decoder's parameters; the model is left as it was.

    Rank r of W takes rows r, r + W, …; every rank gets them all. The end token counts.
    """
    parameters = [p for n, p in model.named_parameters() if p.is_floating_point() and group_of(n) == "language"]
    before = [p.requires_grad for p in parameters]
    modes = {module: module.training for module in model.modules()}
    mine: list[tuple[int, float]] = []
    try:
        for p in parameters:
            p.requires_grad_(True)
        model.eval()
        for k in range(ranks.rank(), len(rows), ranks.size()):
            sample = last_answer(encoder.encode(rows[k]))
            batch = collate([sample], stream="gradnorm", pad_id=encoder.pad_id)
            with torch.enable_grad():
                loss = run_model(model, batch, device=torch.device(device)).nll_N.mean()
                grads = torch.autograd.grad(loss, parameters, allow_unused=True)
            norms = [float(g.float().norm()) for g in grads if g is not None]
            mine.append((k, sum(norms) / len(norms)))
    finally:
        for p, wanted in zip(parameters, before, strict=True):
            p.requires_grad_(wanted)
        for module, training in modes.items():
            module.training = training
    found = {k: norm for part in ranks.gather_objects(mine) for k, norm in part}
    return [found[k] for k in range(len(rows))]
