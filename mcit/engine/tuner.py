"""A small optimisation inside a stage: a fresh AdamW over some of the trained tensors, apart from the stage's own optimiser.

It works on this rank's parts of the tensors, so that one file serves every engine: AdamW is elementwise.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from mcit.core.errors import TrainingError
from mcit.core.schema import OptimConfig


class Tuner:
    """Steps on the gradients that an engine has; tensors beside `names` keep their bits, moments of the stage too."""

    def __init__(self, engine: Any, names: Collection[str], optim: OptimConfig) -> None:
        """Raises TrainingError for no name, or one that does not train in this stage."""
        shapes = engine.shapes()
        unknown = sorted(set(names) - set(shapes))
        if unknown or not names:
            what = f"'{unknown[0]}' does not train in this stage" if unknown else "no tensor is named to fine-tune"
            raise TrainingError(what, where=engine.spec.where, fix="name parameters of units in ctx.weights.units()")
        self._engine, self._optim = engine, optim
        self._parts = {name: nn.Parameter(engine.part(name).clone()) for name in sorted(names)}
        groups: dict[float, list[nn.Parameter]] = {}
        for name, part in self._parts.items():
            groups.setdefault(optim.weight_decay if len(shapes[name]) > 1 else 0.0, []).append(part)
        settings = [{"params": parts, "weight_decay": decay} for decay, parts in sorted(groups.items())]
        self._optimizer = torch.optim.AdamW(settings, lr=optim.lr, betas=optim.betas, eps=optim.eps)

    def step(self, factor: float) -> None:
        """Clip, update at `factor` of the learning rate, write back, forget the gradients.

        Raises TrainingError for a gradient that is not finite; weights are as before the step then.
        """
        gradients = self._engine.part_gradients(self._parts)
        norm = self._engine.norm_of(gradients)
        if not bool(torch.isfinite(norm)):
            self._engine.discard()
            raise TrainingError(
                "non-finite gradient while fine-tuning", where=self._engine.spec.where, fix="lower its lr"
            )
        clip = self._optim.clip
        scale = clip / norm if clip is not None and norm > clip else None
        for name, part in self._parts.items():
            gradient = gradients[name]
            part.grad = gradient if gradient is None or scale is None else gradient * scale.to(gradient)
        for group in self._optimizer.param_groups:
            group["lr"] = self._optim.lr * factor
        self._optimizer.step()
        self._engine.put_parts({name: part.detach() for name, part in self._parts.items()})
        self._engine.discard()
