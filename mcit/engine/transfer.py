"""From host memory to the device without waiting for it, and without asking it for values that the host knows."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mcit.core.errors import TrainingError


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """A copy through pinned memory, queued behind what the device does; the tensor itself where it lies there already."""
    if device.type == "cpu" or value.device.type != "cpu":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def placeholders_counted(model: nn.Module, ids: Tensor) -> Iterator[None]:
    """The model does not ask the device how many placeholders the tokens have: `ids`, in host memory, say it.

    transformers compares that number with the number of picture features in every pass, which makes the host wait. The same
    comparison is made here; for models whose function takes other arguments than LLaVA's nothing changes.
    """
    owner: Any = getattr(model, "model", model)
    own = getattr(owner, "get_placeholder_mask", None)
    token = getattr(owner.config, "image_token_id", None)
    if own is None or token is None or set(inspect.signature(own).parameters) != _ARGUMENTS:
        yield
        return
    count = int((ids == token).sum())

    def mask(input_ids: Tensor, inputs_embeds: Tensor, image_features: Tensor) -> Tensor:
        features = image_features.numel() // inputs_embeds.shape[-1]
        if features != count:
            raise TrainingError(
                f"{count} picture tokens for {features} picture features",
                where=type(model).__name__,
                fix="the processor must be the model's own",
            )
        return (input_ids == token).unsqueeze(-1)

    owner.get_placeholder_mask = mask
    try:
        yield
    finally:
        del owner.get_placeholder_mask


_ARGUMENTS = {"input_ids", "inputs_embeds", "image_features"}


def inputs_on(device: torch.device, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every input of a forward pass on the device."""
    return {name: to_device(value, device) for name, value in inputs.items()}
