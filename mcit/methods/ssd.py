"""SSD: forget without training, by shrinking the weights that matter more for the rows to forget than for all.

Paper: Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024,
arXiv:2308.07707: with importances I (mean squared gradients) a weight with ``I_f > alpha I_D`` is multiplied by
``min(strength I_D / I_f, 1)``. Alpha as a percentile of I_f / I_D follows Schoepf et al., arXiv:2402.10098.
Hooks: select_trainable (the chosen matrices), streams (rows to forget, for passes alone), on_stage_start (in a stage
that forgets: dampening), on_stage_end (in one that learns: importances of its rows and, for ``dampen: effect``, what it
added).
State: "count", gradients in I_D; "done", alpha and share of weights dampened; tensors "squares" (sum) and "effect" by
matrix.
Shapes: O/I out/in features.

List it in the stages that learn, where it keeps I_D of effective weights (of the whole matrix of a LoRA pair), and in
one with ``forget``, ``epochs: 0`` and ``adapter.kind: none``. Without stored importances I_D is taken from the stage's
own rows. As in the released code, a weight that no row but those to forget uses becomes exactly 0. ``dampen: effect``
shrinks what the learned stages added to a matrix instead of the matrix. Squares are of each row's gradient, or of a
batch's mean as released, whose size then scales I: both importances use the same.

``search``: alphas are tried from the largest to the smallest on retained rows drawn by the seed, and the last one is
taken before their loss has risen by more than `rise`. An alpha that dampens nothing or everything ends the stage with
an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from mcit.core.config import Config as Settings
from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem, TrainingError
from mcit.core.interfaces import DataContext, NamesContext, StageContext
from mcit.core.types import Claims, JsonDict, Plan, Row, Stage, StreamSpec, WeightUnit
from mcit.methods.base import Method
from mcit.methods.formulas.dampening import kept_share, percentile, ratios, selected
from mcit.methods.formulas.forgetting import drawn
from mcit.methods.formulas.importances import add_squares, ends_with, loss_on, matrices, matrix


class Percentile(Settings):
    """Alpha as a percentile of I_f / I_D over the chosen matrices."""

    percentile: float = Field(gt=0, lt=100)
    """Percent of the weights that stay untouched."""


class Search(Settings):
    """Alpha by trying."""

    search: list[float] = Field(min_length=1)
    """Alphas."""
    rise: float = Field(0.2, gt=0)
    """Share by which the retained loss may rise."""
    rows: int = Field(64, ge=1)
    """Retained rows it is measured on."""


class SSD(Method):
    """Dampen weights by importances."""

    name = "ssd"
    prepares = True
    claims = Claims(slots=frozenset({"weights:edit"}), streams=frozenset({"forget"}))

    class Config(MethodConfig):
        """Settings of importances and dampening."""

        alpha: float | Percentile | Search = 10.0
        """How much more a weight must matter for the rows to forget: a number, ``{percentile: p}`` or ``{search: [...]}``."""
        strength: float = Field(1.0, gt=0)
        """Factor of the share that stays (lambda)."""
        dampen: str = Field("weights", pattern="^(weights|effect)$")
        """The matrices, or (``effect``) what the learned stages added to them."""
        units: list[str] = []
        """Endings of the names of the matrices, matched at a dot; empty is all that have importances."""
        squares: str = Field("rows", pattern="^(rows|batches)$")
        """Of each row's gradient, or of the mean gradient of `batch` rows."""
        batch: int = Field(8, ge=1)
        """Rows of a batch."""
        rows: int = Field(256, ge=1)
        """Most rows that an importance is estimated on, drawn by the stage's seed."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._count = 0
        self._done: JsonDict = {}

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """Whole weights where it dampens, merged adapters where it keeps what they add, the same squares throughout."""
        where, c, out = f"stage {stage.name}, method {self.name}", self.config, []
        if stage.forget and stage.adapter.kind != "none":
            fix = "set adapter: {kind: none} and epochs: 0 in this stage"
            out.append(Problem(where, "single weights are dampened, and an adapter of low rank cannot hold that", fix))
        if c.dampen == "effect" and not stage.forget and stage.adapter.carry != "merge":
            what = f"dampen: effect adds up what adapters bring, but adapter.carry is {stage.adapter.carry}"
            out.append(Problem(where, what, "set adapter.carry: merge, or dampen: weights"))
        for other in plan.stages[: stage.index - 1]:
            for spec in (s for s in other.methods if s.name == self.name):
                if any(getattr(spec.config, k) != getattr(c, k) for k in ("squares", "batch")):
                    what = f"squares and batch differ from stage {other.name}, whose importances it is compared with"
                    out.append(Problem(where, what, "set the same in every stage"))
        return out

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """An fp32 matrix of squares for each chosen one, and one of what was added with ``dampen: effect``."""
        total = 0
        for name, shape in shapes.items():
            before, is_b, after = name.partition(".lora_B.")
            module = before if is_b else name.removesuffix(".weight")
            if ".lora_A." in name or (self.config.units and not ends_with(module, self.config.units)):
                continue
            total += shape[0] * shapes[f"{before}.lora_A.{after}"][1] if is_b else math.prod(shape)
        return 4 * total * (2 if self.config.dampen == "effect" else 1)

    def select_trainable(self, names: frozenset[str], ctx: NamesContext) -> frozenset[str]:
        """In a stage that forgets the chosen matrices alone, so that no others are written."""
        if not ctx.stage.forget or not self.config.units:
            return names
        return frozenset(n for n in names if ends_with(n.removesuffix(".weight"), self.config.units))

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """The rows to forget, which only passes read."""
        rows = list(ctx.forget_rows())
        return {"forget": StreamSpec(rows)} if rows else {}

    # ---- stages that learn ------------------------------------------------------------------------------------------
    def on_stage_end(self, ctx: StageContext) -> None:
        """Importances of the stage's rows, and what it added."""
        if ctx.stage.forget:
            return
        self._count += self._squares(ctx, drawn(ctx.data.stage_rows(), self.config.rows, ctx.seed), "squares")
        for unit in self._chosen(ctx) if self.config.dampen == "effect" else ():
            if unit.kind == "lora":
                with ctx.weights.gathered(unit) as tensors:
                    self.tensors.accumulate("effect", matrix(unit), tensors["B"] @ tensors["A"], unit.scale)

    def _squares(self, ctx: StageContext, rows: Sequence[Row], kind: str) -> int:
        size = self.config.batch if self.config.squares == "batches" else 1
        return add_squares(ctx, rows, self._chosen(ctx), size=size, store=self.tensors, kind=kind)

    def _chosen(self, ctx: StageContext) -> list[WeightUnit]:
        return list(matrices(ctx, self.config.units))

    # ---- the stage that forgets -------------------------------------------------------------------------------------
    def on_stage_start(self, ctx: StageContext) -> None:
        """Dampen. Raises TrainingError for an alpha that dampens nothing or everything."""
        if not ctx.stage.forget:
            return
        forget = drawn(ctx.data.forget_rows(), self.config.rows, ctx.seed)
        count, kind = self._count, "squares"
        if not count:
            kind, every = "own", [*drawn(ctx.data.stage_rows(), self.config.rows, ctx.seed), *forget]
            count = self._squares(ctx, every, kind)
        of_forget = self._squares(ctx, forget, "forget")
        pairs = {
            matrix(unit): (
                self.tensors.require(kind, matrix(unit)) / count,
                self.tensors.require("forget", matrix(unit)) / of_forget,
            )
            for unit in self._chosen(ctx)
            if self.tensors.get(kind, matrix(unit)) is not None
        }
        if not pairs:
            what = f"no importances of {', '.join(self.config.units) or 'these weights'} are stored"
            raise TrainingError(what, where=self.name, fix="list ssd in the stages that learn, or change units")
        self._dampen(ctx, pairs)
        self.tensors.drop("own")
        self.tensors.drop("forget")

    def _dampen(self, ctx: StageContext, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        given = self.config.alpha
        if isinstance(given, Search):
            alpha = self._searched(ctx, pairs, given)
        else:
            whole = isinstance(given, Percentile)
            alpha = percentile([ratios(d, f) for d, f in pairs.values()], given.percentile) if whole else float(given)
            self._refuse_all_or_nothing(pairs, alpha)
            self._apply(ctx, pairs, alpha)
        share = _share(pairs, alpha)
        self._done = {"alpha": alpha, "share": share}
        ctx.log("ssd/alpha", alpha)
        ctx.log("ssd/share", share)

    def _refuse_all_or_nothing(self, pairs: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> None:
        share = _share(pairs, alpha)
        if share in (0.0, 1.0):
            most = max(float(ratios(d, f).max()) for d, f in pairs.values())
            what = f"alpha {alpha:g} dampens {'no weight' if share == 0 else 'every weight'}; I_f / I_D is at most {most:g}"
            raise TrainingError(what, where=self.name, fix="change alpha, or give {percentile: 99}")

    def _searched(self, ctx: StageContext, pairs: Mapping[str, tuple[Tensor, Tensor]], given: Search) -> float:
        """The smallest alpha, going down, before the retained loss rises too much; weights are dampened with it."""
        rows = drawn(ctx.data.stage_rows(), given.rows, ctx.seed)
        for unit in self._chosen(ctx):
            with ctx.weights.gathered(unit) as tensors:
                self.tensors.put("before", unit.name, tensors["weight"])
        most, best = (1 + given.rise) * loss_on(ctx, rows), None
        for alpha in [a for a in sorted(given.search, reverse=True) if 0 < _share(pairs, a) < 1]:
            self._apply(ctx, pairs, alpha)
            loss = loss_on(ctx, rows)
            self._restore(ctx)
            if loss > most:
                break
            best = alpha
        self.tensors.drop("before")
        if best is None:
            what = f"every alpha of {given.search} dampens nothing or everything, or lifts the retained loss above {most:.3f}"
            raise TrainingError(what, where=self.name, fix="search among other alphas, or raise rise")
        self._apply(ctx, pairs, best)
        return best

    def _apply(self, ctx: StageContext, pairs: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> None:
        for unit in self._chosen(ctx):
            if matrix(unit) not in pairs:
                continue
            stay = kept_share(*pairs[matrix(unit)], alpha=alpha, strength=self.config.strength)
            with ctx.weights.edit(unit) as tensors:
                weight = tensors["weight"]
                if self.config.dampen == "weights":
                    weight *= stay.to(weight.device)
                    continue
                added = self.tensors.get("effect", matrix(unit))
                if added is not None:
                    weight -= ((1 - stay) * added).to(weight.device)

    def _restore(self, ctx: StageContext) -> None:
        for unit in self._chosen(ctx):
            with ctx.weights.edit(unit) as tensors:
                tensors["weight"].copy_(self.tensors.require("before", unit.name))

    def state_dict(self) -> JsonDict:
        """How many gradients I_D is of, and what was done."""
        return {"count": self._count, "done": self._done}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back. Raises StateError for keys it does not know."""
        super().load_state_dict({k: v for k, v in state.items() if k not in self.state_dict()})
        self._count, self._done = int(state["count"]), dict(state["done"])


def _share(pairs: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> float:
    """Share of the weights that are selected."""
    hits = sum(int(selected(d, f, alpha).sum()) for d, f in pairs.values())
    return hits / sum(d.numel() for d, _ in pairs.values())
