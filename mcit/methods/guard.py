"""Guard: weights stay; prompts that ask for what is to be forgotten are told apart, and its phrases are kept from being said.

After GUARD ("Generation-time LLM Unlearning via Adaptive Restriction and Detection", arXiv:2505.13312), which detects by an MLP
on prompt states and restricts decoding by tokens and by meaning. No code was found and its equations could not be seen: sizes,
thresholds and the choice of phrases are ours. A later request adds to those before: its detector is fitted on the rows of all
stages with the method, and phrases are joined. This forgets in behaviour alone: whoever has the weights has what is in them.
Hooks: streams (``forget``, for passes alone), on_stage_end (detector and phrases). The filter ``guard`` applies them.
State: "detector", "layer", "mean", "phrases", and for the analytic detector "head"; tensors "detector" of the network, or
"gram", "cross" and "weight" of the head, from which ``mcit forget`` takes single rows.
Shapes: N prompts, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mcit.analytic.head import prompt_states
from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, StageContext
from mcit.core.seeds import seed_for
from mcit.core.types import Claims, JsonDict, PictureChange, Plan, Row, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.detection import held_out, network, requested, ridge, some_rows

_FLIP = PictureChange("flip")


class Guard(Method):
    """A detector of prompts and a store of phrases."""

    name = "guard"

    class Config(MethodConfig):
        """Settings of detector and store; how decoding is restricted is set at the filter."""

        detector: Literal["mlp", "analytic"] = "mlp"
        """A small network, or a ridge head that can forget single rows exactly."""
        layer: str = "last"
        """Hidden states that prompts are told by: ``last``, a number, a share of the depth, or a module name."""
        pool: Literal["mean", "last"] = "mean"
        """Mean over the prompt, picture included, or its last token."""
        width: int = Field(128, ge=1)
        """Units of the network."""
        steps: int = Field(300, ge=1)
        """Its optimiser steps, each over all prompts."""
        lr: float = Field(1e-3, gt=0)
        """Its learning rate."""
        rows: int = Field(2000, ge=2)
        """Most prompts of each kind, drawn by the stage's seed."""
        flip: bool = False
        """Also show the pictures of prompts to forget mirrored; not for tasks about left and right, nor with `analytic`."""
        gamma: float = Field(0.1, gt=0)
        """Ridge of the analytic head."""
        phrases: list[str] = []
        """What must not be said; the answers of the rows to forget where none are listed."""

    @property
    def claims(self) -> Claims:
        """The slot for edits is held so that nothing changes the weights that prompts are read with."""
        needs = frozenset({f"hidden:{self.config.layer}"})
        return Claims(slots=frozenset({"weights:edit"}), needs=needs, streams=frozenset({"forget"}))

    def __init__(self, config: Guard.Config) -> None:
        super().__init__(config)
        self._phrases: list[str] = []
        self._head: JsonDict | None = None

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """An analytic head needs the weights as they are committed; a guard without its filter does nothing."""
        where = f"stage {stage.name}, method {self.name}"
        problems = []
        if stage.epochs and self.config.detector == "analytic":
            what = "reads prompts with weights that the stage trains, which merging rounds: no request could be exact"
            problems.append(Problem(where, what, "set epochs: 0, or detector: mlp"))
        if self.config.flip and self.config.detector == "analytic":
            problems.append(Problem(where, "flip shows rows that no request could name", "set flip: false"))
        if not any(
            (spec if isinstance(spec, str) else spec.get("use")) == "guard" for spec in plan.config.eval.filters
        ):
            fix = "add it: eval: {filters: [{use: guard}]}"
            problems.append(Problem(where, "no filter guard applies what it leaves", fix, "note"))
        return problems

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """The rows to forget, for passes alone."""
        return {"forget": StreamSpec(list(ctx.forget_rows()))}

    def on_stage_end(self, ctx: StageContext) -> None:
        """Read prompts, fit the detector, add the phrases; held-out errors are logged. Raises DataError as `requested`."""
        c, seed = self.config, seed_for(ctx.seed, "guard")
        forget, keep = (some_rows(r, c.rows, ctx.seed) for r in requested(ctx.data, self.name))
        answers = sorted({row.answer.strip() for row in ctx.data.forget_rows() if row.answer.strip()})
        self._phrases, self._head = list(dict.fromkeys([*self._phrases, *(c.phrases or answers)])), None
        x_ND = torch.cat([self._read(keep, ctx), self._read(forget, ctx)])
        y_N = torch.cat([torch.zeros(len(keep)), torch.ones(len(forget))])
        for kind in ("detector", "gram", "cross", "weight"):
            self.tensors.drop(kind)
        for name, value in held_out(c, x_ND, y_N, [*keep, *forget], seed).items():
            ctx.log(f"guard/{name}", value)
        if c.detector == "analytic":
            head = ridge(c, x_ND, y_N, [*keep, *forget])
            self._head = head.state()
            for kind, tensor in head.tensors().items():
                self.tensors.put(kind, "head", tensor)
            return
        if c.flip:
            mirrored = [replace(row, encoding=replace(row.encoding, changes=(_FLIP,))) for row in forget if row.images]
            x_ND = torch.cat([x_ND, self._read(mirrored, ctx)]) if mirrored else x_ND
            y_N = torch.cat([y_N, torch.ones(len(mirrored))])
        for name, tensor in network(c, x_ND, y_N, seed).items():
            self.tensors.put("detector", name, tensor)

    def _read(self, rows: Sequence[Row], ctx: StageContext) -> Tensor:
        """One vector per prompt, (N, D) fp32; a row alone in its pass has the same bits whoever is asked beside it."""
        mean, size = self.config.pool == "mean", 1 if self.config.detector == "analytic" else 8
        passed = ctx.forward_pass(rows, rows=size)
        return torch.cat(
            [prompt_states(out.hidden[self.config.layer], batch, mean=mean).cpu() for batch, out in passed]
        )

    def state_dict(self) -> JsonDict:
        """What the filter needs beside the tensors."""
        c = self.config
        about = {"detector": c.detector, "layer": c.layer, "mean": c.pool == "mean", "phrases": self._phrases}
        return {**about, **({"head": self._head} if self._head else {})}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back."""
        self._phrases, self._head = list(state["phrases"]), state.get("head")
