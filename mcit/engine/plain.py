"""Whole parameters on every rank: one process, or several through accelerate's DDP.

Gradients are ``param.grad``; forward passes run under autocast where the base is bf16; trained tensors are always fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from mcit.core.errors import StateError, TrainingError
from mcit.core.interfaces import Gradients, Held, Weights
from mcit.core.schema import OptimConfig
from mcit.core.types import Batch, Counts, ModelOutput, WeightUnit
from mcit.engine import world
from mcit.engine.base import EVERY_TENSOR, EngineSpec, PenaltyFn, Trials
from mcit.engine.checkpoint import EngineState, Moments, load_rng, read_state, save_rng, write_state
from mcit.engine.ddp import wrapped
from mcit.engine.effective import Traces
from mcit.engine.figures import Figures, StepFigures
from mcit.engine.forward import run_model, set_modes
from mcit.engine.gradients import HeldGradients, LocalGradients, LocalWeights, held_dot
from mcit.engine.lastblock import cut, uncut
from mcit.engine.layers import layers_of
from mcit.engine.linears import quicken, relax
from mcit.engine.loralinear import fuse, unfuse
from mcit.engine.optim import build_optimizer, lr_factor, set_lr, skips_on_device
from mcit.engine.optimstate import optimizer_tensors, restore_optimizer
from mcit.engine.pack import like_probe, pack_rows
from mcit.engine.packing import TROUBLE, difference, refusal, switch_off, switch_on
from mcit.engine.penalty import stream_penalties
from mcit.engine.rotary import shorten_rotation
from mcit.engine.shards import MOMENTS
from mcit.engine.tuner import Tuner

__all__ = ["EngineSpec", "PlainEngine", "run_model", "set_modes"]


class PlainEngine:
    """The engine for one process or DDP; engines that shard override how tensors are reached."""

    weights: Weights
    fused_optimizer = True
    """Whether AdamW may be one kernel over all tensors, on a device that has it."""

    def __init__(self, model: nn.Module, spec: EngineSpec) -> None:
        self.model = model
        self.spec = spec
        self.device = next(model.parameters()).device
        self.notes: list[str] = []
        self._named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._units = tuple(spec.units)
        self._step = 0
        self._gradients: Any = None
        self._losses: list[tuple[Tensor, Batch, bool]] = []
        self._anchor: Tensor | None = None
        self._figures = Figures(self._refuse)
        self._bad: Tensor | None = None
        self._tokens = 0
        self._call: Callable[..., Any] | None = None
        self._traces: Traces | None = None
        self._packs = self._trial = False
        self._cut: nn.Module | None = None
        self._fused: list[Any] = []
        self._quick: list[nn.Linear] = []
        set_modes(model, checkpointing=spec.checkpointing)
        self._dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.training]
        self._optimizer = build_optimizer(
            self._named,
            spec.optim,
            is_projector=spec.is_projector,
            is_vision=spec.is_vision,
            fused=self.fused_optimizer,
        )
        self._setup()
        self._start = self._copy_start() if "reference:stage_start" in spec.needs else None

    def _setup(self) -> None:
        self.weights = LocalWeights(self._named, self._units, self._optimizer.state)
        self._fused, self._quick = fuse(self.model), quicken(self.model)
        shorten_rotation(self.model)
        self._call = wrapped(self.model) if world.size() > 1 and self._named else None

    def _copy_start(self) -> dict[str, Tensor]:
        return {n: self._named[n].detach().clone() for n in self._start_names()}

    def _start_names(self) -> list[str]:
        skip = ".lora_" if self.spec.adapter_off else None
        return [n for n in self._named if not (skip and skip in n)]

    # ---- forward and backward ---------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Gradients are added up on their own rank until the last window of a step."""
        wait = self._call.no_sync() if isinstance(self._call, nn.Module) and not last else contextlib.nullcontext()  # type: ignore[operator]
        with wait:
            yield

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 autocast when the base is bf16."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.spec.bf16)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """No dropout: what is computed in this block draws no random number."""
        live = [module for module in self._dropouts if module.training]
        for module in live:
            module.training = False
        try:
            yield
        finally:
            for module in live:
                module.training = True

    @contextlib.contextmanager
    def answering(self) -> Iterator[tuple[nn.Module, bool]]:
        """The model without dropout; each rank may answer other rows."""
        with self.quiet(), self.autocast():
            yield self.model, False

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Gradients of effective weights can be asked for after the passes in this block, until they are discarded."""
        self._traces = Traces(self.model, self._units)
        with self._traces.kept():
            yield

    def forward(self, batch: Batch, needs: frozenset[str] = frozenset()) -> ModelOutput:
        """Run the model on a batch; logits exist only where a supervised token is predicted."""
        with self.autocast():
            out = self._run(batch, layers_of(needs))
        if torch.is_grad_enabled():
            self._anchor = out.logits_NV
        return out

    def _run(self, batch: Batch, layers: frozenset[str]) -> ModelOutput:
        return self._outputs(batch, layers, self._call if torch.is_grad_enabled() else None)

    def _outputs(self, batch: Batch, layers: frozenset[str], call: Callable[..., Any] | None) -> ModelOutput:
        whole = bool(layers or batch.until)
        always = self._trial or self.device.type != "cpu"  # there padding is what makes the host wait
        pack = pack_rows(batch, whole=whole, always=always) if self._packs else None
        ends = not whole and self._cut is not None
        return run_model(self.model, batch, device=self.device, layers=layers, call=call, pack=pack, ends=ends)

    def use_packs(self, probe: Batch, passed: Trials | None = None) -> None:
        """Pack rows in forward passes from here on, if the model can; if not, a note says why. Every rank calls it alike.

        Outputs of `probe` as a pack are compared with those of its padded rows first, unless that was `passed` before.
        """
        reason = refusal(self.model)
        if not reason:
            switch_on(self.model)
            self._cut = cut(self.model)
            reason = self._tried(like_probe(probe), passed)
            if reason and self._cut is not None:
                uncut(self._cut)
                self._cut = None
                reason = self._tried(like_probe(probe), passed)
        if reason:
            self._packs = False
            switch_off(self.model)
            self.notes.append(f"rows are padded, not packed: {reason}")

    def _tried(self, probe: Batch, passed: Trials | None) -> str:
        name = "packs" if self._cut is None else "packs, last block cut"
        if passed and passed.known(name):
            self._packs = True
            return ""
        reason = self._differs(probe)
        if passed and not reason:
            passed.keep(name)
        return reason

    def _differs(self, probe: Batch) -> str:
        if pack_rows(probe, always=True) is None:
            return "which picture values belong to which row is not clear"
        self._packs = False
        with torch.no_grad(), self.quiet():
            padded = self.forward(probe)
            self._packs = self._trial = True
            try:
                packed = self.forward(probe)
            except TROUBLE as error:
                return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            finally:
                self._trial = False
        return difference(padded, packed)

    def backward(self, loss: Tensor, batch: Batch, *, shown: bool = True) -> None:
        """Add gradients; the loss and its rows are remembered until the step."""
        if not any(seen is batch for _, seen, _ in self._losses):
            self._tokens += int(batch.attention_BT.sum())
        self._losses.append((loss.detach(), batch, shown))
        if self._call is not None:
            self._backward_over_ranks(self._anchored(loss) * world.size())  # engines average over ranks
        elif loss.requires_grad:
            loss.backward()
        self._anchor = None

    def _anchored(self, loss: Tensor) -> Tensor:
        """The loss plus an empty sum over the logits: every rank runs backward through every module, whatever its rows."""
        return loss if self._anchor is None else loss + self._anchor[:0].float().sum()

    def _backward_over_ranks(self, loss: Tensor) -> None:
        loss.backward()

    # ---- several passes in a step -----------------------------------------------------------------------------------
    def begin_pass(self) -> None:
        """Nothing to do: gradients are where the last pass left them, or gone."""

    def take(self) -> Held:
        """The gradients themselves; None where nothing flowed, so that the optimiser passes over it."""
        held = HeldGradients({name: parameter.grad for name, parameter in self._named.items()}, self._named)
        for parameter in self._named.values():
            parameter.grad = None
        return held

    def add(self, held: Any, factor: float | Tensor = 1.0) -> None:
        """Add to ``param.grad``."""
        for name, gradient in held.parts.items():
            if gradient is not None:
                self._add_gradient(name, gradient * factor)

    def dot(self, a: Any, b: Any) -> Tensor:
        """Gradients are equal on all ranks, and so is this."""
        return held_dot(a.parts, b.parts, self.device)

    @contextlib.contextmanager
    def moved(self, fn: Callable[[WeightUnit, dict[str, Tensor]], None]) -> Iterator[None]:
        """Weights are copied first and copied back, whatever happens inside."""
        kept = self._snapshot()
        try:
            for unit in self.weights.units():
                with self.weights.edit(unit) as tensors:
                    fn(unit, tensors)
            yield
        finally:
            self._put_back(kept)

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._named.items()}

    @torch.no_grad()
    def _put_back(self, kept: Mapping[str, Tensor]) -> None:
        for name, value in kept.items():
            self._named[name].copy_(value)

    # ---- fine-tuning inside a stage ---------------------------------------------------------------------------------
    def tuner(self, names: Collection[str], optim: OptimConfig) -> Tuner:
        """A fresh optimiser over some of the trained tensors. Raises TrainingError for one that does not train."""
        return Tuner(self, names, optim)

    def total_loss(self) -> Tensor:
        """Loss of the passes since the last `discard`, over all ranks."""
        return self._totals()[0]

    def shapes(self) -> dict[str, torch.Size]:
        """Whole shapes of the trained tensors by name."""
        return {name: parameter.shape for name, parameter in self._named.items()}

    def part(self, name: str) -> Tensor:
        """This rank's part of a weight: all of it."""
        return self._named[name].detach()

    def part_gradients(self, names: Iterable[str]) -> dict[str, Tensor | None]:
        """This rank's parts of gradients; None where nothing flowed."""
        return {name: self._named[name].grad for name in names}

    def norm_of(self, gradients: Mapping[str, Tensor | None]) -> Tensor:
        """The norm of all of them together, equal on all ranks."""
        return held_dot(gradients, gradients, self.device).sqrt()

    @torch.no_grad()
    def put_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Write weights back."""
        for name, part in parts.items():
            self._named[name].copy_(part)

    def target_counts(self, batches: Sequence[Batch]) -> Counts:
        """Supervised tokens and rows per stream over all ranks; a batch that nothing is supervised of has no rows."""
        tokens: dict[str, int] = {}
        rows: dict[str, int] = {}
        for batch in batches:
            tokens[batch.stream] = tokens.get(batch.stream, 0) + batch.target_count
            rows[batch.stream] = rows.get(batch.stream, 0) + (len(batch.rows) if batch.target_count else 0)
        if world.size() > 1:
            names = list(tokens)  # streams come in one order on every rank
            both = world.all_sum(torch.tensor([[tokens[n] for n in names], [rows[n] for n in names]]))
            tokens, rows = (dict(zip(names, line, strict=True)) for line in both.tolist())
        return Counts(tokens, rows)

    def add_penalties(self, penalty: PenaltyFn, kinds: frozenset[str] = EVERY_TENSOR) -> dict[str, Tensor]:
        """Stream penalties into the gradients."""
        return stream_penalties(self.weights, penalty, self._add_gradient, kinds=kinds)

    def _add_gradient(self, name: str, gradient: Tensor) -> None:
        parameter = self._named[name]
        gradient = gradient.to(parameter.dtype)
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def gradients(self) -> Gradients:
        """Gradients of this step; the same object until the step."""
        if self._gradients is None:
            self._gradients = LocalGradients(self._named, self._units, self._traces)
        return self._gradients

    # ---- the step ---------------------------------------------------------------------------------------------------
    def step(self) -> None:
        """Refuse non-finite values, clip, update, restore frozen entries, clear.

        Where steps are read together, a step of non-finite values changes nothing on the device, nor does any behind it,
        and `read` refuses it.
        """
        loss, tokens = self._totals()
        norm = self._norm()
        lr = set_lr(self._optimizer, lr_factor(self._step, self.spec.total_steps, self.spec.optim))
        parts = tuple((value, tuple(row.where for row in batch.rows)) for value, batch, _ in self._losses)
        self._figures.add(StepFigures(self._step + 1, loss, norm, tokens, lr, parts))
        if self.spec.read_every > 1 and skips_on_device(self._optimizer):
            self._clip_on_device(loss, norm)
        else:
            self._figures.settle()
            clip = self.spec.optim.clip
            if clip is not None and self._figures.last["grad_norm"] > clip:
                self._scale_gradients(clip / norm)
        self._update()
        self._step += 1
        self.discard()

    def _clip_on_device(self, loss: Tensor, norm: Tensor) -> None:
        """Scale by what clipping asks for, 1 included, and tell the optimiser whether to skip the update."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        self._bad = bad if self._bad is None else self._bad | bad
        self._optimizer.found_inf = self._bad.float()  # type: ignore[attr-defined]
        if self.spec.optim.clip is not None:
            self._scale_gradients((self.spec.optim.clip / norm).clamp(max=1.0))

    def read(self) -> list[dict[str, float]]:
        """What `metrics` says of every step since the last call, in order; the device is waited for.

        Raises TrainingError for a step of non-finite values that waited to be read.
        """
        return self._figures.take()

    def _totals(self) -> tuple[Tensor, Tensor | int]:
        """Loss and tokens of the step over all ranks."""
        shown = [value for value, _, shown in self._losses if shown]
        loss = torch.stack(shown).sum() if shown else torch.zeros((), device=self.device)
        if world.size() == 1:
            return loss, self._tokens
        both = torch.stack([loss.double(), torch.full_like(loss, self._tokens, dtype=torch.float64)])
        world.all_sum(both)
        return both[0], both[1]

    def _norm(self) -> Tensor:
        gradients = [p.grad for p in self._named.values() if p.grad is not None]
        return get_total_norm(gradients) if gradients else torch.zeros((), device=self.device)

    def _scale_gradients(self, factor: Tensor) -> None:
        for parameter in self._named.values():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def _update(self) -> None:
        self._optimizer.step()
        if self._gradients is not None:
            with torch.no_grad():
                for parameter, mask, values in self._gradients.frozen:
                    parameter[mask] = values

    def _bad_tensors(self) -> list[str]:
        """Names of tensors whose gradient is not finite."""
        return [n for n, p in self._named.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]

    def _refuse(self, step: StepFigures, what: str) -> None:
        """Raise TrainingError naming the rows, those of other ranks too. Every rank calls it alike."""
        found = world.gather_objects(step.bad_rows())
        rows = [row for bad, every in found for row in (bad if what == "loss" else every)]
        if what == "loss" and not rows:  # every loss is finite, their sum is not
            rows = [row for _, every in found for row in every]
        names = self._bad_tensors() if what == "gradient" else []
        self.discard()
        detail = f"; first tensor: {names[0]}" if names else ""
        raise TrainingError(
            f"non-finite {what} before the optimiser step{detail}; rows: {', '.join(rows)}",
            where=f"{self.spec.where}, step {step.step}",
            fix="look at these rows, lower the learning rate, or lengthen the warm-up; weights and checkpoints are untouched",
        )

    def discard(self) -> None:
        """Forget gradients, frozen entries and remembered losses."""
        self._optimizer.zero_grad(set_to_none=True)
        self._gradients = None
        self._traces = None
        self._losses = []
        self._anchor = None
        self._tokens = 0

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward of one batch; leaves no gradient, no state and no random draw behind."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self.micro_batch(last=True):
            out = self.forward(batch)
            self.backward(out.nll_N.sum() / max(1, batch.target_count), batch)
        self.discard()

    # ---- reference --------------------------------------------------------------------------------------------------
    def reference(self, batch: Batch, needs: frozenset[str] = frozenset()) -> ModelOutput:
        """Outputs with every trained tensor as at stage start, without dropout. Raises TrainingError if none was kept."""
        if self._start is None:
            raise TrainingError(
                "no reference is kept in this stage", where=self.spec.where, fix="claim reference:stage_start"
            )
        off = self.spec.adapter_off() if self.spec.adapter_off else contextlib.nullcontext()
        with torch.no_grad(), self.quiet(), off, self._swapped(self._start):
            return self.forward(batch, needs)

    @contextlib.contextmanager
    def _swapped(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        now = {name: self._named[name].data for name in values}
        for name, value in values.items():
            self._named[name].data = value
        try:
            yield
        finally:
            for name, value in now.items():
                self._named[name].data = value

    # ---- checkpoints ------------------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Weights, moments and step counts by name (rank 0) and the random state of each rank."""
        state = self._state()
        if world.rank() == 0:
            write_state(folder, state)
        save_rng(folder, self.device)

    def load(self, folder: Path) -> None:
        """Restore weights, moments, step and random state. Raises StateError for a checkpoint of another model."""
        state = read_state(folder, self.shapes())
        self._restore(state)
        self._step = state.step
        self.notes += load_rng(folder, self.device, seed=self.spec.seed, step=state.step)

    def _state(self) -> EngineState:
        moments, steps = optimizer_tensors(self._optimizer, self._named)
        return EngineState(self._step, self._named, moments, steps)

    def _restore(self, state: EngineState) -> None:
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(state.weights[name])
        self._restore_moments(state.moments, state.steps)

    def _restore_moments(self, moments: Mapping[str, Mapping[str, Tensor]], steps: Mapping[str, int]) -> None:
        restore_optimizer(self._optimizer, self._named, moments, steps)

    def moments(self) -> Moments:
        """What the optimiser holds, whole tensors on rank 0."""
        state = self._state()
        return Moments(state.moments, state.steps)

    def take_over(self, moments: Moments) -> None:
        """Begin with the moments of the stage before; parameters that it did not train begin anew."""
        for name, shape in self.shapes().items():
            held = moments.tensors.get(name, {})
            if any(key in MOMENTS and tensor.shape != shape for key, tensor in held.items()):
                raise StateError(
                    f"the moments of '{name}' are of a tensor of another shape",
                    where=self.spec.where,
                    fix="train the same tensors as the stage before, or set optim.moments: reset",
                )
        self._restore_moments(moments.tensors, moments.steps)

    def metrics(self) -> dict[str, float]:
        """loss, grad_norm, lr and tokens of the last step, over all ranks."""
        self._figures.settle()
        return dict(self._figures.last)

    def finish(self) -> None:
        """Drop the DDP wrapper with its hooks, gradients and moments; weights are in the model already."""
        self.discard()
        switch_off(self.model)
        uncut(self._cut)
        unfuse(self._fused)
        relax(self._quick)
        self._call = None
        self._optimizer.state.clear()
