"""This rank's part of each trained tensor under DeepSpeed: fp32 weight, reduced gradient, optimiser state.

A part is a flat slice ``[start, stop)`` of the flattened tensor; the parts of all ranks are disjoint and cover it. A rank
may own nothing of a tensor. Reading and writing a part needs no other rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mcit.engine import world

MOMENTS = ("exp_avg", "exp_avg_sq")


class Shards(Protocol):
    """Access to parts, by parameter name."""

    def span(self, name: str) -> tuple[int, int]:
        """Start and stop of this rank's part."""

    def weight(self, name: str) -> Tensor:
        """The part of the fp32 weight (elements of the span)."""

    def put_weight(self, name: str, whole: Tensor) -> None:
        """Write a whole tensor (the same on all ranks) into the master part and into what forward passes use."""

    def gradient(self, name: str) -> Tensor:
        """The part of the reduced gradient, fp32."""

    def put_gradient(self, name: str, part: Tensor) -> None:
        """Replace it."""

    def flat(self, name: str) -> Tensor:
        """The flat tensor in the optimiser that holds this rank's part; other tensors share it."""

    def moment(self, name: str, key: str) -> Tensor:
        """The part of an optimiser state, as a view."""

    def has_state(self, name: str) -> bool:
        """Whether the optimiser has moments of it yet."""

    def clear_gradients(self) -> None:
        """Forget every gradient, those of an unfinished step too."""


class _Base:
    def __init__(self, engine: Any, named: Mapping[str, nn.Parameter]) -> None:
        self._engine, self._zero, self._named = engine, engine.optimizer, named

    @property
    def _state(self) -> Any:
        return self._zero.optimizer.state

    def flat(self, name: str) -> Tensor:
        raise NotImplementedError

    def _all_flat(self) -> Iterable[Tensor]:
        raise NotImplementedError

    def has_state(self, name: str) -> bool:
        """Whether the optimiser made its first step."""
        return bool(self._state.get(self.flat(name)))

    def steps(self, name: str) -> int:
        """Optimiser steps of the flat tensor that holds it."""
        return int(self._state[self.flat(name)]["step"])

    def set_steps(self, name: str, count: int) -> None:
        """Steps of the flat tensor that holds it."""
        self._state[self.flat(name)]["step"] = torch.tensor(float(count))

    def make_states(self) -> None:
        """Zero moments where the optimiser has none yet; a first step would make the same."""
        for flat in self._all_flat():
            if not self._state.get(flat):
                self._state[flat] = {"step": torch.tensor(0.0), **{key: torch.zeros_like(flat) for key in MOMENTS}}


class Stage12(_Base):
    """ZeRO-1 and ZeRO-2: whole weights on every rank, a flat fp32 master partition per group."""

    def span(self, name: str) -> tuple[int, int]:
        """Where this rank's partition cuts the tensor."""
        link = self._named[name]._hp_mapping  # type: ignore[attr-defined]
        if link is None:
            return 0, 0
        address = link.lp_fragment_address
        return int(address.start), int(address.start + address.numel)

    def weight(self, name: str) -> Tensor:
        """A view of the master partition."""
        link = self._named[name]._hp_mapping  # type: ignore[attr-defined]
        return torch.zeros(0) if link is None else link.hp_fragment.detach()

    def put_weight(self, name: str, whole: Tensor) -> None:
        """Master part and whole live weight."""
        parameter = self._named[name]
        start, stop = self.span(name)
        if stop > start:
            self.weight(name).copy_(whole.reshape(-1)[start:stop])
        parameter.data.copy_(whole)

    def gradient(self, name: str) -> Tensor:
        """A view of the reduced gradient."""
        parameter: Any = self._named[name]
        link = parameter._hp_mapping
        if link is None:
            return torch.zeros(0)
        found: Tensor = link.get_lp_grad_fragment(parameter._index_in_param_group)
        return found.detach().reshape(-1)

    def put_gradient(self, name: str, part: Tensor) -> None:
        """In place."""
        parameter: Any = self._named[name]
        if parameter._hp_mapping is not None:
            fragment = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group)
            fragment.data.copy_(part.reshape(fragment.shape))

    def flat(self, name: str) -> Tensor:
        """The master partition of the tensor's group."""
        link = self._named[name]._hp_mapping  # type: ignore[attr-defined]
        if link is None:
            return self._zero.single_partition_of_fp32_groups[self._group(name)]
        return self._zero.single_partition_of_fp32_groups[link.param_group_index]

    def _group(self, name: str) -> int:
        wanted = self._named[name]
        return next(i for i, group in enumerate(self._zero.bit16_groups) if any(p is wanted for p in group))

    def moment(self, name: str, key: str) -> Tensor:
        """A view of the group's flat state."""
        link = self._named[name]._hp_mapping  # type: ignore[attr-defined]
        state: Tensor = self._state[self.flat(name)][key]
        return (
            state[:0]
            if link is None
            else state.narrow(0, link.hp_fragment_address.start, link.hp_fragment_address.numel)
        )

    def _all_flat(self) -> Iterable[Tensor]:
        return self._zero.single_partition_of_fp32_groups

    def clear_gradients(self) -> None:
        """Buffers of the accumulation too; offloaded gradients stay allocated and are put to zero."""
        self._zero.zero_grad()
        self._engine.zero_grad()
        self._zero.micro_step_id = -1
        for group in list(self._zero.averaged_gradients):
            self._zero.averaged_gradients[group] = None
        for group in list(self._zero.all_grad_tensors):
            self._zero.all_grad_tensors[group] = None
        if self._zero.cpu_offload:
            self._zero.reset_cpu_buffers()
            for flat in self._all_flat():
                if flat.grad is not None:
                    flat.grad.zero_()


class Stage3(_Base):
    """ZeRO-3: weights are partitioned too; the last rank's part is padded."""

    def span(self, name: str) -> tuple[int, int]:
        """Equal parts in rank order."""
        parameter: Any = self._named[name]
        size, count = int(parameter.ds_tensor.ds_numel), int(parameter.ds_numel)
        start = min(world.rank() * size, count)
        return start, min(start + size, count)

    def _trimmed(self, name: str, part: Tensor) -> Tensor:
        start, stop = self.span(name)
        return part.detach().reshape(-1)[: stop - start]

    def _padded(self, name: str, part: Tensor) -> Tensor:
        size = int(self._named[name].ds_tensor.ds_numel)  # type: ignore[attr-defined]
        return torch.cat([part, part.new_zeros(size - part.numel())])

    def weight(self, name: str) -> Tensor:
        """The master part."""
        from deepspeed.utils import safe_get_local_fp32_param

        return self._trimmed(name, safe_get_local_fp32_param(self._named[name]))

    def put_weight(self, name: str, whole: Tensor) -> None:
        """Master and live part; a gathered copy of the old weight is given up."""
        start, stop = self.span(name)
        self.put_part(name, whole.detach().float().reshape(-1)[start:stop])

    def put_part(self, name: str, part: Tensor) -> None:
        """The same from this rank's part; every rank must write its own."""
        from deepspeed.utils import safe_set_local_fp32_param

        parameter: Any = self._named[name]
        part = self._padded(name, part)
        if parameter.ds_status.name == "AVAILABLE":
            parameter.partition(has_been_updated=False)
        safe_set_local_fp32_param(parameter, part)
        parameter.ds_tensor.data.copy_(part)

    def gradient(self, name: str) -> Tensor:
        """The reduced part."""
        from deepspeed.utils import safe_get_local_grad

        return self._trimmed(name, safe_get_local_grad(self._named[name]))

    def put_gradient(self, name: str, part: Tensor) -> None:
        """Through DeepSpeed, which keeps its own norm of offloaded gradients."""
        from deepspeed.utils import safe_set_local_grad

        safe_set_local_grad(self._named[name], self._padded(name, part))

    def flat(self, name: str) -> Tensor:
        """The sub-group's flat fp32 partition."""
        group = self._zero.grad_position[self._zero.get_param_id(self._named[name])][0]
        return self._zero.fp32_partitioned_groups_flat[group]

    def moment(self, name: str, key: str) -> Tensor:
        """A view of the sub-group's flat state."""
        _, offset, count = self._zero.grad_position[self._zero.get_param_id(self._named[name])]
        state: Tensor = self._state[self.flat(name)][key]
        return self._trimmed(name, state.narrow(0, int(offset), int(count)))

    def _all_flat(self) -> Iterable[Tensor]:
        return self._zero.fp32_partitioned_groups_flat

    def clear_gradients(self) -> None:
        """Partition buffers are put to zero: a tensor without a gradient would show the last step's."""
        self._zero.zero_grad()
        self._engine.zero_grad()
        buffer = getattr(self._zero, "grad_partitions_flat_buffer", None)
        if buffer is not None:
            buffer.zero_()
        if self._zero.offload_optimizer:
            self._zero.reset_cpu_buffers()
            for flat in self._all_flat():
                if flat.grad is not None:
                    flat.grad.zero_()
