"""L2 anchor: keep the weights of a stage near where they started.

Source: the usual quadratic penalty to the previous task's weights; the "L2" baseline of Kirkpatrick et al., "Overcoming
catastrophic forgetting in neural networks", PNAS 2017, arXiv:1612.00796, section 2.1 (EWC with an identity Fisher).
Hooks: on_stage_start (takes the anchor), weight_penalty (every step).
State: tensors "anchor" by parameter name, at stage start.
Shapes: O out features, I in features, R rank.

The anchor is on effective weights. For a LoRA pair the distance is that of the product, ``|s (B A - B0 A0)|^2``, computed
from R x R Gram matrices without forming an O x I matrix; anchoring A and B themselves would punish A for leaving its random
initial values, which have no effect on the model. Under ``carry: merge`` B0 is zero and the penalty is ``|s B A|^2``.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.types import WeightUnit
from mcit.methods.base import Method
from mcit.methods.formulas.lowrank import product_distance2


class L2(Method):
    """Half the weight times the squared distance of the trained weights from their values at stage start."""

    name = "l2"

    class Config(MethodConfig):
        """Settings of the anchor."""

        weight: float = Field(1.0, ge=0)
        """Factor of the penalty."""

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """An fp32 copy of every trained tensor."""
        return sum(4 * math.prod(shape) for shape in shapes.values())

    def on_stage_start(self, ctx: StageContext) -> None:
        """Store every trained tensor."""
        self.tensors.drop("anchor")
        for unit in ctx.weights.units():
            with ctx.weights.gathered(unit) as tensors:
                for role, tensor in tensors.items():
                    self.tensors.put("anchor", unit.params[role], tensor)

    def weight_penalty(self, unit: WeightUnit, tensors: Mapping[str, Tensor], ctx: StepContext) -> Tensor | None:
        """``weight / 2 * |w - w0|^2`` of the unit's effective weight."""
        anchors = {role: self.tensors.get("anchor", name) for role, name in unit.params.items()}
        if self.config.weight == 0 or any(anchor is None for anchor in anchors.values()):
            return None
        start = {role: a.to(tensors[role].device) for role, a in anchors.items() if a is not None}
        if unit.kind == "lora" and len(tensors) == 2:
            distance2 = unit.scale**2 * product_distance2(tensors["B"], tensors["A"], start["B"], start["A"])
        else:
            distance2 = sum(
                (((t - start[role]) ** 2).sum() for role, t in tensors.items()),
                start=next(iter(start.values())).new_zeros(()),
            )
        return 0.5 * self.config.weight * distance2
