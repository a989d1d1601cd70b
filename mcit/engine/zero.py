"""ZeRO-1, ZeRO-2 and ZeRO-3: DeepSpeed driven directly, one engine per stage, destroyed at its end.

DeepSpeed averages gradients over ranks at the boundary that `micro_batch` sets; between that and its step they can be read
and edited. Clipping is ours, after the edits. A rank whose batch has no image runs the model with an unsupervised row
that has one, because reduction and gathering need the same modules in the same order on every rank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mcit.core.types import Batch, HiddenStates, ModelOutput
from mcit.engine import world
from mcit.engine.base import EngineSpec
from mcit.engine.checkpoint import EngineState
from mcit.engine.footprint import Footprint
from mcit.engine.gradients import held_dot
from mcit.engine.plain import PlainEngine
from mcit.engine.sharded import Gatherer, HeldShards, ShardGradients, ShardWeights
from mcit.engine.shards import MOMENTS, Stage3, Stage12
from mcit.engine.zerosettings import Offload, settings


class ZeroEngine(PlainEngine):
    """DeepSpeed with sharded optimiser state (1), gradients too (2), weights too (3)."""

    fused_optimizer = False

    def __init__(self, model: nn.Module, spec: EngineSpec, *, stage: int, offload: Offload = "none") -> None:
        self._stage, self._offload = stage, offload
        super().__init__(model, spec)

    def _setup(self) -> None:
        self._sizes = {name: parameter.shape for name, parameter in self._named.items()}
        self._groups = groups_of(self._optimizer, self._named)
        self._footprint = Footprint(self.model)
        skip_idle(self._optimizer)
        patch_autocast(self.model, self)
        config = settings(self._stage, self._offload, trained=sum(p.numel() for p in self._named.values()))
        self._engine = initialize(self.model, self._optimizer, config, self.device)
        self._call = self._engine
        self._shards: Any = (Stage3 if self._stage == 3 else Stage12)(self._engine, self._named)
        self._gatherer = Gatherer(self._shards, self._sizes, self.device)
        self.weights = ShardWeights(self._gatherer, self._units)
        self._touched: set[str] = set()
        self._images = False
        self._ghosted = False

    def _copy_start(self) -> dict[str, Tensor]:
        if self._stage < 3:
            return super()._copy_start()
        return {n: self._named[n].ds_tensor.detach().clone() for n in self._start_names()}  # type: ignore[attr-defined]

    # ---- forward and backward ---------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Sets the boundary at which DeepSpeed reduces."""
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    @contextlib.contextmanager
    def answering(self) -> Iterator[tuple[nn.Module, bool]]:
        """Weights that are sharded are gathered in every pass, so all ranks answer the same rows."""
        with super().answering() as (model, _):
            yield model, self._stage == 3

    def _run(self, batch: Batch, layers: frozenset[str]) -> ModelOutput:
        whole = self.spec.with_ghost(batch) if self.spec.with_ghost else batch
        self._ghosted = whole is not batch
        out = self._outputs(whole, layers, self._engine)
        if self._ghosted:
            rows, positions = batch.input_ids_BT.shape
            own = HiddenStates({layer: states[:rows, :positions] for layer, states in out.hidden.items()})
            out = dataclasses.replace(out, hidden=own)
        return out

    def backward(self, loss: Tensor, batch: Batch, *, shown: bool = True) -> None:
        """Add gradients; DeepSpeed reduces them in the last window of a pass."""
        self._images |= not self._ghosted and any(t.is_floating_point() for t in batch.pixels.values())
        super().backward(loss, batch, shown=shown)

    def _backward_over_ranks(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)
        if self._offload != "none" and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # gradients go to host memory asynchronously, and ours are read next

    def _add_gradient(self, name: str, gradient: Tensor) -> None:
        self._touched.add(name)
        part = self._shards.gradient(name)
        self._shards.put_gradient(name, part + self._gatherer.part(name, gradient.float()).to(part.device))

    # ---- several passes in a step -----------------------------------------------------------------------------------
    def begin_pass(self) -> None:
        """DeepSpeed starts from nothing: buffers of an earlier pass hold zeros since they were taken."""
        self._shards.clear_gradients()

    def take(self) -> HeldShards:
        """Copies of the parts; DeepSpeed's buffers stay and hold zeros, so that something can be added to them."""
        parts = {name: self._shards.gradient(name).clone() for name in self._named}
        for name, part in parts.items():
            self._shards.put_gradient(name, torch.zeros_like(part))
        held = HeldShards(self._gatherer, parts, images=self._images)
        self._images = False
        return held

    def add(self, held: Any, factor: float | Tensor = 1.0) -> None:
        """Add to this rank's parts."""
        self._images |= held.images
        for name, part in held.parts.items():
            scale = factor.to(part.device, part.dtype) if isinstance(factor, Tensor) else factor
            self._shards.put_gradient(name, self._shards.gradient(name) + part * scale)

    def dot(self, a: Any, b: Any) -> Tensor:
        """The sum over the parts of all ranks."""
        return world.all_sum(held_dot(a.parts, b.parts, self.device))

    # ---- fine-tuning inside a stage ---------------------------------------------------------------------------------
    def shapes(self) -> dict[str, torch.Size]:
        """Whole shapes of the trained tensors by name."""
        return self._sizes

    def part(self, name: str) -> Tensor:
        """This rank's part of a weight, flat."""
        return self._shards.weight(name)

    def part_gradients(self, names: Iterable[str]) -> dict[str, Tensor | None]:
        """This rank's parts; None for what only images reach after passes without any, as with one process."""
        images = bool(world.all_sum(torch.tensor(float(self._images))) > 0)
        return {n: None if self.spec.is_vision(n) and not images else self._shards.gradient(n).clone() for n in names}

    def norm_of(self, gradients: Mapping[str, Tensor | None]) -> Tensor:
        """The norm of all of them together, over the parts of all ranks."""
        return world.all_sum(held_dot(gradients, gradients, self.device)).sqrt()

    @torch.no_grad()
    def put_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Write this rank's parts; ZeRO-1 and 2 gather each tensor for the whole weights that passes use."""
        for name, part in parts.items():
            if self._stage < 3:
                self._shards.put_weight(name, self._gatherer.whole({name: part})[name])
            else:
                self._shards.put_part(name, part)

    def _snapshot(self) -> dict[str, Tensor]:
        if self._stage < 3:
            return super()._snapshot()
        return {name: self._shards.weight(name).clone() for name in self._named}

    @torch.no_grad()
    def _put_back(self, kept: Mapping[str, Tensor]) -> None:
        for name, value in kept.items():
            if self._stage < 3:
                self._shards.put_weight(name, value)
            else:
                self._shards.put_part(name, value)

    def gradients(self) -> ShardGradients:
        """Gradients of this step; the same object until the step."""
        if self._gradients is None:
            self._gradients = ShardGradients(self._gatherer, self._units, self._touched, self._traces)
        return self._gradients

    # ---- the step ---------------------------------------------------------------------------------------------------
    def _norm(self) -> Tensor:
        squares = torch.zeros((), dtype=torch.float64)
        for name in self._named:
            squares += torch.linalg.vector_norm(self._shards.gradient(name)).double().cpu() ** 2
        return world.all_sum(squares).sqrt().float().to(self.device)

    def _scale_gradients(self, factor: Tensor) -> None:
        for name in self._named:
            part = self._shards.gradient(name)
            self._shards.put_gradient(name, part * factor.to(part.device))

    def _update(self) -> None:
        images = bool(world.all_sum(torch.tensor(float(self._images))) > 0)
        for i, group in enumerate(self._optimizer.param_groups):
            names = [n for n, g in self._groups.items() if g == i]
            group["idle"] = not images and all(self.spec.is_vision(n) and n not in self._touched for n in names)
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.step()
        if self._gradients is not None:
            self._gradients.restore_frozen()

    def _bad_tensors(self) -> list[str]:
        mine = [n for n in self._named if not bool(torch.isfinite(self._shards.gradient(n)).all())]
        found = {name for names in world.gather_objects(mine) for name in names}
        return [name for name in self._named if name in found]

    def discard(self) -> None:
        """Forget gradients, those of an unfinished step too."""
        self._shards.clear_gradients()
        self._gradients = None
        self._traces = None
        self._losses = []
        self._anchor = None
        self._tokens = 0
        self._touched.clear()
        self._images = False

    # ---- reference --------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _swapped(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        if self._stage < 3:
            with super()._swapped(values):
                yield
            return
        parts: dict[str, Any] = {name: self._named[name] for name in values}
        self._engine.empty_partition_cache()  # no gathered copy of the present weights may be used
        now = {name: parameter.ds_tensor.data.clone() for name, parameter in parts.items()}
        for name, value in values.items():
            parts[name].ds_tensor.data.copy_(value)
        try:
            yield
        finally:
            self._engine.empty_partition_cache()
            for name, value in now.items():
                parts[name].ds_tensor.data.copy_(value)

    # ---- checkpoints ------------------------------------------------------------------------------------------------
    def _state(self) -> EngineState:
        """Whole tensors, gathered one at a time and kept by rank 0 alone."""
        weights: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {}
        steps: dict[str, int] = {}
        for name in self._named:
            parts = {"": self._shards.weight(name)}
            if self._shards.has_state(name):
                parts |= {key: self._shards.moment(name, key) for key in MOMENTS}
                steps[name] = self._shards.steps(name)
            for key, part in parts.items():
                whole = self._gatherer.whole({name: part})[name]
                if world.rank() == 0 and key:
                    moments.setdefault(name, {})[key] = whole.cpu()
                elif world.rank() == 0:
                    weights[name] = whole.cpu()
        return EngineState(self._step, weights, moments, steps)

    @torch.no_grad()
    def _restore(self, state: EngineState) -> None:
        for name in self._named:
            self._shards.put_weight(name, state.weights[name].to(self.device))
        self._restore_moments(state.moments, state.steps)

    @torch.no_grad()
    def _restore_moments(self, moments: Mapping[str, Mapping[str, Tensor]], steps: Mapping[str, int]) -> None:
        if not moments:
            return
        self._shards.make_states()
        counts: dict[int, set[int]] = {}
        for name in self._named:
            for key, whole in moments.get(name, {}).items():
                moment = self._shards.moment(name, key)
                moment.copy_(self._gatherer.part(name, whole))
            counts.setdefault(self._groups[name], set()).add(steps.get(name, 0))
        for name, group in self._groups.items():
            if group in counts:
                self._shards.set_steps(name, max(counts[group]))
        if any(len(found) > 1 for found in counts.values()):
            self.notes.append(
                "some tensors were updated in fewer steps than others; a sharded engine counts steps per group, so "
                "their bias correction continues from the largest count"
            )

    # ---- end of the stage -------------------------------------------------------------------------------------------
    def finish(self) -> None:
        """Whole weights in the model of every rank, DeepSpeed gone: hooks, attributes, buffers, optimiser state."""
        self.discard()
        whole = self._whole_parameters()
        self._optimizer.state.clear()
        self._engine.destroy()
        self._footprint.restore()
        for parameter, value in whole:
            parameter.data = value
        self._engine = self._call = self._shards = None
        self._gatherer.shards = None
        self._start = None
        gc.collect()

    def _whole_parameters(self) -> list[tuple[nn.Parameter, Tensor]]:
        if self._stage < 3:
            return [(p, p.data.clone()) for p in self._named.values()]
        import deepspeed

        out = []
        self._engine.empty_partition_cache()
        for parameter in self.model.parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                out.append((parameter, parameter.data.to(self.device, copy=True)))
        return out


def initialize(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], device: torch.device) -> Any:
    """A DeepSpeed engine around the model, over the process group that is there."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    world.alone(device)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even with one process
    backend = "nccl" if device.type == "cuda" else "gloo"
    with contextlib.redirect_stdout(sys.stderr):
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        deepspeed.comm.comm.cdb.new_group = world.new_group  # its own has torch's default time-out, whatever was set
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def groups_of(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """Index of each parameter's group in the optimiser."""
    index = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return {name: index[id(parameter)] for name, parameter in named.items()}


def skip_idle(optimizer: Any) -> None:
    """Let the optimiser pass over groups marked ``idle``: nothing flowed into them, so moments and weights stay.

    One process does the same, because torch skips parameters without a gradient.
    """
    step = optimizer.step

    @functools.wraps(step)
    def active_only(*args: Any, **kwargs: Any) -> Any:
        every = optimizer.param_groups
        optimizer.param_groups = [group for group in every if not group.get("idle")]
        try:
            return step(*args, **kwargs) if optimizer.param_groups else None
        finally:
            optimizer.param_groups = every

    optimizer.step = active_only


def patch_autocast(model: nn.Module, engine: PlainEngine) -> None:
    """Run the model's own forward under the engine's autocast: DeepSpeed switches off one that surrounds it."""
    forward = model.forward

    @functools.wraps(forward)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with engine.autocast():
            return forward(*args, **kwargs)

    model.forward = inside
