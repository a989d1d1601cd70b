"""A model's matrices under selective synaptic dampening (arXiv:2308.07707): how much alpha takes, and doing it.

The formulas of one matrix are in `dampening`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mcit.core.errors import TrainingError
from mcit.core.interfaces import StageContext, TensorStore
from mcit.core.types import Row, WeightUnit
from mcit.methods.formulas.dampening import kept_share, percentile, ratios
from mcit.methods.formulas.importances import loss_on, matrix


def importances(
    store: TensorStore, units: Sequence[WeightUnit], every: tuple[str, int], forget: tuple[str, int]
) -> dict[str, tuple[Tensor, Tensor]]:
    """I_D and I_f of each matrix that has them: means of the sums in `store`, each by its kind and how many it is of."""
    return {
        matrix(unit): (
            store.require(every[0], matrix(unit)) / every[1],
            store.require(forget[0], matrix(unit)) / forget[1],
        )
        for unit in units
        if store.get(every[0], matrix(unit)) is not None
    }


@dataclass(frozen=True)
class Dampening:
    """The chosen matrices with their importances, and how strongly they are dampened."""

    units: Sequence[WeightUnit]
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    """Importances for all rows and for those to forget, by matrix; both of the matrix's shape."""
    strength: float
    what: str
    """``weights``, or ``effect``: what the tensors "effect" in `store` say that learned stages added."""
    store: TensorStore

    def share(self, alpha: float) -> float:
        """Share of the weights that alpha makes smaller, of those that matter for the rows to forget.

        With ``effect`` of those that a learned stage changed. 0 where there are none.
        """
        smaller = every = 0
        for name, (d, f) in self.pairs.items():
            counted = f > 0
            if self.what == "effect":
                added = self.store.get("effect", name)
                if added is None:
                    continue
                counted &= added != 0
            smaller += int((counted & (kept_share(d, f, alpha=alpha, strength=self.strength) < 1)).sum())
            every += int(counted.sum())
        return smaller / every if every else 0.0

    def percentile(self, percent: float) -> float:
        """The alpha that leaves so many percent of the weights untouched."""
        return percentile([ratios(d, f) for d, f in self.pairs.values()], percent)

    def refuse_all_or_nothing(self, alpha: float) -> None:
        """Raise TrainingError for an alpha that makes no weight smaller, or every one that matters for the rows to forget."""
        share = self.share(alpha)
        if share in (0.0, 1.0):
            most = max(float(ratios(d, f).max()) for d, f in self.pairs.values())
            which = "no weight" if share == 0 else "every weight"
            what = f"alpha {alpha:g} at strength {self.strength:g} dampens {which}; I_f / I_D is at most {most:g}"
            fix = "lower strength" if self.strength > most else "change alpha, or give {percentile: 99}"
            raise TrainingError(what, where="ssd", fix=fix)

    def searched(self, ctx: StageContext, rows: Sequence[Row], alphas: Sequence[float], *, rise: float) -> float:
        """The smallest alpha, going down, before the loss on `rows` has risen by more than `rise`; weights are as before.

        Raises TrainingError if there is none.
        """
        for unit in self.units:
            with ctx.weights.gathered(unit) as tensors:
                self.store.put("before", unit.name, tensors["weight"])
        most, best = (1 + rise) * loss_on(ctx, rows), None
        for alpha in [a for a in sorted(alphas, reverse=True) if 0 < self.share(a) < 1]:
            self.apply(ctx, alpha)
            loss = loss_on(ctx, rows)
            self._restore(ctx)
            if loss > most:
                break
            best = alpha
        self.store.drop("before")
        if best is None:
            none = f"every alpha of {list(alphas)} dampens nothing or everything"
            what = f"{none}, or lifts the retained loss above {most:.3f}"
            raise TrainingError(what, where="ssd", fix="search among other alphas, or raise rise")
        return best

    def apply(self, ctx: StageContext, alpha: float) -> None:
        """Dampen."""
        for unit in self.units:
            if matrix(unit) not in self.pairs:
                continue
            stay = kept_share(*self.pairs[matrix(unit)], alpha=alpha, strength=self.strength)
            with ctx.weights.edit(unit) as tensors:
                weight = tensors["weight"]
                if self.what == "weights":
                    weight *= stay.to(weight.device)
                    continue
                added = self.store.get("effect", matrix(unit))
                if added is not None:
                    weight -= ((1 - stay) * added).to(weight.device)

    def keep_rest(self, alpha: float) -> None:
        """Of what learned stages added, keep what `apply` left, so that a later request takes nothing off twice."""
        for name, pair in self.pairs.items():
            added = self.store.get("effect", name)
            if self.what == "effect" and added is not None:
                self.store.put("effect", name, kept_share(*pair, alpha=alpha, strength=self.strength) * added)

    def _restore(self, ctx: StageContext) -> None:
        for unit in self.units:
            with ctx.weights.edit(unit) as tensors:
                tensors["weight"].copy_(self.store.require("before", unit.name))
