"""Detectors of prompts that ask for what is to be forgotten, fitted by a guard's settings, and their errors on other prompts.

`config` is the guard's. Shapes: N prompts, D features; labels are 1 for prompts to forget, 0 for retained ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mcit.analytic import detector
from mcit.analytic.head import RowHead, row_key
from mcit.core.errors import DataError
from mcit.core.interfaces import DataContext
from mcit.core.seeds import seed_for
from mcit.core.types import Row
from mcit.methods.formulas.forgetting import deleted

HELD = 0.2
"""Share of prompts that a first detector does not see, for what is said of its errors."""


def requested(data: DataContext, name: str) -> tuple[list[Row], list[Row]]:
    """Rows that this stage and earlier ones with the method `name` forget, and those they retain without them.

    This stage's come first; rows that say the same are taken once. Raises DataError where what an earlier one forgets was
    deleted: a detector without it would let its prompts pass.
    """
    earlier = [s for s in data.stages[:-1] if s.forget and any(spec.name == name for spec in s.methods)]
    for stage in earlier:
        if lost := deleted(stage):
            what = f"the data of {', '.join(lost)}, which stage {stage.name} guards, were deleted: nothing would guard them now"
            raise DataError(what, where=name, fix="restore them until this stage is committed")
    forget, keep = list(data.forget_rows()), list(data.stage_rows())
    if not earlier:
        return forget, keep
    forget += _more([row for stage in earlier for row in data.forget_rows(stage)], forget)
    keep += _more([row for stage in earlier for task in stage.tasks for row in data.rows(task.name)], keep)
    gone = set(map(row_key, forget))
    return forget, [row for row in keep if row_key(row) not in gone]


def _more(rows: Sequence[Row], known: Sequence[Row]) -> list[Row]:
    """Each of `rows` once that is not among the known ones."""
    seen, every = set(map(row_key, known)), dict[str, Row]()
    for row in rows:
        every.setdefault(row_key(row), row)
    return [row for key, row in every.items() if key not in seen]


def some_rows(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """At most `count` of the rows, drawn by `seed`, in their order."""
    places = random.Random(seed_for(seed, "guard rows")).sample(range(len(rows)), min(count, len(rows)))
    return [rows[k] for k in sorted(places)]


def network(config: Any, x_ND: Tensor, y_N: Tensor, seed: int) -> dict[str, Tensor]:
    """Tensors of the small network."""
    c = config
    return detector.fit(x_ND, y_N, width=c.width, steps=c.steps, lr=c.lr, seed=seed)


def ridge(config: Any, x_ND: Tensor, y_N: Tensor, rows: Sequence[Row]) -> RowHead:
    """The ridge head, which can forget single rows exactly."""
    head, keys = RowHead(gamma=config.gamma, bits=10), [row_key(row) for row in rows]
    for value, label in enumerate(("keep", "forget")):
        mine = (y_N == value).nonzero().flatten().tolist()
        head.learn(label, x_ND[mine], [keys[k] for k in mine])
    return head


def held_out(config: Any, x_ND: Tensor, y_N: Tensor, rows: Sequence[Row], seed: int) -> dict[str, Tensor]:
    """How a detector that did not see some prompts does on them: recall, and alarms on retained ones, as shares.

    Empty where the prompts it would see are of one kind.
    """
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    held, seen = order[: int(HELD * len(order))], order[int(HELD * len(order)) :]
    if len({float(y_N[k]) for k in seen}) < 2:
        return {}
    if config.detector == "analytic":
        tensors = {"weight": ridge(config, x_ND[seen], y_N[seen], [rows[k] for k in seen]).weight()}
    else:
        tensors = network(config, x_ND[seen], y_N[seen], seed)
    alarm = detector.probability(tensors, x_ND[held]) >= 0.5
    asked = {rows[k].question for k in order if y_N[k] == 1}
    groups = {
        "recall": [i for i, k in enumerate(held) if y_N[k] == 1],
        "false_alarms": [i for i, k in enumerate(held) if y_N[k] == 0],
        "false_alarms_same_question": [i for i, k in enumerate(held) if y_N[k] == 0 and rows[k].question in asked],
    }
    return {name: alarm[places].float().mean() for name, places in groups.items() if places}
