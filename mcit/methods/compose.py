"""Several methods as one: the combination law of each hook, and their state on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor

from mcit.core.errors import DataError, PlanError, TrainingError
from mcit.core.interfaces import DataContext, Gradients, NamesContext, StageContext, StepContext, StepPasses
from mcit.core.lookup import class_of
from mcit.core.statefile import load_state, save_state
from mcit.core.types import (
    SHARED,
    WRITES,
    Batch,
    Claims,
    Counts,
    LossSum,
    MethodSpec,
    ModelOutput,
    Stage,
    StreamSpec,
    WeightUnit,
)
from mcit.methods.base import Method
from mcit.methods.claimed import ClaimedContext


class MethodSet:
    """The methods of one stage, in listed order."""

    def __init__(self, methods: Sequence[Method], *, gradient_order: Sequence[str] = ()) -> None:
        self.methods = tuple(methods)
        self._rank = {name: i for i, name in enumerate(gradient_order)}
        self._views: dict[str, ClaimedContext] = {}

    @classmethod
    def build(cls, stage: Stage, inherited: Mapping[str, Path] | None = None) -> MethodSet:
        """Methods of a stage with the state they left in earlier stages (`inherited`: name of the folder to its path)."""
        built = []
        for spec in stage.methods:
            method = make(spec)
            home = (inherited or {}).get(state_folder(method.name))
            if home is not None:
                load_state(method, home)
            built.append(method)
        return cls(built, gradient_order=stage.gradient_order)

    def order(self, hook: str) -> list[Method]:
        """Who has a hook, in the order of calling.

        Editors of gradients by `gradient_order`. At the start and the end of a stage and after a step those who write
        weights come first, so that the others see what is trained on, or committed. Else as listed.
        """
        hooked = [m for m in self.methods if m.overrides(hook)]
        if hook == "before_step":
            return sorted(hooked, key=lambda m: self._rank.get(m.name, len(self._rank)))
        if hook in ("on_stage_start", "after_step", "on_stage_end"):
            return sorted(hooked, key=lambda m: not m.claims.slots & WRITES)
        return hooked

    def _view(self, method: Method, ctx: Any) -> Any:
        """The context as this method may use it."""
        view = self._views.get(method.name)
        if view is None or view.inner is not ctx:
            view = self._views[method.name] = ClaimedContext(ctx, method)
        return view

    @property
    def needs(self) -> frozenset[str]:
        """Union of what the methods need."""
        return frozenset().union(*(m.claims.needs for m in self.methods))

    @property
    def replaces_task_loss(self) -> bool:
        """Whether a method holds the slot objective:task."""
        return any("objective:task" in m.claims.slots for m in self.methods)

    # ---- hooks ------------------------------------------------------------------------------------------------------
    def select_trainable(self, names: frozenset[str], ctx: NamesContext) -> frozenset[str]:
        """Intersection. Raises PlanError when nothing is left to train, or a method names something new."""
        chosen = names
        for method in self.order("select_trainable"):
            mine = method.select_trainable(names, ctx)
            if mine - names:
                what = f"selects '{sorted(mine - names)[0]}', which this stage does not train"
                raise PlanError(what, where=method.name, fix="let select_trainable return names that it was given")
            chosen &= mine
        if names and not chosen:
            raise PlanError(
                "the methods together leave nothing to train", where=ctx.stage.name, fix="remove one of them"
            )
        return chosen

    def streams(self, ctx: DataContext) -> dict[str, StreamSpec]:
        """Disjoint union. Raises PlanError for a name opened twice or not claimed."""
        opened: dict[str, StreamSpec] = {}
        for method in self.order("streams"):
            for name, spec in method.streams(ctx).items():
                if name in SHARED and name in opened:
                    size = opened[name].per_step
                    if not (size and spec.per_step):  # one of the two only reads it in passes
                        spec = max(spec, opened[name], key=lambda each: each.per_step)
                    elif spec.per_step != size:
                        what = f"reads {spec.per_step} rows of stream '{name}' per step, another method {size}"
                        raise PlanError(what, where=method.name, fix=f"set per_step: {size}")
                elif name in opened or name == "task":
                    raise PlanError(
                        f"stream '{name}' is opened twice", where=method.name, fix="remove one of the methods"
                    )
                if name not in method.claims.streams:
                    what, fix = f"opens stream '{name}' without claiming it", "name it in claims.streams"
                    raise PlanError(what, where=method.name, fix=fix)
                if not spec.rows:
                    fix = "leave the method out of this stage, or give it rows"
                    raise DataError(f"stream '{name}' has no rows", where=method.name, fix=fix)
                opened[name] = spec
        return opened

    def order_of(self, stream: str) -> Method | None:
        """The method that orders a stream."""
        return self._holder(f"order:{stream}")

    def chooser_of(self, stream: str) -> Method | None:
        """The method that chooses the rows of each step of a stream."""
        return self._holder(f"choose:{stream}")

    def group_of(self, stream: str) -> int:
        """Rows of a stream that share a micro-batch."""
        return max((m.claims.groups.get(stream, 1) for m in self.methods), default=1)

    def _holder(self, slot: str) -> Method | None:
        return next((m for m in self.methods if slot in m.claims.slots), None)

    def on_stage_start(self, ctx: StageContext) -> None:
        """Who writes weights first, then the others."""
        for method in self.order("on_stage_start"):
            method.on_stage_start(self._view(method, ctx))

    def on_batch(self, batch: Batch, ctx: StepContext) -> Batch:
        """Composition in listed order. Raises TrainingError if a method changes what the step was counted by."""
        for method in self.order("on_batch"):
            new = method.on_batch(batch, self._view(method, ctx))
            if len(new.rows) != len(batch.rows) or new.stream != batch.stream:
                what, fix = "on_batch changed the rows or the stream of a batch", "let it change tensors alone"
                raise TrainingError(what, where=method.name, fix=fix)
            batch = new
        return batch

    def loss_terms(
        self, out: ModelOutput, batch: Batch, counts: Counts, ctx: StepContext
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Sum of all terms, each divided by its count over the whole step; and the detached share of each method."""
        total: Tensor | None = None
        shares: dict[str, Tensor] = {}
        for method in self.order("loss_term"):
            term = method.loss_term(out, batch, self._view(method, ctx))
            if term is not None:
                value = _normalised(term, batch, counts)
                total = value if total is None else total + value
                shares[method.name] = value.detach()
        return total, shares

    def term_of(self, method: Method, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """The loss term of one method alone."""
        return method.loss_term(out, batch, self._view(method, ctx))

    def weight_penalty(self, unit: WeightUnit, tensors: Mapping[str, Tensor], ctx: StepContext) -> dict[str, Tensor]:
        """Penalty of each method on this unit."""
        asked = [m for m in self.order("weight_penalty") if unit.kind in m.penalty_kinds]
        found = {m.name: m.weight_penalty(unit, tensors, self._view(m, ctx)) for m in asked}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def has_penalty(self) -> bool:
        """Whether any method has a weight penalty."""
        return bool(self.order("weight_penalty"))

    @property
    def penalty_kinds(self) -> frozenset[str]:
        """Kinds of units that the penalties are asked for."""
        return frozenset().union(*(m.penalty_kinds for m in self.order("weight_penalty")))

    def passes(self, step: StepPasses, ctx: StepContext) -> None:
        """Those of the holder of step:passes, or one over everything."""
        holders = self.order("passes")
        if not holders:
            step.accumulate()
        for method in holders:
            method.passes(step, self._view(method, ctx))

    def before_step(self, grads: Gradients, ctx: StepContext) -> None:
        """In `gradient_order`, then listed order."""
        for method in self.order("before_step"):
            method.before_step(grads, self._view(method, ctx))

    def after_step(self, ctx: StepContext) -> None:
        """Who writes weights first, then who reads them."""
        for method in self.order("after_step"):
            method.after_step(self._view(method, ctx))

    def on_stage_end(self, ctx: StageContext) -> None:
        """Who writes weights first, then who reads what will be committed."""
        for method in self.order("on_stage_end"):
            method.on_stage_end(self._view(method, ctx))

    # ---- state ------------------------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """``<method>/state.json`` and ``<method>/tensors.safetensors`` below `folder`."""
        for method in self.methods:
            save_state(method, folder / state_folder(method.name))

    def load(self, folder: Path) -> None:
        """Restore every method. Raises StateError for missing state, another state version or keys that it does not know."""
        for method in self.methods:
            load_state(method, folder / state_folder(method.name))


def make(spec: MethodSpec) -> Method:
    """A method with its settings and empty state, called as in the config. Raises PlanError for a class that is none."""
    cls = class_of("methods", spec.name, base=Method)
    try:
        method: Method = cls(spec.config)
        claims = method.claims
    except TypeError as error:
        raise PlanError(
            f"cannot be made from its settings ({error})",
            where=spec.name,
            fix="let __init__ take the settings alone and hand them to super().__init__",
        ) from error
    if not isinstance(claims, Claims):
        raise PlanError(
            f"claims is {type(claims).__name__}, not Claims", where=spec.name, fix="write claims = Claims(…)"
        )
    method.name = spec.name
    return method


def state_folder(name: str) -> str:
    """Folder of a method's state; that of ``module:Class`` cannot be the folder of a file in mcit/methods."""
    return quote(name, safe="")


def _normalised(term: LossSum, batch: Batch, counts: Counts) -> Tensor:
    return (term.sum / counts.of(batch.stream, term.per)).float()  # a bf16 loss would lose the sum over micro-batches
