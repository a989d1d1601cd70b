"""What is left of the canaries that the method ``canary`` planted: recognition, recall, retention.

Per stage that planted, number of exposures and kind (``picture`` or ``text``): how many rows are *recognised* (mean loss of the
own code below that of the twin's, strictly, given the question; arXiv:2303.17557) and how many are *recalled* (the question's
greedy answer is the code). Measured before and after the stage that plants, at powers of ten of steps after it, and at the end
of every later stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mcit.core.canaries import Planting, plantings
from mcit.core.config import Field
from mcit.core.errors import DataError, Problem
from mcit.core.interfaces import DataContext, ProbeContext
from mcit.core.types import JsonDict, Plan, Row, Turn
from mcit.probes.base import Probe, ProbeConfig, steps_between
from mcit.probes.formulas.recollection import is_power_of_ten, recognised


class Canary(Probe):
    """Recognition and recall of planted rows."""

    class Config(ProbeConfig):
        """Length of answers; moments are given."""

        max_new_tokens: int = Field(24, ge=1)
        """Longest answer in tokens."""
        share: float | None = Field(None, gt=0)
        """Largest share of the stage's step time; by default these few measurements are all made."""

    def check(self, plan: Plan) -> list[Problem]:
        """There is nothing to look for."""
        if plantings(plan.stages):
            return []
        return [Problem("use", "no stage plants canaries", "list the method canary in a stage")]

    def rows(self, data: DataContext) -> Mapping[str, Sequence[Row]]:
        """Rows by the stage that plants them; every one with its twin's answer in ``meta.foil``."""
        found, self._stage = plantings(data.stages), data.stage
        self._since = {p.stage.folder: steps_between(data, p.stage) for p in found}
        self._plantings: dict[str, Planting] = {p.stage.folder: p for p in found}
        out = {}
        for folder, planting in self._plantings.items():
            every = data.pool(planting.recipe)
            out[folder] = [every[planting.first + k] for k in range(planting.count)]
            for row in out[folder]:
                foil = row.meta.get("foil")
                if not isinstance(foil, str) or foil.strip() in ("", row.answer.strip()):
                    fix = "give each row of the recipe the answer of a twin"
                    raise DataError("a canary needs meta.foil, another answer of its form", where=row.where, fix=fix)
        return out

    def due(self, step: int, total: int) -> bool:
        """The two ends, and powers of ten of steps after a stage that planted."""
        return step in (0, total) or any(is_power_of_ten(before + step) for before in self._later())

    def _later(self) -> list[int]:
        """Steps between each earlier stage that planted and this one."""
        return [self._since[f] for f, p in self._plantings.items() if p.stage.index < self._stage.index]

    def measure(self, rows: Mapping[str, Sequence[Row]], ctx: ProbeContext) -> JsonDict:
        """``{"groups": […]}``."""
        groups: list[JsonDict] = []
        for folder, mine in rows.items():
            planting = self._plantings[folder]
            here = planting.stage.index == ctx.stage.index
            since = None if here and ctx.step < ctx.total_steps else 0 if here else self._since[folder] + ctx.step
            for group in self._groups(planting, mine, ctx):
                groups.append({"stage": folder, "since": since, **group})
        return {"groups": groups}

    def _groups(self, planting: Planting, rows: Sequence[Row], ctx: ProbeContext) -> list[JsonDict]:
        own = [fit.nll for fit in ctx.fits(rows)]
        foil = [fit.nll for fit in ctx.fits([with_foil(row) for row in rows])]
        said = ctx.answers(rows, max_new_tokens=self.config.max_new_tokens)
        known = recognised(own, foil)
        recalled = [answer["text"].strip() == row.answer.strip() for row, answer in zip(rows, said, strict=True)]
        by_group: dict[tuple[int, str], list[int]] = {}
        for place, row in enumerate(rows):
            kind = "picture" if row.images else "text"
            by_group.setdefault((planting.exposed(place), kind), []).append(place)
        return [
            {
                "exposures": exposures,
                "kind": kind,
                "rows": len(places),
                "recognised": sum(known[k] for k in places),
                "recalled": sum(recalled[k] for k in places),
                "loss": sum(own[k] for k in places) / len(places),
                "foil_loss": sum(foil[k] for k in places) / len(places),
            }
            for (exposures, kind), places in sorted(by_group.items())
        ]


def with_foil(row: Row) -> Row:
    """The row with its twin's answer."""
    return replace(row, turns=(*row.turns[:-1], Turn("assistant", row.meta["foil"])))
