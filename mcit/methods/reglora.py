"""RegLoRA: keep new low-rank updates small where earlier updates were large.

Paper: Chen et al., "SEFE: Superficial and Essential Forgetting Eliminator for Multimodal Continual Instruction Tuning",
ICML 2025, arXiv:2505.02486, the RegLoRA section.
Hooks: select_trainable (refuses state of another adapter, selects nothing), on_stage_start (refuses half a LoRA pair),
weight_penalty (every step), on_stage_end (records key positions).
State: tensors "keys" by unit, packed as in `formulas/lowrank.py` (int32 positions or a bit mask, whichever is smaller), and
"shapes" by unit, [O, I].
Shapes: O out features, I in features, R rank, K kept positions.

The penalty is ``weight / num_units * sum over units of mean |B A| at the keys``: L1, a mean per matrix, then over matrices.
As in the authors' code the LoRA scale (alpha / rank) is left out (`scaled` puts it in) and the first stage has no penalty.
Differs from that code, by intent: a position chosen in two stages counts once, as the paper's mask does (`count_repeats`
counts it twice, as the code does); the mean over matrices is over those of the stage, not a fixed 224; ranking and sum are
in fp32, not bf16; at least one position is kept where 2 % of a small matrix is none; the penalty is computed once per step.
"""

from collections.abc import Mapping

from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import PlanError, StateError
from mcit.core.interfaces import NamesContext, StageContext, StepContext
from mcit.core.types import Claims, JsonDict, WeightUnit
from mcit.methods.base import Method
from mcit.methods.formulas.lowrank import key_count, key_mean, top_positions, union


class RegLoRA(Method):
    """Penalise |B A| at the positions that mattered in earlier stages."""

    name = "reglora"
    claims = Claims(needs=frozenset({"adapter:lora", "carry:merge"}))

    class Config(MethodConfig):
        """Settings of the penalty."""

        weight: float = Field(2500.0, ge=0)
        """Factor of the penalty; 2500 in the authors' code."""
        keep: float = Field(0.02, gt=0, le=1)
        """Share of each matrix that is kept as key positions after a stage (0.02 is 2 %); at least one position."""
        count_repeats: bool = False
        """Count a position once per stage that chose it, as the authors' code does."""
        scaled: bool = False
        """Penalise the change of the weight itself, alpha / rank times B A."""

    def __init__(self, config: "RegLoRA.Config") -> None:
        super().__init__(config)
        self._shapes: dict[str, list[int]] = {}

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """Key positions if no stage chose one twice, packed as they are: 4 bytes each, or a bit (or more) per weight."""
        total, planes = 0, stages.bit_length() if self.config.count_repeats else 1
        for name, (rows, *_) in shapes.items():
            before, found, after = name.partition(".lora_B.")
            if found:
                columns = shapes[f"{before}.lora_A.{after}"][1]
                keys = stages * key_count((rows, columns), self.config.keep)
                total += min(4 * keys, planes * rows * -(-columns // 8))
        return total

    def select_trainable(self, names: frozenset[str], ctx: NamesContext) -> frozenset[str]:
        """All of `names`. Raises StateError if the adapter lacks a unit of the state or has it in another shape."""
        have = _pairs(names, ctx)
        for unit, shape in self._shapes.items():
            if have.get(unit) != shape:
                there = f"is {have[unit]} in this stage" if unit in have else "is not adapted in this stage"
                raise StateError(
                    f"key positions were recorded for '{unit}' of shape {shape}, which {there}",
                    where=f"stage {ctx.stage.name}, method {self.name}",
                    fix="use the base and adapter.targets of the earlier stages, or start a new run",
                )
        return names

    def foresee(self, trained: frozenset[str], ctx: NamesContext) -> None:
        """Every pair that trains will have keys."""
        self._shapes |= _pairs(trained, ctx)

    def on_stage_start(self, ctx: StageContext) -> None:
        """Raises PlanError if another method freezes one half of a LoRA pair: the product needs both."""
        for unit in ctx.weights.units("lora"):
            if set(unit.params) != {"A", "B"}:
                raise PlanError(
                    f"'{unit.name}' trains only {' and '.join(sorted(unit.params))} of its LoRA pair; reglora needs both",
                    where=f"stage {ctx.stage.name}",
                    fix="let the method that freezes the other half freeze whole pairs, or remove one of the two",
                )

    def weight_penalty(self, unit: WeightUnit, tensors: Mapping[str, Tensor], ctx: StepContext) -> Tensor | None:
        """``weight / num_units * mean |B A|`` at the unit's keys; None in the first stage and for a unit added later."""
        keys = self.tensors.get("keys", unit.name)
        if unit.kind != "lora" or keys is None or self.config.weight == 0:
            return None
        factor = self.config.weight * (unit.scale if self.config.scaled else 1.0) / ctx.num_units
        return factor * key_mean(tensors["B"], tensors["A"], keys)

    def on_stage_end(self, ctx: StageContext) -> None:
        """Add the largest entries of this stage's update to the keys of each unit."""
        for unit in ctx.weights.units("lora"):
            with ctx.weights.gathered(unit) as tensors:
                D_OI = tensors["B"] @ tensors["A"]
            if not D_OI.any():
                continue  # an update that is zero everywhere has no key positions
            new_K = top_positions(D_OI, key_count(unit.shape, self.config.keep)).cpu()
            old = self.tensors.get("keys", unit.name)
            keys = union(old, new_K, shape=unit.shape, repeats=self.config.count_repeats)
            self.tensors.put("keys", unit.name, keys)
            self._shapes[unit.name] = list(unit.shape)

    def state_dict(self) -> JsonDict:
        """Shapes of the units that have keys."""
        return {"shapes": dict(self._shapes)}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take back the shapes."""
        self._shapes = {unit: list(shape) for unit, shape in state["shapes"].items()}


def _pairs(names: frozenset[str], ctx: NamesContext) -> dict[str, list[int]]:
    """Shape [O, I] of the update of each LoRA pair, by unit."""
    found = {}
    for name in names:
        unit, is_b, rest = name.partition(".lora_B.")
        if is_b:
            found[unit] = [ctx.shapes[name][0], ctx.shapes[f"{unit}.lora_A.{rest}"][1]]
    return found
