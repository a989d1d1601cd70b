"""The contract between a continual-learning method and everything else: hooks, claims and state.

A method returns contributions; the loop combines them. It is handed whole tensors, one unit at a time, and never reaches
for a parameter or a gradient itself, so one file runs on any engine. See ``docs/methods.md`` for a guide.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mcit.core.config import MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, Gradients, NamesContext, StageContext, StepContext, StepPasses
from mcit.core.tensorstore import HostTensors
from mcit.core.types import (
    Batch,
    Claims,
    Draw,
    JsonDict,
    LossSum,
    ModelOutput,
    Plan,
    PoolSize,
    Row,
    Stage,
    StreamSpec,
    WeightUnit,
)

HOOKS = (
    "select_trainable",
    "streams",
    "order",
    "choose",
    "on_row",
    "on_stage_start",
    "on_batch",
    "loss_term",
    "passes",
    "weight_penalty",
    "before_step",
    "after_step",
    "on_stage_end",
    "check",
)
_HOOK_LIKE = (("on_", "before_", "after_", "select_"), ("_term", "_penalty"))


class Method:
    """One continual-learning idea: contributions at hooks, plus its own state.

    State is what `state_dict` returns (JSON) and what lies in `tensors` (safetensors); a method keeps nothing else
    between hooks, for a resumed run restores these two alone.
    """

    name: str = ""
    """The name it has in the config: of the file, or ``module:Class``. Its state and its metrics go by it."""
    state_version: ClassVar[int] = 1
    prepares: ClassVar[bool] = False
    """Of a method that forgets: may be listed in stages that forget nothing, where it keeps what it will need."""
    step_passes: float = 1.0
    """Forward and backward passes over the rows of a step, for the plan; more than one with the hook `passes`."""
    step_copies: int = 0
    """Copies of the trained tensors that `passes` holds at a time, for the plan's estimate."""
    penalty_kinds: frozenset[str] = frozenset({"lora", "tensor"})
    """Kinds of units that `weight_penalty` is asked for; ``block`` is the LoRA pairs of a transformer block together."""

    class Config(MethodConfig):
        """Typed settings; unknown keys are refused."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        starts, ends = _HOOK_LIKE
        for name, value in vars(cls).items():
            looks = name.startswith(starts) or name.endswith(ends)
            if inspect.isfunction(value) and looks and not name.startswith("_") and name not in HOOKS:
                near, *_ = difflib.get_close_matches(name, HOOKS, cutoff=0.0)
                raise TypeError(
                    f"{cls.__name__}.{name} is not a hook; did you mean '{near}'? (hooks: {', '.join(HOOKS)})"
                )

    def __init__(self, config: Any) -> None:
        self.config = config
        self.tensors = HostTensors()

    @property
    def claims(self) -> Claims:
        """What it holds and needs: a plain class attribute, or a property where that depends on the settings."""
        return Claims()

    # ---- before a model exists (no tensors) -------------------------------------------------------------------------
    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """Problems of these settings in this stage of this plan; ``where`` is a setting's name, or a place as plans give it."""
        return []

    def select_trainable(self, names: frozenset[str], ctx: NamesContext) -> frozenset[str]:
        """The subset of `names` that may train; intersected over methods."""
        return names

    def foresee(self, trained: frozenset[str], ctx: NamesContext) -> None:
        """Planning only: take into `state_dict` what a stage that trains these tensors will leave of names and shapes.

        The next stage's `select_trainable` is then asked with that state, so that what would fail later is refused now.
        """

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """Streams to read beside ``task``, by name."""
        return {}

    def order(self, stream: str, epoch: int, count: int, seed: int) -> Sequence[Draw]:
        """Slot ``order:<stream>``: the `count` (row, view) pairs of an epoch of a stream with `count` rows.

        A function of its arguments and the settings alone: it is asked again after a resume, and by every rank.
        """
        raise NotImplementedError

    def choose(self, stream: str, count: int, size: int, ctx: StepContext) -> Sequence[Draw]:
        """Slot ``choose:<stream>``: the `size` (row, view) pairs of the coming step out of a stream's `count` rows.

        May depend on the method's state and on weights; must be the same on every rank.
        """
        raise NotImplementedError

    def on_row(self, row: Row, view: int, seed: int) -> Row:
        """The row as a view above 0 of a stream with this method's order or choice shows it; 0 is the row itself.

        Another wording (``turns``) or other pictures (``encoding.changes``); id and number of images stay. A function of
        its arguments and the settings alone.
        """
        return row

    def recipes(self) -> tuple[str, ...]:
        """Recipes this method reads beside the stage's own (``ctx.pool(recipe)``); built and checked by the plan."""
        return ()

    def mixed_rows(self, pools: Mapping[str, int]) -> int:
        """Rows that this method shuffles into the task's order (streams with ``mixed``), so that the plan can count steps.

        `pools` is the number of training rows by recipe.
        """
        return 0

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """Most bytes of this method's tensors in host memory at the end of a stage, for the plan's estimate.

        `shapes` are those of the trained tensors by parameter name; `stages` counts those with this method, this included.
        """
        return 0

    def run_bytes(self, pools: Mapping[str, PoolSize], *, hidden: int) -> int:
        """Bytes that this method keeps once per run in a memory-mapped file (``ctx.blob``), for the plan's estimate.

        `pools` has the size of every recipe in `recipes`; `hidden` is the width of the decoder.
        """
        return 0

    # ---- stage boundaries (collective: every rank calls, in the same order) -----------------------------------------
    def on_stage_start(self, ctx: StageContext) -> None:
        """Before the first step; not called again after a resume inside the stage."""

    def on_stage_end(self, ctx: StageContext) -> None:
        """After the last step, before the stage is committed."""

    # ---- every micro-batch ------------------------------------------------------------------------------------------
    def on_batch(self, batch: Batch, ctx: StepContext) -> Batch:
        """Change a batch before the forward pass; must keep the number of rows and of supervised tokens."""
        return batch

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """A loss on activations of any stream, as a sum and what it is counted in; None is nothing."""
        return None

    def passes(self, step: StepPasses, ctx: StepContext) -> None:
        """The passes of an optimiser step, with the slot ``step:passes``; without it there is one ``step.accumulate()``.

        May write units (``ctx.weights.edit``); what is in the gradients at the end is the step's.
        """
        step.accumulate()

    # ---- once per optimiser step ------------------------------------------------------------------------------------
    def weight_penalty(self, unit: WeightUnit, tensors: Mapping[str, Tensor], ctx: StepContext) -> Tensor | None:
        """A scalar that depends on this unit's fp32 tensors alone, or None; the engine differentiates it."""
        return None

    def before_step(self, grads: Gradients, ctx: StepContext) -> None:
        """Read or edit gradients after reduction and penalties, before the finite check and clipping.

        Whoever has this hook counts as an editor: with two of them ``gradient_order`` says who comes first.
        """

    def after_step(self, ctx: StepContext) -> None:
        """After the weights changed; may read local weights, and write units with ``weights:edit`` or ``weights:prox``."""

    # ---- state ------------------------------------------------------------------------------------------------------
    def state_dict(self) -> JsonDict:
        """Small state: numbers, strings, lists."""
        return {}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take back what `state_dict` returned. A key that `state_dict` does not give then is refused by who reads the file."""

    def overrides(self, hook: str) -> bool:
        """Whether this class implements a hook (unused hooks are never called)."""
        return getattr(type(self), hook) is not getattr(Method, hook)
