"""Restrict what is written where the method ``guard`` detects a prompt about something to be forgotten.

Prompts that the detector lets pass are answered as without the filter, to the byte. Others are searched with beams; completing
a forbidden phrase costs `beta`, ending like one in meaning costs up to `kappa`, and an answer that holds one all the same, or
nothing, becomes a refusal. Defaults are ours (`mcit.evals.guarding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.core.config import Field
from mcit.core.files import read_json
from mcit.core.tensorfile import load_tensors
from mcit.core.types import Row
from mcit.evals.filters.base import Filter, FilterConfig, FilterContext, Preparation

if TYPE_CHECKING:
    from torch import Tensor


class Guard(Filter):
    """Detector, trie, likeness of meaning, refusal. Silent in stages before the one with the method."""

    reads = ("guard",)

    class Config(FilterConfig):
        """How decoding is restricted."""

        threshold: float = Field(0.5, ge=0, le=1)
        """Probability from which on a prompt is guarded."""
        beams: int = Field(4, ge=1)
        """Beams of guarded prompts."""
        beta: float = Field(1e9, ge=0)
        """What completing a forbidden phrase costs; the default rules it out."""
        delta: float = Field(0.7, gt=0, le=1)
        """Cosine from which on words are like a phrase."""
        kappa: float = Field(10.0, ge=0)
        """Cost of the same meaning; 0 compares tokens alone."""
        infinite: bool = False
        """Rule out whatever is as like as `delta`."""
        window: int = Field(1, ge=0)
        """Words more or fewer than a phrase that are compared with it."""
        refusal: str = "I cannot answer that."
        """Said in place of an answer that holds a forbidden phrase, or of none."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.beams = self.config.beams  # type: ignore[misc]
        self._chosen: dict[int, bool] = {}
        self._rule: Any = None
        self._home: Any = None
        self._state: Mapping[str, Any] = {}
        self._tensors: dict[str, Tensor] = {}

    def prepare(self, ctx: Preparation) -> None:
        """Detect which prompts are guarded."""
        from mcit.analytic.detector import probability

        if "guard" not in ctx.state:  # the stage with the method is still to come
            self._chosen = dict.fromkeys(map(id, ctx.rows), False)
            return
        if self._home != ctx.state["guard"]:
            self._load(ctx)
        found_B = probability(self._tensors, ctx.hidden(self._state["layer"], self._state["mean"]))
        self._chosen = {id(row): bool(p >= self.config.threshold) for row, p in zip(ctx.rows, found_B, strict=True)}

    def _load(self, ctx: Preparation) -> None:
        from mcit.evals.guarding import Restriction

        home, c = ctx.state["guard"], self.config
        self._state = read_json(home / "state.json")["state"]
        self._tensors = read_detector(home, self._state)
        tokenizer = ctx.tokenizer
        self._rule = Restriction(
            self._state["phrases"],
            encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
            decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            embeddings=ctx.embeddings(),
            hard=c.beta,
            delta=c.delta,
            kappa=c.kappa,
            infinite=c.infinite,
            window=c.window,
        )
        self._home = home

    def acts_on(self, rows: Sequence[Row]) -> list[bool]:
        """Rows whose prompts were detected."""
        return [self._chosen[id(row)] for row in rows]

    def logits(self, step: int, scores_BV: Tensor, ctx: FilterContext) -> Tensor:
        """Scores under the restriction."""
        written = ctx.input_ids_BT[:, ctx.prompt_length :].tolist()
        changed: Tensor = self._rule.scores(scores_BV, written)
        return changed

    def text(self, answer: str, row: Row) -> str:
        """A refusal in place of nothing, or of what holds a forbidden phrase."""
        return self.config.refusal if not answer or self._rule.says(answer) else answer


def read_detector(home: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors for `mcit.analytic.detector.probability`, of what the method left in a folder."""
    stored = load_tensors(home / "tensors.safetensors")
    if state["detector"] == "analytic":
        return {"weight": stored["weight|head"]}
    return {name.split("|")[1]: tensor for name, tensor in stored.items() if name.startswith("detector|")}
