"""O-LoRA: every stage learns in a subspace orthogonal to those of earlier stages.

Paper: Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", Findings of EMNLP 2023,
arXiv:2310.14152, section 3.2: rows of a LoRA factor A span the subspace of a task; earlier adapters stay active and frozen, and
the loss gets ``weight * sum_{i<t} sum |A_i A_t^T|`` over all adapted matrices. The released code adds ``norm_weight`` times the
L2 norms (not squared) of the new A and B.
Hooks: weight_penalty (every step), on_stage_end (keeps the stage's A).
State: tensors "subspace" by unit: the A of all earlier stages, one below the other, (sum of ranks, I).
Shapes: R rank, I in features, Q rows of earlier stages.

Follows the released code (entrywise L1; the paper's text has a squared form in some places). As adapters are stacked
(``carry: stack``), a stage with B = 0 gives exactly the outputs of the stage before, and earlier A get no gradient. MCITlib's
variant (``configs/methods/o_lora_mcitlib.yaml``) has weight 0.05 and no norms; that it leaves earlier adapters out of the
forward pass while training, though not at test, is not copied.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.types import Claims, WeightUnit
from mcit.methods.base import Method


class OLoRA(Method):
    """Penalise overlap of the new A with those of earlier stages."""

    name = "o_lora"
    claims = Claims(needs=frozenset({"adapter:lora", "carry:stack"}))
    penalty_kinds = frozenset({"lora"})

    class Config(MethodConfig):
        """Settings of the penalty."""

        weight: float = Field(0.5, ge=0)
        """Factor of the overlap (lambda 1); 0.5 in most of the released scripts."""
        norm_weight: float = Field(0.0, ge=0)
        """Factor of the norms of the new A and B (lambda 2); 0 to 0.3 in the released scripts."""

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """The A of every stage in fp32."""
        return sum(4 * stages * shape[0] * shape[1] for name, shape in shapes.items() if ".lora_A." in name)

    def weight_penalty(self, unit: WeightUnit, tensors: Mapping[str, Tensor], ctx: StepContext) -> Tensor | None:
        """``weight * sum |A_before A^T| + norm_weight * (|A| + |B|)`` of one unit; None where there is nothing to add."""
        terms = []
        earlier_QI = self.tensors.get("subspace", unit.name)
        if self.config.weight and earlier_QI is not None and "A" in tensors:
            overlap_QR = earlier_QI.to(tensors["A"].device) @ tensors["A"].T
            terms.append(self.config.weight * overlap_QR.abs().sum())
        if self.config.norm_weight:
            terms += [self.config.norm_weight * torch.linalg.vector_norm(tensor) for tensor in tensors.values()]
        return torch.stack(terms).sum() if terms else None

    def on_stage_end(self, ctx: StageContext) -> None:
        """Put this stage's A below those of the stages before."""
        for unit in ctx.weights.units("lora"):
            if "A" not in unit.params:
                continue
            with ctx.weights.gathered(unit) as tensors:
                earlier = self.tensors.get("subspace", unit.name)
                new = tensors["A"].cpu()
                self.tensors.put("subspace", unit.name, new if earlier is None else torch.cat([earlier, new]))
