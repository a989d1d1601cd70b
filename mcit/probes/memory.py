"""Few-shot memory for plain texts: study texts once to a few times, then train on others and ask what is left.

Paper: arXiv:2303.17557, abstract (findings) and released code (protocol). A task whose rows are plain texts with another one
in ``meta.foil`` is studied; recognition compares mean token losses, recall continues the first half of the tokens greedily, to
exactly the original length and without an end token. Measured before, after each epoch of the study stage, and at the
paper's 30 points of steps in later stages.

The released code's ROUGE is over cue and continuation, so that half is given away: ``full_rouge_1`` repeats it; ``rouge_l``
and ``exact`` are over the continuation alone. It also compares means of whole batches where the batch is above 1; here every
row is judged by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mcit.core.config import Field
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, ProbeContext
from mcit.core.types import Encoding, JsonDict, Plan, Row, Stage, Turn
from mcit.data.folder import DataFolder
from mcit.probes.base import Probe, ProbeConfig, steps_between
from mcit.probes.formulas.recollection import recognised, retention_steps, rouge_1, rouge_l

_POINTS = frozenset(retention_steps())


class Memory(Probe):
    """Recognition and recall of the texts of tasks that were studied."""

    class Config(ProbeConfig):
        """Rows and length of texts; moments are given."""

        rows: int = Field(64, ge=1)
        """Texts per task, the first in its order."""
        max_tokens: int = Field(128, ge=4)
        """Longer texts are cut, as in the paper's code."""
        share: float | None = Field(None, gt=0)
        """Largest share of the stage's step time; by default all points are measured."""

    def check(self, plan: Plan) -> list[Problem]:
        """There is nothing to study where no task of a stage begins with a plain text that has a foil."""
        tasks = {
            task.folder: task
            for stage in plan.stages
            for task in stage.tasks
            if task.rows.get("train") and not task.gone
        }
        if any(_is_studied(DataFolder.open(folder).rows("train")) for folder in tasks):
            return []
        what = "no stage trains on plain texts with foils, so that nothing would be measured"
        return [
            Problem(
                "use",
                what,
                "list a recipe of plain texts with meta.foil, such as memory/sentences, or remove the probe",
            )
        ]

    def rows(self, data: DataContext) -> Mapping[str, Sequence[Row]]:
        """Plain texts with a foil, by task."""
        cut = Encoding(raw=True, max_tokens=self.config.max_tokens)
        out = {}
        for task in data.tasks:
            every = data.rows(task)
            if _is_studied(every):
                out[task] = [replace(every[k], encoding=cut) for k in range(min(self.config.rows, len(every)))]
        self._study = [s for s in data.stages if any(task.name in out for task in s.tasks)]
        self._stage = data.stage
        self._between = {s.folder: steps_between(data, s) for s in self._study}
        return out

    def due(self, step: int, total: int) -> bool:
        """The two ends; ends of epochs in a study stage; the paper's points after it."""
        if step in (0, total):
            return True
        if self._study and self._study[-1].index == self._stage.index:
            return step in epoch_ends(self._stage)
        return any(between + step in _POINTS for between in self._between.values())

    def measure(self, rows: Mapping[str, Sequence[Row]], ctx: ProbeContext) -> JsonDict:
        """By task: exposures so far or steps since, and shares in [0, 1]."""
        out: JsonDict = {}
        for task, mine in rows.items():
            study = next(s for s in self._study if any(t.name == task for t in s.tasks))
            here = study.index == ctx.stage.index
            shown = sum(end <= ctx.step for end in epoch_ends(study)) if here else study.epochs
            since = 0 if here else self._between[study.folder] + ctx.step
            out[task] = {"exposures": shown, "since": since, **self._asked(mine, ctx)}
        return out

    def _asked(self, rows: Sequence[Row], ctx: ProbeContext) -> JsonDict:
        foils = [replace(row, turns=(Turn("assistant", row.meta["foil"]),)) for row in rows]
        own, foil = ([fit.nll for fit in ctx.fits(some)] for some in (rows, foils))
        made = ctx.continuations(rows)
        return {
            "rows": len(rows),
            "recognised": sum(recognised(own, foil)),
            "exact": sum(one["exact"] for one in made),
            "rouge_l": sum(rouge_l(one["rest"], one["text"]) for one in made) / len(rows),
            "full_rouge_1": sum(rouge_1(one["cue"] + one["rest"], one["cue"] + one["text"]) for one in made)
            / len(rows),
        }


def _is_studied(rows: Sequence[Row]) -> bool:
    """Whether rows are plain texts with foils, by the first of them."""
    return len(rows) > 0 and rows[0].encoding.raw and bool(rows[0].meta.get("foil"))


def epoch_ends(stage: Stage) -> list[int]:
    """Steps after which each epoch of a stage has been gone through."""
    return [min(stage.steps, math.ceil(k * stage.rows / stage.optim.batch)) for k in range(1, stage.epochs + 1)]
