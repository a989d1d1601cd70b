"""GS-LoRA and GS-LoRA++: forget some rows, keep the others, with group-sparse low-rank updates.

Papers: Zhao et al., "Continual Forgetting for Pre-trained Vision Models", CVPR 2024, arXiv:2403.11530 (GS-LoRA), and
its extension with prototypes for few samples, arXiv:2501.09705 (GS-LoRA++, ``prototypes`` below).
Hooks: streams (rows to forget, refusals), on_stage_start (what all answers share, bounds, prototypes), loss_term
(streams ``forget``, ``refusal`` and, with prototypes, ``task``), weight_penalty (subgradient treatment), after_step
(proximal treatment, pruning), on_stage_end (size of every group).
State: "spare", tokens at both ends of answers that are not pushed; "bounds" by row; "zero", the groups that are exactly
0; "norms" of each group, [of A and B, of the change of the weights]; "targets" and "push", names of the prototypes and
their bound; tensor "prototype" (K, D).
Shapes: B rows, T positions, N supervised tokens, V vocabulary, D hidden, K targets.

The retained rows are the stage's own task and have its usual loss. A step takes its rows of both; an epoch is one pass
over the retained rows. The adapter is fresh in each stage and merged after it (``carry: merge``), else unloading it
would bring everything back. A group is all LoRA matrices of one decoder block; ``adapter.targets`` says which (the
authors: the two linears of the MLP). The penalty is ``alpha * sum_g |theta_g|``, a sum over groups, not a mean.

Two treatments. ``subgradient``, the authors': the penalty's gradient is added to the loss's and goes through Adam,
which rescales it; nothing gets exactly 0. ``proximal``, ours: after the optimizer's step each group is multiplied by
``max(0, 1 - lr * alpha / |theta_g|)``. Groups reach exactly 0, lose their moments and stay 0; alpha then is in units of
the loss per unit of norm and must be one to three orders of magnitude larger: about the initial norm of a group over
the sum of the learning rates after the warm-up. Both act from `alpha_epoch` on, for at the start every change is 0
while the norm is not.

Ours too, for a language model: the bound per token (or per row) instead of per batch, so that a step does not depend on
how it is cut (``reduction: authors`` is their form, on one rank and in one micro-batch); tokens that all answers of the
stage begin or end with are not pushed; ``bound: ignorance``, the loss of the stage-start model without the picture,
plus a margin; refusals or the stage-start model's blind answers as something to say instead. Not taken over: choosing
the checkpoint by test scores, swapping roles where there are more batches to forget than to retain (``per_step`` says how
many), EMA weights that are never saved, recomputing norms over the first six blocks only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import DataError, Problem, TrainingError
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import (
    Batch,
    Claims,
    JsonDict,
    LossSum,
    ModelOutput,
    Plan,
    Row,
    Stage,
    StreamSpec,
    Turn,
    WeightUnit,
)
from mcit.methods.base import Method
from mcit.methods.formulas.divergence import distillation_kl
from mcit.methods.formulas.forgetting import (
    batch_bound,
    pushed_tokens,
    row_bound,
    row_means,
    shared_ends,
    token_bound,
    without_pictures,
)
from mcit.methods.formulas.groups import (
    change_norm2,
    group_norm,
    negligible,
    shrink_factor,
    size_weight,
    stepped_alpha,
)
from mcit.methods.formulas.prototypes import distances, embed, median_distance

_ENDS, _SAMPLE = 64, 256
"""Retained rows that are looked at for what answers share, and for the distance between prototypes."""
REFUSALS = (
    "I cannot answer that.",
    "I do not know.",
    "I have no information about this.",
    "Sorry, I am not able to tell.",
)


class Prototypes(MethodConfig):
    """GS-LoRA++: push embeddings of forgotten rows away from where they were, hold those of retained rows there."""

    forget: float = Field(0.0, ge=0)
    """Factor of ``max(0, bound - distance)`` on forgotten rows."""
    retain: float = Field(0.0, ge=0)
    """Factor of the distance on retained rows; 0 in every script of the authors."""
    distance: Literal["cosine", "l2", "kl"] = "cosine"
    """``kl`` is the authors' (a softmax over features), ``l2`` their option."""
    bound: Literal["median"] | float = "median"
    """``median`` of the distances between forgotten and retained prototypes, or a number."""
    by: str = "answer"
    """What rows of one prototype have in common: ``answer``, ``task`` or ``meta.<key>``."""


class GSLoRA(Method):
    """Bounded forgetting on one stream, retention on the task, a norm per block that is driven to zero."""

    name = "gs_lora"
    claims = Claims(
        slots=frozenset({"weights:prox"}),
        needs=frozenset({"adapter:lora", "carry:merge", "hidden:last", "reference:stage_start"}),
        streams=frozenset({"forget", "refusal"}),
    )

    class Config(MethodConfig):
        """Settings of the forget loss, the penalty, what is said instead, and the prototypes."""

        beta: float = Field(1.0, ge=0)
        """Factor of the bounded forget loss."""
        bound: Literal["uniform", "ignorance"] | float = "uniform"
        """Loss up to which a token is pushed: ``uniform`` is ln V, ``ignorance`` the row's loss without its picture."""
        margin: float = Field(1.0, ge=0)
        """Added to the loss without picture, in nats; the sum never exceeds ln V."""
        reduction: Literal["tokens", "rows", "authors"] = "tokens"
        """The bound is on each token, on each row's mean, or on the mean of the whole batch."""
        spare: Literal["shared", "none"] = "shared"
        """Leave out what all answers of the stage begin or end with, such as the end marker."""
        per_step: int = Field(8, ge=1)
        """Rows to forget per optimiser step, on top of the retained ones; they are gone over again and again."""
        alpha: float = Field(1e-4, ge=0)
        """Factor of the penalty."""
        alpha_epoch: float = Field(0.0, ge=0)
        """Passes over the retained rows before the penalty acts."""
        treatment: Literal["subgradient", "proximal"] = "subgradient"
        """How the penalty acts, see above."""
        groups: Literal["block", "pair", "matrix"] = "block"
        """What has one norm: the pairs of a decoder block, A and B of one linear, or every matrix."""
        size_weights: bool = False
        """Weigh each block by the root of its share of the parameters."""
        prune: float | None = Field(None, gt=0, lt=1)
        """Set groups to 0 at the end whose change of the weights is below this share of the largest."""
        target: Literal["none", "refusal", "blind"] = "none"
        """What to say instead: a refusal, or what the stage-start model says without the picture."""
        omega: float = Field(0.5, ge=0)
        """Factor of that."""
        refusals: list[str] = Field(list(REFUSALS), min_length=1)
        """One of these per row, drawn once."""
        prototypes: Prototypes = Prototypes()
        """Settings of GS-LoRA++; with both factors 0 it is GS-LoRA."""

    def __init__(self, config: GSLoRA.Config) -> None:
        super().__init__(config)
        self._kind = "block" if config.groups == "block" else "lora"
        self.penalty_kinds = frozenset({self._kind} if config.treatment == "subgradient" and config.alpha else ())
        self._clear()

    def _clear(self) -> None:
        self._spare = [0, 0]
        self._bounds: dict[str, float] = {}
        self._zero: list[str] = []
        self._norms: dict[str, list[float]] = {}
        self._targets: list[str] = []
        self._push = 0.0
        self.tensors.drop("prototype")

    # ---- before the stage -------------------------------------------------------------------------------------------
    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """Settings that cannot act, or that act otherwise than meant."""
        where, c, out = f"stage {stage.name}, method {self.name}", self.config, []
        if c.treatment == "proximal" and c.groups == "matrix":
            what = "treatment: proximal does not go with groups: matrix, for a matrix at 0 does not stay there"
            out.append(Problem(where, what, "set groups: block or groups: pair"))
        if c.size_weights and c.groups != "block":
            out.append(Problem(where, "size_weights weighs blocks only", "set groups: block, or size_weights: false"))
        if c.reduction == "authors" and c.bound == "ignorance":
            what = "reduction: authors has one bound for the whole batch, ignorance has one per row"
            out.append(Problem(where, what, "give the bound as a number or as uniform"))
        size = plan.config.engine.micro_batch
        if c.reduction == "authors" and c.per_step > size:
            what = f"reduction: authors needs the {c.per_step} rows to forget in one micro-batch, which holds {size}"
            out.append(Problem(where, what, f"set engine.micro_batch: {c.per_step}, or per_step: {size}"))
        if stage.steps and c.alpha and not self._alpha(stage, stage.steps - 1):
            what = f"alpha_epoch: {c.alpha_epoch:g} is not reached in {stage.steps} steps, so the penalty never acts"
            out.append(Problem(where, what, "lower alpha_epoch, or set alpha: 0"))
        if c.treatment == "proximal" and stage.optim.weight_decay:
            what = f"optim.weight_decay: {stage.optim.weight_decay:g} shrinks the same matrices as the penalty"
            out.append(Problem(where, what, "set optim.weight_decay: 0", "note"))
        if c.reduction == "authors" and c.spare == "shared":
            what = "reduction: authors bounds the mean over all tokens, so none is spared"
            out.append(Problem(where, what, "set spare: none to say so, or reduction: tokens", "note"))
        if stage.adapter.also_train:
            what = f"{' and '.join(stage.adapter.also_train)} train too: they forget without the penalty on groups"
            out.append(Problem(where, what, "set adapter.also_train: [], as the authors freeze all but LoRA", "note"))
        if c.target == "refusal":
            what = "refusals without rows that ask the same about other pictures teach refusing in general"
            out.append(Problem(where, what, "put such rows into the stage's recipe, with their usual answers", "note"))
        return out

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """Rows to forget; the same rows with refusals, if asked for. Raises DataError for rows that do not fit."""
        rows, c = list(ctx.forget_rows()), self.config
        for row in rows:
            if not row.images and "ignorance" == c.bound or c.target == "blind" and not row.images:
                what = "has no picture to leave out, which bound: ignorance and target: blind do"
                raise DataError(what, where=row.where, fix="use bound: uniform and another target")
            if c.prototypes.forget or c.prototypes.retain:
                _target(row, c.prototypes.by)
            if c.spare == "shared" and sum(turn.role == "assistant" for turn in row.turns) > 1:
                what = "has several answers, and only the ends of the whole row would be spared"
                raise DataError(what, where=row.where, fix="give one question per row to forget, or set spare: none")
        opened = {"forget": StreamSpec(rows, c.per_step)}
        if c.target == "refusal":
            opened["refusal"] = StreamSpec([_refused(row, c.refusals, ctx.seed) for row in rows], c.per_step)
        return opened

    def on_stage_start(self, ctx: StageContext) -> None:
        """What answers share, prototypes, then the loss of each row without its picture: all of the model as it comes in."""
        self._clear()
        forgotten: list[list[int]] = []
        retained: list[list[int]] = []
        away: dict[str, list[Tensor]] = {}
        stay: dict[str, list[Tensor]] = {}
        p = self.config.prototypes
        pushes = p.forget > 0 or p.retain > 0
        if self.config.spare == "shared" or pushes:
            for batch, out in ctx.forward_pass("forget"):
                self._look(batch, out, forgotten, away if pushes else None)
            for batch, out in ctx.forward_pass("task", limit=None if p.retain else _SAMPLE if pushes else _ENDS):
                self._look(batch, out, retained, stay if pushes else None)
        if self.config.spare == "shared":
            self._spare = list(shared_ends([*forgotten, *retained], leave=forgotten))
        if pushes:
            self._store_prototypes(away, stay)
        if self.config.bound == "ignorance":
            for batch, out in ctx.forward_pass("forget", change=without_pictures):
                means_B, _ = row_means(out.nll_N, out.row_N, self._pushed(out), rows=len(batch.rows))
                most = math.log(out.logits_NV.shape[-1])
                for row, mean in zip(batch.rows, means_B.tolist(), strict=True):
                    self._bounds[_key(row)] = min(mean + self.config.margin, most)

    def _look(
        self, batch: Batch, out: ModelOutput, answers: list[list[int]], by: dict[str, list[Tensor]] | None
    ) -> None:
        """Collect the supervised tokens of each row and, by target, its embedding."""
        targets = out.targets_N.tolist()
        ends = torch.bincount(out.row_N, minlength=len(batch.rows)).cumsum(0).tolist()
        answers += [targets[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        if by is not None:
            for row, e_D in zip(batch.rows, self._embed(out, batch).cpu(), strict=True):
                by.setdefault(_target(row, self.config.prototypes.by), []).append(e_D)

    def _store_prototypes(self, away: Mapping[str, list[Tensor]], stay: Mapping[str, list[Tensor]]) -> None:
        p = self.config.prototypes
        away_KD = torch.stack([torch.stack(found).mean(0) for found in away.values()])
        kept = [name for name in stay if name not in away]
        stay_KD = torch.stack([torch.stack(stay[name]).mean(0) for name in kept]) if kept else away_KD[:0]
        if p.bound == "median" and not kept:
            what = f"every retained row has a '{p.by}' that is also forgotten, so no distance can be a bound"
            raise DataError(what, where=self.name, fix="give prototypes.bound as a number, or group by something else")
        self._push = median_distance(away_KD, stay_KD, p.distance) if p.bound == "median" else float(p.bound)
        self._targets = [*away, *kept]
        self.tensors.put("prototype", "all", torch.cat([away_KD, stay_KD]))

    # ---- losses -----------------------------------------------------------------------------------------------------
    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Everything on one stream as a sum over rows; what is a mean over tokens is scaled by rows per token."""
        c = self.config
        if batch.stream == "refusal":
            return LossSum(c.omega * out.nll_N.sum(), per="tokens")
        if batch.stream == "task":
            return LossSum(c.prototypes.retain * self._moved(out, batch).sum(), "rows") if c.prototypes.retain else None
        if batch.stream != "forget":
            return None
        total = out.nll_N.new_zeros(())
        rows = ctx.counts.of("forget", "rows")
        if c.reduction == "authors" and rows != len(batch.rows):
            what = (
                f"reduction: authors is a loss of the whole batch, but this one holds {len(batch.rows)} of {rows} rows"
            )
            raise TrainingError(what, where=self.name, fix="use one rank and one micro-batch, or reduction: tokens")
        if c.beta:
            total = total + c.beta * self._bounded(out, batch, rows=rows, tokens=self._step_tokens(ctx))
        if c.target == "blind" and c.omega:
            seen = ctx.reference(without_pictures(batch))
            kl_N = distillation_kl(out.logits_NV, seen.logits_NV) * self._pushed(out)
            total = total + c.omega * rows / self._step_tokens(ctx) * kl_N.sum()
        if c.prototypes.forget:
            away_B = self._moved(out, batch)
            short = torch.relu(self._push - away_B).sum()
            if c.reduction == "authors":
                short = rows * torch.relu(self._push - away_B.mean())
            total = total + c.prototypes.forget * short
        return LossSum(total, per="rows")

    def _bounded(self, out: ModelOutput, batch: Batch, *, rows: int, tokens: int) -> Tensor:
        """The forget loss, times the rows of the step."""
        c, uniform = self.config, math.log(out.logits_NV.shape[-1])
        if c.reduction == "authors":
            return rows * batch_bound(out.nll_N, uniform if c.bound == "uniform" else float(c.bound))
        level = uniform if c.bound == "uniform" else c.bound
        bounds = [self._bounds[_key(row)] if level == "ignorance" else float(level) for row in batch.rows]
        bound_B = torch.tensor(bounds, device=out.nll_N.device)
        if c.reduction == "rows":
            return row_bound(out.nll_N, out.row_N, bound_B, self._pushed(out))
        return rows / tokens * token_bound(out.nll_N, bound_B[out.row_N], self._pushed(out))

    def _pushed(self, out: ModelOutput) -> Tensor:
        head, tail = self._spare
        return pushed_tokens(out.row_N, head=head, tail=tail)

    def _step_tokens(self, ctx: StepContext) -> int:
        """Pushed tokens of the step over all ranks: every row spares equally many."""
        rows, tokens = ctx.counts.of("forget", "rows"), ctx.counts.of("forget", "tokens")
        return max(1, tokens - sum(self._spare) * rows)

    def _embed(self, out: ModelOutput, batch: Batch) -> Tensor:
        return embed(out.hidden_BTD, batch.labels_BT)

    def _moved(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Distance of each supervised row from its prototype, (B,) or fewer."""
        e_BD = self._embed(out, batch)
        places = {name: i for i, name in enumerate(self._targets)}
        found = [places.get(_target(row, self.config.prototypes.by)) for row in batch.rows]
        supervised = (batch.labels_BT[:, 1:] != -100).any(1).tolist()
        known = [(i, k) for i, k in enumerate(found) if k is not None and supervised[i]]
        prototype_KD = self.tensors.get("prototype", "all")
        if prototype_KD is None or not known:
            return e_BD.new_zeros(0)
        mine_BD = prototype_KD[[k for _, k in known]].to(e_BD.device)
        return distances(e_BD[[i for i, _ in known]], mine_BD, self.config.prototypes.distance)

    # ---- the penalty ------------------------------------------------------------------------------------------------
    def _alpha(self, stage: Stage, step: int) -> float:
        c = self.config
        return stepped_alpha(c.alpha, step=step, batch=stage.optim.batch, rows=stage.rows, from_epoch=c.alpha_epoch)

    def _weight(self, unit: WeightUnit, ctx: StepContext) -> float:
        if not self.config.size_weights:
            return 1.0
        return size_weight(unit.shape[0], (other.shape[0] for other in ctx.weights.units("block")))

    def weight_penalty(self, unit: WeightUnit, tensors: Mapping[str, Tensor], ctx: StepContext) -> Tensor | None:
        """``alpha * |theta_g|`` of a group; None before `alpha_epoch`."""
        alpha = self._alpha(ctx.stage, ctx.step) * self._weight(unit, ctx)
        if alpha == 0:
            return None
        groups = [[t] for t in tensors.values()] if self.config.groups == "matrix" else [list(tensors.values())]
        return alpha * torch.stack([group_norm(group) for group in groups]).sum()

    def after_step(self, ctx: StepContext) -> None:
        """The proximal step; after the last step of the stage, pruning."""
        alpha = self._alpha(ctx.stage, ctx.step)
        if self.config.treatment == "proximal" and alpha:
            total = 0.0
            for unit in ctx.weights.units(self._kind):
                weighted = alpha * self._weight(unit, ctx)
                total += weighted * self._shrink(unit, ctx.lr * weighted, ctx)
            ctx.log("penalty/gs_lora", total)
            ctx.log("gs_lora/zero_groups", float(len(self._zero)))
        if self.config.prune is not None and ctx.step == ctx.total_steps - 1:
            changes = {name: change for name, (_, change) in self._sizes(ctx).items()}
            drop = set(negligible(changes, self.config.prune))
            for unit in ctx.weights.units(self._kind):
                if unit.name in drop:
                    self._shrink(unit, math.inf, ctx)

    def _shrink(self, unit: WeightUnit, threshold: float, ctx: StepContext) -> float:
        """One proximal step of one group; returns its norm before. What is 0 stays 0."""
        with ctx.weights.edit(unit) as tensors:
            norm = float(group_norm(tensors.values()))
            factor = 0.0 if unit.name in self._zero else shrink_factor(norm, threshold)
            for tensor in tensors.values():
                tensor.zero_() if factor == 0 else tensor.mul_(factor)
        if factor == 0 and unit.name not in self._zero:
            ctx.weights.forget_moments(unit)
            self._zero = sorted([*self._zero, unit.name])
        return norm

    def _sizes(self, ctx: StepContext) -> dict[str, list[float]]:
        """Norm of A and B together, and of the change of the weights, by group; pairs only."""
        squares: dict[str, list[float]] = {}
        for unit in ctx.weights.units("lora"):
            with ctx.weights.gathered(unit) as tensors:
                whole = set(tensors) == {"A", "B"}
                change2 = float(change_norm2(tensors["B"], tensors["A"], unit.scale)) if whole else 0.0
                norm = float(group_norm(tensors.values()))
            entry = squares.setdefault(unit.block if self._kind == "block" else unit.name, [0.0, 0.0])
            entry[0] += norm**2
            entry[1] += max(0.0, change2)
        return {name: [math.sqrt(a), math.sqrt(b)] for name, (a, b) in squares.items()}

    def on_stage_end(self, ctx: StageContext) -> None:
        """Record how large each group is."""
        self._norms = self._sizes(ctx)
        self._zero = sorted(name for name, (norm, _) in self._norms.items() if norm == 0)

    # ---- state ------------------------------------------------------------------------------------------------------
    def state_dict(self) -> JsonDict:
        """Everything but the prototypes themselves."""
        return {
            "spare": self._spare,
            "bounds": self._bounds,
            "zero": self._zero,
            "norms": self._norms,
            "targets": self._targets,
            "push": self._push,
        }

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back. Raises StateError for keys it does not know."""
        super().load_state_dict({k: v for k, v in state.items() if k not in self.state_dict()})
        self._spare, self._bounds, self._zero = list(state["spare"]), dict(state["bounds"]), list(state["zero"])
        self._norms, self._targets, self._push = dict(state["norms"]), list(state["targets"]), float(state["push"])


def _key(row: Row) -> str:
    return f"{row.task}/{row.id}"


def _target(row: Row, by: str) -> str:
    """What a row's prototype is called. Raises DataError for a row without the key."""
    if by in ("answer", "task"):
        return row.answer if by == "answer" else row.task
    key = by.removeprefix("meta.")
    if key not in row.meta:
        raise DataError(f"the row has no meta '{key}'", where=row.where, fix="change prototypes.by")
    return str(row.meta[key])


def _refused(row: Row, refusals: list[str], seed: int) -> Row:
    """The row with a refusal for every answer; which one depends on seed, task and id alone."""
    text = refusals[int(random.Random(f"{seed}/refusal/{_key(row)}").random() * len(refusals))]
    return replace(row, turns=tuple(Turn("assistant", text) if t.role == "assistant" else t for t in row.turns))
