"""What a wrapper leaves on a model - attributes, hooks, replaced dictionaries - and how to take it off again."""

from __future__ import annotations

from typing import Any

from torch import nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


class Footprint:
    """A snapshot of modules and parameters, taken before a wrapper sees the model."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            (module, set(vars(module)), {name: set(vars(module)[name]) for name in _HOOKS if name in vars(module)})
            for module in model.modules()
        ]
        self._parameters = [(p, set(vars(p)), p._backward_hooks) for p in model.parameters()]

    def restore(self) -> None:
        """Remove every attribute and hook added since; parameters are held by plain dictionaries again."""
        for module, known, hooks in self._modules:
            state: dict[str, Any] = vars(module)
            for name in set(state) - known:
                del state[name]
            for name, keys in hooks.items():
                for key in [k for k in state[name] if k not in keys]:
                    del state[name][key]
            if type(state["_parameters"]) is not dict:
                state["_parameters"] = dict(state["_parameters"])
        for parameter, known, backward in self._parameters:
            for name in set(vars(parameter)) - known:
                delattr(parameter, name)
            parameter._backward_hooks = backward
            parameter.grad = None
