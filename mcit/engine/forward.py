"""One forward pass of any image-text-to-text model, and the modes its modules are in while a stage trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from mcit.core.types import Batch, HiddenStates, ModelOutput
from mcit.engine.layers import kept_states
from mcit.engine.pack import Pack
from mcit.engine.segments import Segments
from mcit.engine.tokenloss import token_losses
from mcit.engine.transfer import inputs_on, placeholders_counted, to_device


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
    pack: Pack | None = None,
    ends: bool = False,
) -> ModelOutput:
    """Forward pass with the head applied to predicting positions only; `call` is the model in an engine's wrapper.

    Position t predicts token t + 1, so the mask of kept positions is the supervised mask shifted by one. Hidden states
    are kept of `layers`. A batch that ends after a layer (``batch.until``) has no logits: N is 0. With the batch's `pack`
    the model sees that; outputs are those of the rows, with zeros for hidden states of padding. `ends` says that the last
    block was cut (`mcit.engine.lastblock`) and no hidden states are read.
    """
    predicts_BT = torch.zeros_like(batch.answer_BT) if batch.until else batch.predicts_BT
    inputs = _padded(batch, predicts_BT) if pack is None else _packed(pack, predicts_BT)
    extra: dict[str, Any] = {}
    if pack is not None:
        extra["segments"] = Segments(pack.runs, device, half=_in_half(model, device))
        if ends and len(inputs["logits_to_keep"]):
            kept, inputs["logits_to_keep"] = inputs["logits_to_keep"].unique(return_inverse=True)
            extra["ends"] = to_device(kept, device)
    known = contextlib.nullcontext() if device.type == "cpu" else placeholders_counted(model, inputs["input_ids"])
    inputs = inputs_on(device, inputs)
    with known, kept_states(model, layers, until=batch.until) as hidden:
        logits = (call or model)(**inputs, use_cache=False, **extra).logits
    if pack is not None:
        place_BT = to_device(pack.place_BT, device)
        hidden = HiddenStates({name: _as_rows(states[0], place_BT) for name, states in hidden.items()})
        logits_NV = logits[0]
    else:
        logits_NV = logits if logits.ndim == 2 else logits[inputs["logits_to_keep"]]
    targets_N = to_device(batch.labels_BT.roll(-1, 1)[predicts_BT], device)
    row_N = to_device(predicts_BT.nonzero()[:, 0], device)
    nll_N = token_losses(logits_NV, targets_N)
    real = tuple(batch.predicts_BT.any(1).nonzero().flatten().tolist())  # labels lie in host memory
    return ModelOutput(logits_NV, targets_N, row_N, nll_N, hidden, real)


def _padded(batch: Batch, predicts_BT: Tensor) -> dict[str, Tensor]:
    return {
        "input_ids": batch.input_ids_BT,
        "attention_mask": batch.attention_BT,
        "logits_to_keep": predicts_BT,
        **batch.pixels,
    }


def _packed(pack: Pack, predicts_BT: Tensor) -> dict[str, Tensor]:
    """One sequence; a mask of four dimensions is one that is made already, which keeps the model from making its own."""
    return {
        "input_ids": pack.input_ids_P[None],
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool),
        "position_ids": pack.positions_P[None],
        "logits_to_keep": pack.place_BT[predicts_BT],
        **pack.pixels,
    }


def _in_half(model: nn.Module, device: torch.device) -> bool:
    return torch.is_autocast_enabled(device.type) or next(model.parameters()).dtype != torch.float32


def _as_rows(states_PD: Tensor, place_BT: Tensor) -> Tensor:
    """(B, T, D), zeros where a row is padded."""
    rows = states_PD.index_select(0, place_BT.clamp(min=0).flatten()).view(*place_BT.shape, -1)
    return rows.masked_fill((place_BT < 0)[..., None], 0.0)
