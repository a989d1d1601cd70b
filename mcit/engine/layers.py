"""Hidden states of any layer of the decoder, and forward passes that end after one.

A layer is named by a number (0 is what enters the first block, n what leaves the n-th), by a share of the depth (``0.5`` is
what leaves the middle block), by the ending of a module's name matched at a dot (what leaves that module), or by ``last``
(after the final norm: what the head reads).
Shapes: B rows, T positions, D width of the layer.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mcit.core.errors import PlanError
from mcit.core.types import HiddenStates

LAST = "last"
_NUMBER, _SHARE = re.compile(r"^\d+$"), re.compile(r"^[01]?\.\d+$")


@dataclass(frozen=True)
class Layer:
    """Where hidden states are taken."""

    module: nn.Module
    depth: int
    """Blocks that must have run before it."""
    enters: bool = False
    """Take what enters the module instead of what leaves it."""


def layers_of(needs: Collection[str]) -> frozenset[str]:
    """Layers that methods claim as ``hidden:<layer>``."""
    return frozenset(need.removeprefix("hidden:") for need in needs if need.startswith("hidden:"))


def blocks_of(model: nn.Module) -> Sequence[nn.Module]:
    """The decoder's transformer blocks in order. Raises PlanError when it has no list of blocks."""
    lists = [list(child) for child in _decoder(model).children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise PlanError("the decoder has no list of blocks", where="needs", fix="claim hidden:last, or another base")
    return max(lists, key=len)


def layer_of(model: nn.Module, name: str) -> Layer:
    """The layer of that name. Raises PlanError for one that the model does not have, or has several of."""
    blocks = blocks_of(model)
    if name == LAST:
        return Layer(_decoder(model), len(blocks) + 1)
    if _NUMBER.match(name) or _SHARE.match(name):
        number = int(name) if _NUMBER.match(name) else int(float(name) * len(blocks) + 0.5)
        if number > len(blocks):
            raise PlanError(f"there is no layer {name}", where="needs", fix=f"the decoder has {len(blocks)} blocks")
        return Layer(blocks[number - 1], number) if number else Layer(blocks[0], 0, enters=True)
    fits = [(n, m) for n, m in _decoder(model).named_modules() if n == name or f".{n}".endswith(f".{name}")]
    if len(fits) != 1:
        what = f"{len(fits)} modules are named" if fits else "there is no module"
        fix = (
            "give more of its name" if fits else "use a number, a share of the depth, last, or a module of the decoder"
        )
        raise PlanError(f"{what} '{name}'", where="needs", fix=fix)
    inside = [k for k, block in enumerate(blocks, start=1) if any(m is fits[0][1] for m in block.modules())]
    return Layer(fits[0][1], inside[0] if inside else len(blocks) + 1)


@contextlib.contextmanager
def kept_states(model: nn.Module, names: Collection[str], *, until: str = "") -> Iterator[HiddenStates]:
    """Collects hidden states of the forward pass inside the block; with `until` the blocks after that layer do nothing.

    Layers after `until` are left out.
    """
    states = HiddenStates()
    end = layer_of(model, until).depth if until else None
    with contextlib.ExitStack() as stack:
        for name in sorted(names):
            layer = layer_of(model, name)
            if end is None or layer.depth <= end:
                stack.enter_context(_caught(layer, name, states))
        if end is not None:
            stack.enter_context(_ended(blocks_of(model), end))
        yield states


@contextlib.contextmanager
def _caught(layer: Layer, name: str, states: HiddenStates) -> Iterator[None]:
    def leaves(module: nn.Module, args: Any, output: Any) -> None:
        states[name] = _states_of(output)

    def enters(module: nn.Module, args: Any, kwargs: Any) -> None:
        states[name] = args[0] if args else kwargs["hidden_states"]

    if layer.enters:
        handle = layer.module.register_forward_pre_hook(enters, with_kwargs=True)
    else:
        handle = layer.module.register_forward_hook(leaves)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _ended(blocks: Sequence[nn.Module], end: int) -> Iterator[None]:
    """Blocks from `end` on hand on what enters them; hooks of wrappers still run, in the order of a whole pass."""
    later = blocks[end:]
    before = [vars(block).get("forward") for block in later]
    for block in later:
        block.forward = _handed_on
    try:
        yield
    finally:
        for block, forward in zip(later, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _handed_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _states_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    found: Tensor = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
    return found


def _decoder(model: nn.Module) -> nn.Module:
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    return decoder
