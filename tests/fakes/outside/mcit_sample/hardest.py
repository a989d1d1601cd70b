"""A method that chooses the rows of a stream of its own by what it saw of them.

Paper: none; a stand-in for replay of rows by their loss, such as arXiv:1908.04742.
Hooks: streams (all rows of the stage), choose (the ones with the largest loss so far), loss_term (their loss), after_step.
State: "losses", one number per row of the stream; unseen rows come first.
"""

from collections.abc import Mapping, Sequence

import torch

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, Draw, JsonDict, LossSum, ModelOutput, StreamSpec
from mcit.methods.base import Method

UNSEEN = 1e9


class Hardest(Method):
    """Rows whose loss was largest when they were last seen."""

    name = "hardest"
    claims = Claims(slots=frozenset({"choose:hard"}), streams=frozenset({"hard"}))

    class Config(MethodConfig):
        """Settings of the stream."""

        weight: float = Field(1.0, ge=0)
        """Factor of the chosen rows' loss; 0 opens no stream."""
        per_step: int = Field(4, ge=1)
        """Chosen rows per step."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._losses: list[float] = []

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """The rows of the stage once more."""
        return {"hard": StreamSpec(ctx.stage_rows(), self.config.per_step)} if self.config.weight else {}

    def on_stage_start(self, ctx: StageContext) -> None:
        """Nothing is known of the rows of this stage."""
        self._losses = [UNSEEN] * len(ctx.data.stage_rows())

    def choose(self, stream: str, count: int, size: int, ctx: StepContext) -> Sequence[Draw]:
        """The largest losses, the first rows among equals."""
        return [(row, 0) for row in sorted(range(count), key=lambda row: (-self._losses[row], row))[:size]]

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Token loss of the chosen rows; their sums are kept until the step is over."""
        if batch.stream != "hard":
            return None
        self._note(out, batch, ctx)
        return LossSum(self.config.weight * out.nll_N.sum(), per="tokens")

    def _note(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> None:
        place = {row.id: k for k, row in enumerate(ctx.data.stage_rows())}
        seen = self.tensors.get("step", "losses")
        losses = torch.zeros(len(place), dtype=torch.float64) if seen is None else seen
        for k, row in enumerate(batch.rows):
            losses[place[row.id]] += float(out.nll_N[out.row_N == k].detach().sum())
        self.tensors.put("step", "losses", losses)

    def after_step(self, ctx: StepContext) -> None:
        """Take in what all ranks saw."""
        mine = self.tensors.get("step", "losses")
        every = ctx.all_sum(torch.zeros(len(self._losses), dtype=torch.float64) if mine is None else mine)
        self._losses = [new or old for new, old in zip(every.tolist(), self._losses, strict=True)]
        self.tensors.drop("step")

    def state_dict(self) -> JsonDict:
        """Losses by row of the stream."""
        return {"losses": self._losses}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take them back."""
        self._losses = list(state["losses"])
