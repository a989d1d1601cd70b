"""What a plan must meet for group sparsity: settings that can act, and act on what they are meant for."""

from __future__ import annotations

from typing import Any

from mcit.core.errors import Problem
from mcit.core.types import Stage


def group_sparse_problems(config: Any, stage: Stage, *, never_acts: bool, name: str) -> list[Problem]:
    """Settings that cannot act (`never_acts`: not even in the last step), or that act otherwise than meant."""
    where, out = f"stage {stage.name}, method {name}", []
    if config.treatment == "proximal" and config.groups == "matrix":
        what = "treatment: proximal does not go with groups: matrix, for a matrix at 0 does not stay there"
        out.append(Problem(where, what, "set groups: block or groups: pair"))
    if config.size_weights and config.groups != "block":
        out.append(Problem(where, "size_weights weighs blocks only", "set groups: block, or size_weights: false"))
    if never_acts:
        what = f"alpha_epoch: {config.alpha_epoch:g} is not reached in {stage.steps} steps, so the penalty never acts"
        out.append(Problem(where, what, "lower alpha_epoch, or set alpha: 0"))
    if config.treatment == "proximal" and stage.optim.weight_decay:
        what = f"optim.weight_decay: {stage.optim.weight_decay:g} shrinks the same matrices as the penalty"
        out.append(Problem(where, what, "set optim.weight_decay: 0", "note"))
    if stage.adapter.also_train:
        what = f"{' and '.join(stage.adapter.also_train)} train too: they change without the penalty on groups"
        out.append(Problem(where, what, "set adapter.also_train: [], as the authors freeze all but LoRA", "note"))
    return out
