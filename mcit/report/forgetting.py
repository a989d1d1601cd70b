"""Forget stages in reports, from a run's plan and score files. Imports no torch."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from mcit.core.records import AdapterConfig, AdapterNote
from mcit.core.stored import read_listed
from mcit.core.types import JsonDict
from mcit.evals.score import read_score
from mcit.evals.unlearning import drop, h_mean, losses, mean, resurgence
from mcit.runs.gates import standing_of
from mcit.runs.layout import RunLayout
from mcit.runs.run import read_plan
from mcit.runs.shared import home

Cell = float | None
_COLUMNS = (
    "base",
    "before",
    "after",
    "drop",
    "retained_before",
    "retained",
    "h_mean",
    "most_lost_elsewhere",
    "resurgence",
)
HEAD = (
    "stage, forgets",
    "Acc_f base",
    "Acc_f before",
    "Acc_f after",
    "Drop",
    "Acc_r before",
    "Acc_r",
    "H-mean",
    "most lost elsewhere",
    "resurgence",
)
"""Titles of the columns of `table_rows`."""


def read_forgetting(run: Path, *, mode: str) -> list[JsonDict]:
    """One entry per stage that was not rejected and data set that it forgets; empty if no stage forgets anything.

    `before` and `after` the stage; `later` after each stage that followed; `retained`: mean over the tasks that the stage
    trained; `elsewhere`: points lost in the stage by every task scored before and after it. Raises StateError for a damaged
    score.
    """
    layout = RunLayout(run)
    plan = read_plan(layout)
    out, stages = [], standing_of(layout, plan["stages"])
    for stage, below in zip(stages, [0, *(s["index"] for s in stages)], strict=False):
        k = stage["index"]
        for task in stage["forget"]:

            def score(after: int, of: str = task) -> Cell:
                found = read_score(layout.evals(after) / of)
                return None if found is None else float(found[mode]["accuracy"])

            others = [t for t in plan["tasks"] if t not in stage["forget"]]
            then, now = ({t: score(j, t) for t in others} for j in (below, k))
            before, after = score(below), score(k)
            later = {s["folder"]: score(s["index"]) for s in stages if s["index"] > k}
            retained = mean([now.get(t) for t in stage["tasks"]])
            lost = losses(then, now)
            out.append(
                {
                    "stage": stage["folder"],
                    "task": task,
                    "base": score(0),
                    "before": before,
                    "after": after,
                    "drop": drop(before, after),
                    "later": later,
                    "resurgence": resurgence(after, list(later.values())),
                    "retained_before": mean([then.get(t) for t in stage["tasks"]]),
                    "retained": retained,
                    "h_mean": h_mean(retained, drop(before, after)),
                    "elsewhere": lost,
                    "most_lost_elsewhere": max(lost.values(), default=None),
                    **_zeros(home(layout, stage["folder"])),
                }
            )
    return out


def _zeros(folder: Path) -> JsonDict:
    """LoRA pairs of a committed stage that are exactly 0, which its adapter leaves out, and all pairs it trained."""
    if not (folder / "adapter").is_dir():
        return {"zero_pairs": None, "pairs": None}
    zero = set(read_listed(folder, "adapter/mcit.json", AdapterNote).get("zero", []))
    kept = set(read_listed(folder, "adapter/adapter_config.json", AdapterConfig)["target_modules"])
    return {"zero_pairs": len(zero), "pairs": len(zero | kept)}


# ---- tables ----------------------------------------------------------------------------------------------------------
def table_rows(entries: list[JsonDict], show: Any) -> list[list[str]]:
    """Rows under `HEAD`; `show` writes a number or its absence."""
    return [[f"{e['stage']}, {e['task']}", *(show(e[key]) for key in _COLUMNS)] for e in entries]


def later_rows(entries: list[JsonDict], show: Any) -> list[list[str]]:
    """What is forgotten, after each stage that followed: stage, data set, score."""
    return [
        [folder, f"{entry['task']} (forgotten in {entry['stage']})", show(value)]
        for entry in entries
        for folder, value in entry["later"].items()
    ]


def zero_lines(entries: list[JsonDict]) -> list[str]:
    """One sentence per forget stage whose adapter is known."""
    known = {e["stage"]: e for e in entries if e["pairs"] is not None}
    return [f"{e['zero_pairs']} of {e['pairs']} LoRA pairs of {stage} are exactly 0." for stage, e in known.items()]


def forget_csv(entries: list[JsonDict]) -> str:
    """One line per stage and data set; an empty field was not measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["stage", "task", *_COLUMNS, "zero_pairs", "pairs"])
    for e in entries:
        numbers = ["" if e[key] is None else f"{e[key]:.2f}" for key in _COLUMNS]
        writer.writerow(
            [e["stage"], e["task"], *numbers, *("" if e[k] is None else e[k] for k in ("zero_pairs", "pairs"))]
        )
    return out.getvalue()
