"""Which models take packs.

A pack needs plain causal attention, positions that are one number each, and a decoder that hands arguments it does not know
down to its attention function. What a config says is looked at first (`refusal`); what it does not say shows when outputs of
some rows as a pack are compared with those of the same rows padded, which an engine does before it packs anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mcit.core.types import ModelOutput
from mcit.engine.segments import NAME, register

_CLOSE, _CLOSE_LOW = 1e-3, 0.1
"""Most by which the loss of a token may differ, in fp32 and in lower precision."""
TROUBLE = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a model that does not take a pack after all may raise."""
_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary positions whose frequencies change with the longest position."""


def refusal(model: nn.Module, *, attention: str = "") -> str:
    """Why this model takes no packs, as far as its config says; empty when it may. A skeleton will do.

    `attention` is what it will be loaded with, where that is not what its config says now.
    """
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    config = getattr(decoder, "config", None)
    if config is None:
        return "its decoder has no config"
    kinds = set(getattr(config, "layer_types", None) or ())
    rope = getattr(config, "rope_parameters", None) or {}
    if "mrope_section" in rope:
        return "its positions are three numbers each"
    if any(one.get("rope_type") in _BY_LENGTH for one in (rope, *(v for v in rope.values() if isinstance(v, dict)))):
        return "its rotary frequencies depend on the length of a sequence"
    if getattr(config, "cross_attention_layers", None):
        return "its decoder looks at pictures by cross attention"
    if getattr(model.config, "model_type", "") == "paligemma":
        return "it reads prompts in both directions"
    if kinds - {"full_attention"}:
        return f"its decoder has layers of {' and '.join(sorted(kinds - {'full_attention'}))}"
    if not kinds and getattr(config, "sliding_window", None):
        return "its attention has a sliding window"
    attention = attention or config._attn_implementation
    if attention not in ("sdpa", NAME):
        return f"base.attention is {attention}, and packs need sdpa"
    return "" if getattr(decoder, "_supports_attention_backend", False) else "its attention function cannot be replaced"


def switch_on(model: nn.Module) -> None:
    """The decoder's attention understands packs from here on; on padded rows it is SDPA as before."""
    register()
    model.get_decoder().config._attn_implementation = NAME  # type: ignore[operator]


def switch_off(model: nn.Module) -> None:
    """Plain SDPA again."""
    config = model.get_decoder().config  # type: ignore[operator]
    if config._attn_implementation == NAME:
        config._attn_implementation = "sdpa"


@contextlib.contextmanager
def understood(model: Any) -> Iterator[None]:
    """Attention understands packs while it lasts, and is what it was before afterwards."""
    was = model.get_decoder().config._attn_implementation
    switch_on(model)
    try:
        yield
    finally:
        if was != model.get_decoder().config._attn_implementation:
            switch_off(model)


def difference(padded: ModelOutput, packed: ModelOutput) -> str:
    """What is wrong with the outputs of a pack; empty when nothing is."""
    if packed.nll_N.shape != padded.nll_N.shape:
        return "it gives other numbers of outputs"
    gap = float((packed.nll_N - padded.nll_N).abs().max()) if len(padded.nll_N) else 0.0
    return "" if gap <= close(padded.logits_NV.dtype) else f"token losses would change by up to {gap:.2g}"


def close(dtype: torch.dtype) -> float:
    """Most by which the loss of a token may differ where logits have this type."""
    return _CLOSE if dtype == torch.float32 else _CLOSE_LOW
