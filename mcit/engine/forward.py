"""One forward pass of any image-text-to-text model, and the modes its modules are in while a stage trains."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mcit.core.types import Batch, ModelOutput
from mcit.engine.layers import kept_states


def set_modes(model: nn.Module, *, checkpointing: bool) -> None:
    """Everything in eval mode (frozen batch norms would drift in train mode) but live LoRA dropout.

    Gradient checkpointing runs only in modules that say they train, so decoder layers say so; their children do not.
    """
    model.eval()
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            module.training = True
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True
    elif getattr(model, "is_activation_checkpointing", False):
        model.activation_checkpointing_disable()  # type: ignore[operator]


def run_model(
    model: nn.Module,
    batch: Batch,
    *,
    device: torch.device,
    layers: Collection[str] = (),
    call: Callable[..., Any] | None = None,
) -> ModelOutput:
    """Forward pass with the head applied to predicting positions only; `call` is the model in an engine's wrapper.

    Position t predicts token t + 1, so the mask of kept positions is the supervised mask shifted by one. Hidden states
    are kept of `layers`. A batch that ends after a layer (``batch.until``) has no logits: N is 0.
    """
    labels_BT = batch.labels_BT.to(device)
    keep_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    if not batch.until:
        keep_BT[:, :-1] = labels_BT[:, 1:] != -100
    with kept_states(model, layers, until=batch.until) as hidden:
        logits = (call or model)(
            input_ids=batch.input_ids_BT.to(device),
            attention_mask=batch.attention_BT.to(device),
            logits_to_keep=keep_BT,
            use_cache=False,
            **{name: value.to(device) for name, value in batch.pixels.items()},
        ).logits
    logits_NV = logits if logits.ndim == 2 else logits[keep_BT]
    targets_N = labels_BT[:, 1:][keep_BT[:, :-1]]
    row_N = torch.arange(len(labels_BT), device=device)[:, None].expand_as(keep_BT)[keep_BT]
    nll_N = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
    real = tuple((batch.labels_BT[:, 1:] != -100).any(1).nonzero().flatten().tolist())  # labels lie in host memory
    return ModelOutput(logits_NV, targets_N, row_N, nll_N, hidden, real)
