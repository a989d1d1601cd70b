"""View-Batch: a row comes back less often, and when it comes it comes in several views at once.

Paper: "Do Your Best and Get Enough Rest for Continual Learning", CVPR 2025, arXiv:2503.18371: with V views of a row in a
batch of B, the samples between two visits of a row grow from B T to B T V at equal compute, and the first (weak) view
teaches the others by ``KL(p_1 || p_j)``.
Hooks: order (V epochs make one pass of V neighbouring views of every row), on_row (the strong views), loss_term (the first
view teaches the others, on answer tokens).
State: none.

Differs from the released code, which drops up to 255 rows of an epoch, ignores the run's seed and takes neighbours of one
class for views of one row: here every row comes V times in V epochs, by the stage's seed, and views are told by row. The
divergence is a mean over the answer tokens of the views that are taught (there over classes, too). V = 4 is the paper's
best. With fewer epochs than V it is refused: rows would be left out. Views change the picture by brightness and contrast
unless `changes`, or `task_changes` for one task of several, says more; what falsifies an answer is refused task by task:
flips, crops and turns where answers are boxes, these and blur where text is read. Flips and crops spare rows whose words
tell left from right, greying and colour shifts those whose words name colours.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from mcit.core.config import Field, MethodConfig, suggestion
from mcit.core.errors import Problem
from mcit.core.interfaces import StepContext
from mcit.core.types import Batch, Claims, Draw, LossSum, ModelOutput, PictureChange, Plan, Row, Stage
from mcit.methods.base import Method
from mcit.methods.formulas.divergence import distillation_kl

Change = Literal["brightness", "contrast", "colour", "grey", "blur", "crop", "rotate", "flip"]
FALSIFIES = {"box": {"crop", "rotate", "flip"}, "reading": {"rotate", "flip", "crop", "blur"}}
"""Changes that make answers wrong, by what the answers are."""
_SIDES = r"\b(left|right|west|east|clockwise|mirror\w*)\b"
_COLOURS = r"\b(colou?r\w*|red|green|blue|yellow|orange|purple|pink|brown|black|white|gr[ae]y)\b"
SPARED = {"flip": _SIDES, "crop": _SIDES, "grey": _COLOURS, "colour": _COLOURS}
"""Words of a row, question or answer, that keep a change from its pictures."""
_READING = re.compile(r"ocr|text|read|doc|chart|word|letter", re.IGNORECASE)


class ViewBatch(Method):
    """Neighbouring views of a row, taught by the first."""

    name = "view_batch"

    class Config(MethodConfig):
        """Settings of views and loss."""

        divergence: float = Field(1.0, ge=0)
        """Factor of the loss by which the first view teaches the others; 1 in the released code, 0 leaves the order alone."""
        views: int = Field(4, ge=2)
        """Views of a row in a batch (V); 4 in the paper."""
        changes: list[Change] = Field(["brightness", "contrast"], min_length=1)
        """What strong views may do to a picture; one of them each."""
        task_changes: dict[str, list[Change]] = {}
        """The same for single tasks of the stage, by name; an empty list leaves their pictures alone. Other tasks have
        `changes`."""
        reading: list[str] = []
        """Tasks whose answers are read off the picture, besides those whose name or scorer says so."""
        from_epoch: int = Field(0, ge=0)
        """First epoch of the stage with the divergence; 6 in the released code, counted from 0."""

    @property
    def claims(self) -> Claims:
        """The task's order, V rows side by side."""
        return Claims(slots=frozenset({"order:task"}), groups={"task": self.config.views})

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """Too few epochs, or changes that falsify a task's answers."""
        problems = []
        if 0 < stage.epochs < self.config.views:
            what = (
                f"{self.config.views} views of every row take {self.config.views} epochs; the stage has {stage.epochs}"
            )
            problems.append(Problem("views", what, f"set epochs: {self.config.views} or more, or fewer views"))
        elif (come := stage.steps * stage.optim.batch // self.config.views) < stage.rows:
            what = f"about {come} of {stage.rows} rows come in {stage.steps} steps, each in {self.config.views} views"
            problems.append(Problem("views", what, "raise max_steps to have them all", "note"))
        own = self.config.task_changes
        for name in sorted(own.keys() - {task.name for task in stage.tasks}):
            fix = suggestion(name, [task.name for task in stage.tasks])
            problems.append(Problem(f"task_changes.{name}", "the stage has no task of this name", fix))
        for task in stage.tasks:
            reads = task.name in self.config.reading or _READING.search(f"{task.name} {task.scorer} {task.style}")
            kind = "box" if task.style == "box" or "grounding" in task.scorer else "reading" if reads else ""
            wrong = sorted(FALSIFIES.get(kind, set()) & set(self._changes(task.name)))
            if wrong:
                where, names = f"task_changes.{task.name}" if task.name in own else "changes", ", ".join(wrong)
                fix = f"leave {' and '.join(wrong)} out of {where}"
                fix += "" if task.name in own else f", or give the task its own: task_changes: {{{task.name}: […]}}"
                problems.append(Problem(where, f"{names} falsifies answers of task '{task.name}' ({kind})", fix))
        return problems

    def _changes(self, task: str) -> list[Change]:
        return self.config.task_changes.get(task, self.config.changes)

    def order(self, stream: str, epoch: int, count: int, seed: int) -> Sequence[Draw]:
        """Epochs e V to e V + V - 1 read one shuffled sequence of rows, each V times in a row."""
        block, part = divmod(epoch, self.config.views)
        rows = list(range(count))
        random.Random(f"{seed}/view_batch/{block}").shuffle(rows)
        places = (divmod(part * count + k, self.config.views) for k in range(count))
        return [(rows[place], view) for place, view in places]

    def on_row(self, row: Row, view: int, seed: int) -> Row:
        """The row with one change of its pictures, drawn by seed, row and view."""
        draw = random.Random(f"{seed}/{row.id}/{view}")
        words = " ".join(turn.text for turn in row.turns)
        given = self._changes(row.task)
        allowed = [c for c in given if c not in SPARED or not re.search(SPARED[c], words, re.IGNORECASE)]
        if not allowed or not row.images:
            return row
        change = PictureChange(kind := draw.choice(allowed), _values(kind, draw))
        return replace(row, encoding=replace(row.encoding, changes=(*row.encoding.changes, change)))

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Divergence of each later view from the first of its row, over answer tokens."""
        epoch = ctx.step * ctx.stage.optim.batch // max(1, ctx.stage.rows)
        if batch.stream != "task" or self.config.divergence == 0 or epoch < self.config.from_epoch:
            return None
        sums = []
        for first in (place for place, view in enumerate(batch.views) if view == 0):
            teacher_NV = out.logits_NV[out.row_N == first].detach()
            for place in range(first + 1, min(first + self.config.views, len(batch.rows))):
                if batch.row_ids[place] == batch.row_ids[first] and len(teacher_NV):
                    sums.append(distillation_kl(out.logits_NV[out.row_N == place], teacher_NV).sum())
        views = self.config.views
        return (
            LossSum(self.config.divergence * views / (views - 1) * torch.stack(sums).sum(), per="tokens")
            if sums
            else None
        )


def _values(kind: str, draw: random.Random) -> tuple[float, ...]:
    """Numbers of a change: moderate ones, by the generator."""
    if kind in ("brightness", "contrast", "colour"):
        return (draw.choice((draw.uniform(0.5, 0.8), draw.uniform(1.25, 1.6))),)
    if kind == "blur":
        return (draw.uniform(0.5, 1.5),)
    if kind == "rotate":
        return (draw.choice((-1, 1)) * draw.uniform(3, 15),)
    if kind == "crop":
        left, top = draw.uniform(0, 0.2), draw.uniform(0, 0.2)
        return (left, top, left + 0.8, top + 0.8)
    return ()
