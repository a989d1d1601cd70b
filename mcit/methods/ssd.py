"""SSD: forget without training, by shrinking the weights that matter more for the rows to forget than for all.

Paper: Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024,
arXiv:2308.07707: with importances I (mean squared gradients) a weight with ``I_f > alpha I_D`` is multiplied by
``min(strength I_D / I_f, 1)``. Alpha as a percentile of I_f / I_D follows Schoepf et al., arXiv:2402.10098.
Hooks: select_trainable (the chosen matrices), streams (rows to forget, for passes alone), on_stage_start (in a stage
that forgets: dampening), on_stage_end (in one that learns: importances of its rows and, for ``dampen: effect``, what it
added).
State: "count", gradients in I_D; "done", alpha and the share made smaller of the weights that matter for the rows to
forget; tensors "squares" (sum) and "effect" by matrix.
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

from collections.abc import Mapping, Sequence
from typing import Annotated

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem, TrainingError
from mcit.core.interfaces import DataContext, NamesContext, StageContext
from mcit.core.types import Claims, JsonDict, Plan, Row, Stage, StreamSpec, WeightUnit
from mcit.methods.base import Method
from mcit.methods.formulas.dampened import Dampening, importances
from mcit.methods.formulas.forgetting import drawn
from mcit.methods.formulas.importances import add_squares, ends_with, matrices, matrix
from mcit.methods.planning.sizes import matrix_numbers
from mcit.methods.planning.ssd import Percentile, Search, ssd_problems


class SSD(Method):
    """Dampen weights by importances."""

    name = "ssd"
    prepares = True
    claims = Claims(slots=frozenset({"weights:edit"}), streams=frozenset({"forget"}))

    class Config(MethodConfig):
        """Settings of importances and dampening."""

        alpha: Annotated[float, Field(gt=0)] | Percentile | Search = 10.0
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
        """See `ssd_problems`."""
        return ssd_problems(self.config, stage, plan, name=self.name)

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """An fp32 matrix of squares for each chosen one, and one of what was added with ``dampen: effect``."""
        numbers = matrix_numbers(shapes, self.config.units)
        return 4 * numbers * (2 if self.config.dampen == "effect" else 1)

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
        pairs = importances(self.tensors, self._chosen(ctx), (kind, count), ("forget", of_forget))
        if not pairs:
            what = f"no importances of {', '.join(self.config.units) or 'these weights'} are stored"
            raise TrainingError(what, where=self.name, fix="list ssd in the stages that learn, or change units")
        self._dampen(ctx, Dampening(self._chosen(ctx), pairs, self.config.strength, self.config.dampen, self.tensors))
        self.tensors.drop("own")
        self.tensors.drop("forget")

    def _dampen(self, ctx: StageContext, dampening: Dampening) -> None:
        given = self.config.alpha
        if isinstance(given, Search):
            rows = drawn(ctx.data.stage_rows(), given.rows, ctx.seed)
            alpha = dampening.searched(ctx, rows, given.search, rise=given.rise)
        else:
            alpha = dampening.percentile(given.percentile) if isinstance(given, Percentile) else float(given)
            dampening.refuse_all_or_nothing(alpha)
        dampening.apply(ctx, alpha)
        self._done = {"alpha": alpha, "share": dampening.share(alpha)}
        dampening.keep_rest(alpha)
        ctx.log("ssd/alpha", alpha)
        ctx.log("ssd/share", self._done["share"])

    def state_dict(self) -> JsonDict:
        """How many gradients I_D is of, and what was done."""
        return {"count": self._count, "done": self._done}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back."""
        self._count, self._done = int(state["count"]), dict(state["done"])
