"""The last decoder block behind its attention, at the positions whose outputs are read and at no other.

What leaves the last block goes to the final norm and the head alone, position by position; every other position matters for
its keys and values only. The MLP and what follows therefore run on the predicting positions: the same numbers, forward and
backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mcit.core.errors import PlanError
from mcit.engine.layers import blocks_of

_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
"""Children of a block of the Llama kind: norm, attention, sum, norm, MLP, sum."""


def cut(model: nn.Module) -> Any:
    """Let the last block take ``ends``, the positions to go on with; None where it is made of other parts."""
    try:
        block: Any = blocks_of(model)[-1]
    except PlanError:
        return None
    if {name for name, _ in block.named_children()} != _PARTS:
        return None
    block.forward = functools.partial(_forward, block, block.forward)
    return block


def uncut(block: Any) -> None:
    """The block's own forward again, as it was before; None is no block."""
    if block is not None:
        own = block.forward.args[1]
        bound = getattr(own, "__self__", None) is block
        if bound:
            del block.forward
        else:
            block.forward = own


def _forward(
    block: Any, own: Callable[..., Any], hidden_states: Tensor, *, ends: Tensor | None = None, **kwargs: Any
) -> Any:
    if ends is None:
        return own(hidden_states, **kwargs)
    attended, _ = block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs)
    states = (hidden_states + attended).index_select(1, ends)
    return states + block.mlp(block.post_attention_layernorm(states))
