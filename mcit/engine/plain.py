"""One process: gradients are ``param.grad``, autocast where the base is bf16, trained tensors always fp32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcit.core.errors import StateError, TrainingError
from mcit.core.files import read_json, write_json
from mcit.core.schema import OptimConfig
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.core.types import Batch, Counts, ModelOutput, WeightUnit
from mcit.engine import world
from mcit.engine.base import PenaltyFn
from mcit.engine.gradients import LocalGradients, LocalWeights
from mcit.engine.optim import build_optimizer, lr_factor, set_lr
from mcit.engine.penalty import stream_penalties


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built from besides the model."""

    units: Sequence[WeightUnit]
    optim: OptimConfig
    total_steps: int
    where: str = "stage"
    """Names the stage in messages."""
    bf16: bool = False
    """Run forward passes under bf16 autocast."""
    needs: frozenset[str] = frozenset()
    adapter_off: Callable[[], AbstractContextManager[None]] | None = None
    """Set when switching the adapter off gives the stage-start weights (a fresh adapter)."""
    is_projector: Callable[[str], bool] = field(default=lambda name: False)
    checkpointing: bool = False


class PlainEngine:
    """The engine for one process."""

    def __init__(self, model: nn.Module, spec: EngineSpec) -> None:
        self.model = model
        self.spec = spec
        self.device = next(model.parameters()).device
        self._named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._units = tuple(spec.units)
        self.weights = LocalWeights(self._named, self._units)
        self._optimizer = build_optimizer(self._named, spec.optim, is_projector=spec.is_projector)
        self._start = self._copy_start() if "reference:stage_start" in spec.needs else None
        self._step = 0
        self._gradients: LocalGradients | None = None
        self._losses: list[tuple[Tensor, Batch]] = []
        self._metrics: dict[str, float] = {}
        self._tokens = 0
        set_modes(model, checkpointing=spec.checkpointing)

    def _copy_start(self) -> dict[str, Tensor]:
        skip = ".lora_" if self.spec.adapter_off else None
        return {n: p.detach().clone() for n, p in self._named.items() if not (skip and skip in n)}

    # ---- forward and backward ---------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """One process has nothing to synchronise."""
        yield

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 autocast when the base is bf16."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.spec.bf16)

    def forward(self, batch: Batch, needs: frozenset[str] = frozenset()) -> ModelOutput:
        """Run the model on a batch; logits exist only where a supervised token is predicted."""
        with self.autocast():
            return run_model(self.model, batch, device=self.device, hidden="hidden_states" in needs)

    def backward(self, loss: Tensor, batch: Batch) -> None:
        """Add gradients; the loss and its rows are remembered until the step."""
        self._losses.append((loss.detach(), batch))
        self._tokens += int(batch.attention_BT.sum())
        if loss.requires_grad:
            loss.backward()

    def target_counts(self, batches: Sequence[Batch]) -> Counts:
        """Supervised tokens and rows per stream."""
        tokens: dict[str, int] = {}
        rows: dict[str, int] = {}
        for batch in batches:
            tokens[batch.stream] = tokens.get(batch.stream, 0) + batch.target_count
            rows[batch.stream] = rows.get(batch.stream, 0) + len(batch.rows)
        return Counts(tokens, rows)

    def add_penalties(self, penalty: PenaltyFn) -> dict[str, Tensor]:
        """Stream penalties into ``param.grad``."""
        return stream_penalties(self.weights, penalty, self._add_gradient)

    def _add_gradient(self, name: str, gradient: Tensor) -> None:
        parameter = self._named[name]
        gradient = gradient.to(parameter.dtype)
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def gradients(self) -> LocalGradients:
        """Gradients of this step; the same object until the step."""
        if self._gradients is None:
            self._gradients = LocalGradients(self._named, self._units)
        return self._gradients

    # ---- the step ---------------------------------------------------------------------------------------------------
    def step(self) -> None:
        """Refuse non-finite values, clip, update, restore frozen entries, clear."""
        loss = torch.stack([value for value, _ in self._losses]).sum() if self._losses else torch.zeros(())
        norm = self._norm()
        self._refuse_non_finite(loss, norm)
        if self.spec.optim.clip is not None and norm > self.spec.optim.clip:
            for parameter in self._named.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.spec.optim.clip / norm)
        lr = set_lr(self._optimizer, lr_factor(self._step, self.spec.total_steps, self.spec.optim))
        self._optimizer.step()
        if self._gradients is not None:
            with torch.no_grad():
                for parameter, mask, values in self._gradients.frozen:
                    parameter[mask] = values
        self._step += 1
        self._metrics = {"loss": float(loss), "grad_norm": float(norm), "lr": lr, "tokens": self._tokens}
        self.discard()

    def _norm(self) -> Tensor:
        norms = [torch.linalg.vector_norm(p.grad.float()) for p in self._named.values() if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=self.device)

    def _refuse_non_finite(self, loss: Tensor, norm: Tensor) -> None:
        if bool(torch.isfinite(loss)) and bool(torch.isfinite(norm)):
            return
        where = f"{self.spec.where}, step {self._step + 1}"
        bad = [batch for value, batch in self._losses if not bool(torch.isfinite(value))]
        what = "loss" if bad else "gradient"
        rows = [row.where for batch in bad or [b for _, b in self._losses] for row in batch.rows]
        names = [n for n, p in self._named.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        self.discard()
        detail = f"; first tensor: {names[0]}" if names and not bad else ""
        raise TrainingError(
            f"non-finite {what} before the optimiser step{detail}; rows: {', '.join(rows)}",
            where=where,
            fix="look at these rows, lower the learning rate, or lengthen the warm-up; weights and checkpoints are untouched",
        )

    def discard(self) -> None:
        """Forget gradients, frozen entries and remembered losses."""
        self._optimizer.zero_grad(set_to_none=True)
        self._gradients = None
        self._losses = []
        self._tokens = 0

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward of one batch; leaves no gradient, no state and no random draw behind."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            out = self.forward(batch)
            (out.nll_N.sum() / max(1, batch.target_count)).backward()
        self.discard()

    # ---- reference --------------------------------------------------------------------------------------------------
    def reference(self, batch: Batch, needs: frozenset[str] = frozenset()) -> ModelOutput:
        """Outputs with every trained tensor as it was at stage start. Raises TrainingError if none was kept."""
        if self._start is None:
            raise TrainingError(
                "no reference is kept in this stage", where=self.spec.where, fix="claim reference:stage_start"
            )
        off = self.spec.adapter_off() if self.spec.adapter_off else contextlib.nullcontext()
        with torch.no_grad(), off, self._swapped(self._start):
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
        """``model.safetensors``, ``optimizer.safetensors``, ``engine.json`` and the random state of this rank."""
        save_tensors(folder / "model.safetensors", {n: p for n, p in self._named.items()})
        moments: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for name, parameter in self._named.items():
            state = self._optimizer.state.get(parameter)
            if state:
                moments[f"exp_avg|{name}"] = state["exp_avg"]
                moments[f"exp_avg_sq|{name}"] = state["exp_avg_sq"]
                counts[name] = int(state["step"])
        if moments:
            save_tensors(folder / "optimizer.safetensors", moments)
        uneven = {n: c for n, c in counts.items() if c != self._step}
        write_json(folder / "engine.json", {"step": self._step, "optimizer_steps": uneven, "format": 1})
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        (folder / "rng").mkdir(exist_ok=True)
        save_tensors(folder / "rng" / f"rank-{world.rank():03d}.safetensors", rng)

    def load(self, folder: Path) -> None:
        """Restore weights, moments, step and random state. Raises StateError for a checkpoint of another model."""
        record = read_json(folder / "engine.json")
        weights = load_tensors(folder / "model.safetensors")
        if set(weights) != set(self._named) or any(weights[n].shape != p.shape for n, p in self._named.items()):
            raise StateError(
                "checkpoint is of another model or adapter", where=str(folder), fix="restore the run's config"
            )
        moments = load_tensors(folder / "optimizer.safetensors") if (folder / "optimizer.safetensors").is_file() else {}
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(weights[name])
                if f"exp_avg|{name}" in moments:
                    steps = record["optimizer_steps"].get(name, record["step"])
                    self._optimizer.state[parameter] = {
                        "step": torch.tensor(float(steps)),
                        "exp_avg": moments[f"exp_avg|{name}"].to(self.device),
                        "exp_avg_sq": moments[f"exp_avg_sq|{name}"].to(self.device),
                    }
        self._step = int(record["step"])
        rng_file = folder / "rng" / f"rank-{world.rank():03d}.safetensors"
        if rng_file.is_file():
            rng = load_tensors(rng_file)
            torch.set_rng_state(rng["cpu"])
            if "cuda" in rng and self.device.type == "cuda":
                torch.cuda.set_rng_state(rng["cuda"], self.device)

    def metrics(self) -> dict[str, float]:
        """loss, grad_norm, lr and tokens of the last step."""
        return dict(self._metrics)


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


def run_model(model: nn.Module, batch: Batch, *, device: torch.device, hidden: bool = False) -> ModelOutput:
    """Forward pass with the head applied to predicting positions only.

    Position t predicts token t + 1, so the mask of kept positions is the supervised mask shifted by one.
    """
    labels_BT = batch.labels_BT.to(device)
    keep_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    keep_BT[:, :-1] = labels_BT[:, 1:] != -100
    caught: list[Tensor] = []
    handle = None
    if hidden:
        decoder = model.get_decoder()  # type: ignore[operator]
        handle = decoder.register_forward_hook(lambda module, args, output: caught.append(output.last_hidden_state))
    try:
        logits = model(
            input_ids=batch.input_ids_BT.to(device),
            attention_mask=batch.attention_BT.to(device),
            logits_to_keep=keep_BT,
            use_cache=False,
            **{name: value.to(device) for name, value in batch.pixels.items()},
        ).logits
    finally:
        if handle is not None:
            handle.remove()
    logits_NV = logits if logits.ndim == 2 else logits[keep_BT]
    targets_N = labels_BT[:, 1:][keep_BT[:, :-1]]
    row_N = torch.arange(len(labels_BT), device=device)[:, None].expand_as(keep_BT)[keep_BT]
    nll_N = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
    return ModelOutput(logits_NV, targets_N, row_N, nll_N, caught[0] if caught else None)
