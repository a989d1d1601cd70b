"""The member of a ridge head on the base's features, which can forget single rows exactly.

State: "head", classes and checksums of learned rows (`mcit.analytic.head`); tensors "gram", "cross" and "weight" of the head.
Features are the base's last hidden state at the last prompt token, with a root mean square of 1 and a constant, one row per
pass: a row has the same bits whoever it is read beside, so that a request to forget it takes away what was learned. ``mcit
forget`` makes such requests. Weights are of ridge regression on one-hot members (ACIL, arXiv:2205.14922).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mcit.core.config import Field
from mcit.core.interfaces import StageContext
from mcit.core.types import JsonDict
from mcit.routers.base import Router, RouterConfig, States

if TYPE_CHECKING:
    from torch import Tensor


class Analytic(Router):
    """By a linear head with exact learning and forgetting."""

    needs = frozenset({"hidden:last"})

    class Config(RouterConfig):
        """Settings of the head."""

        gamma: float = Field(0.1, gt=0)
        """Ridge; 0.1 in ACIL's scripts."""
        bits: int = Field(10, ge=1, le=20)
        """Features are rounded to multiples of ``2^-bits``; sums of products are then exact."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._head: Any = None
        self._state: JsonDict = {}

    def learn(self, member: str, ctx: StageContext) -> None:
        """Take in every training row of the stage as one of its member."""
        import torch

        from mcit.analytic.head import prompt_states, row_key

        rows, head = ctx.data.stage_rows(), self._loaded()
        parts: list[tuple[int, Tensor]] = []
        for (place,), batch, out in ctx.base_pass(rows, logits=True, size=1):
            parts.append((place, prompt_states(out.hidden["last"], batch)[0]))
        features = len(parts[0][1]) if parts else 0
        device = parts[0][1].device if parts else torch.device("cuda" if torch.cuda.is_available() else "cpu")
        size_N = ctx.all_sum(torch.tensor([features, bool(parts)], dtype=torch.float64, device=device))
        x_ND = torch.zeros(len(rows), int(size_N[0] / size_N[1]), dtype=torch.float64, device=device)
        for place, x_D in parts:
            x_ND[place] = x_D.double()
        head.learn(member, ctx.all_sum(x_ND), [row_key(row) for row in rows])
        for kind, tensor in head.tensors().items():
            self.tensors.put(kind, "head", tensor)

    def _loaded(self) -> Any:
        from mcit.analytic.head import RowHead

        if self._head is None:
            empty = {"gamma": self.config.gamma, "bits": self.config.bits, "classes": [], "rows": {}}
            state = self._state or empty
            self._head = RowHead.load(state, self.tensors.get("gram", "head"), self.tensors.get("cross", "head"))
        return self._head

    @staticmethod
    def route(
        rows: Sequence[Mapping[str, str]],
        members: Sequence[str],
        state: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        states: States,
    ) -> list[str]:
        """The member with the largest score."""
        import torch

        x_BD = states(rows, None).double().cpu()
        x_BD = x_BD * (x_BD.shape[1] ** 0.5 / x_BD.norm(dim=1, keepdim=True).clamp(min=1e-12))
        x_BD = torch.cat([x_BD, torch.ones_like(x_BD[:, :1])], 1)
        known = [k for k, name in enumerate(state["head"]["classes"]) if name in members]
        best_B = (x_BD @ tensors["weight|head"].double()[:, known]).argmax(1)
        return [state["head"]["classes"][known[int(k)]] for k in best_B]

    def state_dict(self) -> JsonDict:
        """The head without its tensors."""
        return {"head": self._loaded().state()}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back; the tensors are read when they are asked for."""
        self._state, self._head = dict(state["head"]), None
