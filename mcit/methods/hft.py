"""HFT, half fine-tuning: freeze half of the decoder in every stage, train the other half as usual.

Paper: Hui et al., "HFT: Half Fine-Tuning for Large Language Models", ACL 2025, arXiv:2404.18466.
Hooks: select_trainable (whole tensors, before the optimiser exists), on_stage_start (logs the selection; draws masks),
before_step (row and element only: zeroes gradients, freezes entries), on_stage_end (row and element only: verifies).
State: "log", the trained parameter names of each stage with their sha256; "digests" of frozen entries; tensors "frozen"
by parameter name, true where an entry keeps its value: (O,) for rows, the tensor's shape for elements.
Shapes: O output rows, I in features.

The category rule in each decoder block: 2 of Q, K, V, O; 2 of up, gate, down in a random half of the blocks and 1 of
them in the others; 1 of 2 norms. A new draw per stage, fixed inside it. Projector, final norm and whatever else
``adapter.also_train`` names are trained whole, embeddings and head too (in the paper they always train: list them
there). A bias follows its matrix. Tied embeddings are one tensor and so one decision.

No code by the authors was found and the paper's text was read at second hand, so these points are ours:
- Grouped-query attention. K and V are smaller than Q and O, and 2 of 4 would train 20 to 80 % of the attention, by the
  draw. Parts of a category are halved among those of equal size: one of {Q, O} and one of {K, V}. With four equal
  matrices this is the paper's rule. A fused matrix (qkv, gate_up) has no equal: it trains in half of the blocks.
- ``model`` and ``layer`` are compared in the paper by name only. ``model``: half of all matrices, embeddings and head
  included where they train, and half of the norms. ``layer``: half of the blocks, whole.
- ``row`` and ``element`` are not in the paper. They save no compute: the engine restores frozen entries after each
  step; their gradients are zeroed so that clipping sees the trained ones only. Masks take a byte per row or per weight.
- LoRA stages. The same rule over pairs, A and B together. Under ``carry: merge`` (and ``stack``) a frozen pair stays at
  zero, so its matrix does not change in this stage, as in full fine-tuning; under ``keep`` it keeps what earlier stages
  stored.
- ``complement`` trains what the last HFT stage froze, ``fixed`` what the first one trained.

Whole-tensor freezing is exact because such tensors are not in the optimiser: momentum and decay never reach them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import PlanError, Problem
from mcit.core.interfaces import Gradients, NamesContext, StageContext, StepContext
from mcit.core.seeds import seed_for
from mcit.core.types import Claims, JsonDict, Plan, Stage
from mcit.methods.base import Method
from mcit.methods.formulas.entries import draw_masks, freeze_entries, verify_entries
from mcit.methods.formulas.halves import DRAWS, Part, block_parts, decoder_container, outside_parts, part_name
from mcit.methods.formulas.selections import Log, checked, followed, recorded
from mcit.methods.planning.hft import ENTRIES, hft_problems


class HFT(Method):
    """Train half of the decoder in each stage, bit for bit nothing of the other half."""

    name = "hft"
    claims = Claims(slots=frozenset({"trainable-mask"}), needs=frozenset({"dtype:full"}))

    class Config(MethodConfig):
        """Settings of the draw."""

        selection: Literal["category", "layer", "model", "row", "element"] = Field("category")
        """What is halved: the parts of each category in each block (paper), blocks, all matrices, rows, or entries."""
        schedule: Literal["independent", "complement", "fixed"] = Field("independent")
        """A new draw per stage (paper), what the last HFT stage froze, or what the first one trained."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._log: Log = []
        self._digests: dict[str, str] = {}

    @property
    def _masks_entries(self) -> bool:
        return self.config.selection in ENTRIES

    def overrides(self, hook: str) -> bool:
        """Whether these settings use a hook: whole-tensor selections leave gradients alone."""
        return super().overrides(hook) and (hook != "before_step" or self._masks_entries)

    # ---- before a model exists --------------------------------------------------------------------------------------
    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """See `hft_problems`."""
        return hft_problems(self.config, stage, plan, name=self.name)

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """Masks: a byte per row or per weight of the decoder's tensors, at most of all that train."""
        rows = self.config.selection == "row"
        return sum(s[0] if rows else math.prod(s) for s in shapes.values()) if self._masks_entries else 0

    def select_trainable(self, names: frozenset[str], ctx: NamesContext) -> frozenset[str]:
        """All names but the parts that this stage freezes. Raises PlanError when no part would be left."""
        if self._masks_entries:
            return names
        container = decoder_container(ctx.shapes)
        parts = block_parts({n: ctx.shapes[n] for n in names}, container) if container else []
        if self.config.selection == "model":
            parts += outside_parts({n: ctx.shapes[n] for n in names})
        if not parts:
            raise PlanError("finds no decoder blocks to halve", where=self.name, fix="remove hft from this stage")
        chosen = self._scheduled(parts, ctx)
        if not chosen:
            raise PlanError(
                f"schedule: {self.config.schedule} leaves no part of the decoder to train in this stage",
                where=f"stage {ctx.stage.name}, {self.name}",
                fix="use schedule: independent, or more adapter.targets",
            )
        frozen = {part.name for part in parts} - chosen
        return frozenset(n for n in names if part_name(n) not in frozen)

    def foresee(self, trained: frozenset[str], ctx: NamesContext) -> None:
        """Log the stage as it will be logged at its start."""
        self._log = recorded(self._log, sorted(trained), ctx.stage)

    def _scheduled(self, parts: list[Part], ctx: NamesContext) -> frozenset[str]:
        log = [entry for entry in self._log if entry["stage"] < ctx.stage.index]
        if self.config.schedule == "independent" or not log:
            return DRAWS[self.config.selection](parts, seed=seed_for(ctx.seed, self.name))
        return followed(parts, log, schedule=self.config.schedule)

    # ---- stage boundaries -------------------------------------------------------------------------------------------
    def on_stage_start(self, ctx: StageContext) -> None:
        """Log what trains; draw the masks of entries and remember what they protect."""
        trained = sorted(name for unit in ctx.weights.units() for name in unit.params.values())
        self._log = recorded(self._log, trained, ctx.stage)
        self._digests = {}
        if self._masks_entries:
            c = self.config
            self._digests = draw_masks(self.tensors, ctx, selection=c.selection, schedule=c.schedule, name=self.name)

    def on_stage_end(self, ctx: StageContext) -> None:
        """Compare frozen entries with stage start, bit for bit. Raises TrainingError when one has moved."""
        verify_entries(self.tensors, self._digests, ctx, name=self.name)

    # ---- once per step ----------------------------------------------------------------------------------------------
    def before_step(self, grads: Gradients, ctx: StepContext) -> None:
        """Zero the gradients of frozen entries, and have the engine restore these entries after the step."""
        freeze_entries(self.tensors, grads)

    # ---- state ------------------------------------------------------------------------------------------------------
    def state_dict(self) -> JsonDict:
        """The selection log and the digests of frozen entries."""
        return {"log": self._log, "digests": self._digests}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take both back. Raises StateError for a list of names that is not the one that was hashed."""
        self._log = checked(state["log"], where=self.name)
        self._digests = dict(state["digests"])
