"""State of any optimiser of `build_optimizer` as tensors by parameter name, and back: bit for bit.

torch's AdamW: ``exp_avg``, ``exp_avg_sq``. bitsandbytes': ``state1``, ``state2``, and with 8-bit moments ``qmap1``, ``qmap2``
(256 levels each) and ``absmax1``, ``absmax2`` (one scale per block of 256). Step counts are kept beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mcit.core.errors import StateError


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, int]]:
    """Tensors by parameter and by their name in the optimiser, and steps by parameter; nothing where no step was made."""
    if any(p.device.type == "cuda" for p in named.values()):
        torch.cuda.synchronize()  # paged moments are read from host memory
    tensors: dict[str, dict[str, Tensor]] = {}
    steps: dict[str, int] = {}
    for name, parameter in named.items():
        state = optimizer.state.get(parameter)
        if state:
            found = {key: value for key, value in state.items() if isinstance(value, Tensor) and key != "step"}
            # the levels are one tensor that all parameters share, which safetensors refuses
            tensors[name] = {key: value.clone() if key.startswith("qmap") else value for key, value in found.items()}
            steps[name] = int(state["step"])
    return tensors, steps


@torch.no_grad()
def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Mapping[str, Tensor]],
    steps: Mapping[str, int],
) -> None:
    """Put `optimizer_tensors` back; parameters that had no state have none again.

    Raises StateError for the state of another kind of optimiser.
    """
    places = {id(p): (g, i) for g, group in enumerate(optimizer.param_groups) for i, p in enumerate(group["params"])}
    for name, parameter in named.items():
        optimizer.state.pop(parameter, None)
        if name not in tensors:
            continue
        state = _empty(optimizer, parameter, *places[id(parameter)])
        found = tensors[name]
        slots = {key for key, value in state.items() if isinstance(value, Tensor) and key != "step"}
        if slots != set(found) or any(
            state[key].shape != found[key].shape or state[key].dtype != found[key].dtype for key in slots
        ):
            raise StateError(
                f"the optimiser's state of '{name}' is of another kind of optimiser",
                where="checkpoint",
                fix="restore the run's config, or remove the checkpoint to start the stage again",
            )
        for key in slots:
            if not key.startswith("qmap"):  # the levels are constants that all tensors share
                state[key].copy_(found[key])
        if isinstance(state["step"], Tensor):
            state["step"].fill_(float(steps[name]))
        else:
            state["step"] = steps[name]


def _empty(optimizer: Any, parameter: nn.Parameter, group: int, index: int) -> dict[str, Any]:
    """The state as a first step would make it: bitsandbytes' own call, so that paged moments are paged again."""
    if isinstance(optimizer, torch.optim.AdamW):
        zeros = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        step = torch.zeros((), device=parameter.device if optimizer.defaults["fused"] else "cpu")
        optimizer.state[parameter] = {"step": step, **zeros}
    else:
        optimizer.init_state(optimizer.param_groups[group], parameter, group, index)
    state: dict[str, Any] = optimizer.state[parameter]
    return state
