"""What probes measured inside the stages of a run, put together from its committed stages. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcit.core.files import parse_json
from mcit.core.records import Manifest, ProgressRecord
from mcit.core.stored import MANIFEST, listed_bytes, read_listed, read_sealed
from mcit.core.types import JsonDict
from mcit.evals.inference import wilson
from mcit.evals.stability import Evaluation, gaps, stability_metrics, standard_error
from mcit.runs.layout import RunLayout
from mcit.runs.run import read_plan
from mcit.runs.shared import home

PROBES = "probes.jsonl"
NAMES = {
    "acc": "ACC, mean over the tasks seen",
    "forg": "FORG, since the end of each task's stage",
    "min_acc": "min-ACC, mean of the lowest since then",
    "wc_acc": "WC-ACC, worst case (a lower bound of ACC)",
    "lca": "LCA, first 10 evaluations of each stage",
}
"""What a stability metric is called in reports."""


def read_probes(run: Path) -> JsonDict:
    """``lines`` of every probe by name with stage, step of the run and what was left out; ``stability`` and ``share``.

    Empty where no committed stage has measurements. Raises StateError for a damaged file.
    """
    layout = RunLayout(run)
    lines: dict[str, list[JsonDict]] = {}
    shares: list[JsonDict] = []
    before = 0
    for stage in read_plan(layout)["stages"]:
        folder = home(layout, stage["folder"])
        if not folder.is_dir():
            continue
        done = read_listed(folder, "progress.json", ProgressRecord)
        if PROBES in read_sealed(folder / MANIFEST, Manifest)["files"]:
            own = [parse_json(line, where=str(folder / PROBES)) for line in listed_bytes(folder, PROBES).splitlines()]
            for line in own:
                lines.setdefault(line["probe"], []).append(
                    {**line, "stage": stage["index"], "folder": stage["folder"], "run_step": before + line["step"]}
                )
            shares += _shares(stage["folder"], own, done["seconds"])
        before += done["steps"]
    if not lines:
        return {}
    plan = read_plan(layout)
    return {"lines": lines, "shares": shares, "stability": _stability(lines.get("stability", []), plan["stages"])}


def _shares(folder: str, lines: Sequence[JsonDict], trained: float) -> list[JsonDict]:
    """Per probe: seconds, share of the stage's step time, measurements made and left out."""
    out = []
    for name in dict.fromkeys(line["probe"] for line in lines):
        mine = [line for line in lines if line["probe"] == name]
        seconds = sum(line.get("seconds", 0.0) for line in mine)
        parts = [entry for line in mine for entry in line.get("parts", {}).values()]
        out.append(
            {
                "stage": folder,
                "probe": name,
                "seconds": seconds,
                "share": seconds / trained if trained else None,
                "made": sum("values" in line for line in mine),
                "left_out": sum("left_out" in line for line in [*mine, *parts]),
            }
        )
    return out


def evaluations_of(lines: Sequence[JsonDict], stages: Sequence[JsonDict]) -> list[Evaluation]:
    """Measurements of the probe ``stability`` as the metrics want them."""
    tasks = {stage["index"]: frozenset(stage["tasks"]) for stage in stages}
    return [
        Evaluation(
            line["run_step"],
            line["stage"],
            tasks[line["stage"]],
            {task: entry["accuracy"] for task, entry in line["values"]["tasks"].items()},
        )
        for line in lines
        if "values" in line
    ]


def _stability(lines: Sequence[JsonDict], stages: Sequence[JsonDict]) -> JsonDict | None:
    found = evaluations_of(lines, stages)
    if not found:
        return None
    settings = next(line["values"]["settings"] for line in lines if "settings" in line.get("values", {}))
    measured = (line["values"]["tasks"] for line in reversed(lines) if "values" in line)
    last: JsonDict = next(filter(None, measured), {})  # the probe may name tasks that no stage has trained yet
    return {
        "settings": settings,
        "metrics": stability_metrics(found),
        "gaps": gaps(found),
        "standard_error": max((standard_error(e["accuracy"], e["rows"]) for e in last.values()), default=None),
        "answers": [
            {"folder": line["folder"], "step": line["step"], "tasks": line["values"]["answers"]}
            for line in lines
            if "answers" in line.get("values", {})
        ],
        "norms": [
            {"folder": line["folder"], "step": line["step"], **line["values"]["norms"]}
            for line in lines
            if "norms" in line.get("values", {})
        ],
    }


# ---- tables ----------------------------------------------------------------------------------------------------------
def rho(settings: JsonDict) -> str:
    """Steps between two evaluations, in words."""
    every, dense, later = (settings[key] for key in ("every", "dense", "later"))
    return f"ρ = {every}" if dense is None else f"ρ = {every} in the first {dense} steps of a stage, then {later}"


def metric_rows(stability: JsonDict, show: Any) -> list[list[str]]:
    """Name and value of each metric; `show` writes a number or its absence."""
    found = stability["metrics"]
    rows = [[title, show(found[name])] for name, title in NAMES.items()]
    rows += [[f"WF, largest fall within w = {w} evaluations", show(value)] for w, value in found["wf"].items()]
    return rows + [[f"WP, largest rise within w = {w} evaluations", show(value)] for w, value in found["wp"].items()]


def gap_rows(stability: JsonDict, show: Any) -> list[list[str]]:
    """Stage, earlier task, accuracy at its start, the lowest one, its step, the last one."""
    return [
        [str(gap["stage"]), gap["task"], show(gap["start"]), show(gap["lowest"]), str(gap["step"]), show(gap["end"])]
        for gap in stability["gaps"]
    ]


def share_rows(probes: JsonDict, show: Any) -> list[list[str]]:
    """Stage, probe, measurements, how many were left out, seconds, share of step time."""
    return [
        [s["stage"], s["probe"], str(s["made"]), str(s["left_out"]), show(s["seconds"]), show(s["share"])]
        for s in probes["shares"]
    ]


def score_rows(probes: JsonDict, show: Any) -> list[list[str]]:
    """Generated answers inside stages: stage, step, probe, task, accuracy, share in the right form; of both probes."""
    answers = (probes["stability"] or {}).get("answers", [])
    lines = [(line["folder"], line["step"], "stability", line["tasks"]) for line in answers]
    made = [line for line in probes["lines"].get("generation", []) if "values" in line]
    lines += [(line["folder"], line["step"], "generation", line["values"]) for line in made]
    return [
        [folder, str(step), probe, task, show(entry["accuracy"]), show(entry["valid"]), str(entry["rows"])]
        for folder, step, probe, tasks in lines
        for task, entry in tasks.items()
    ]


def canary_rows(probes: JsonDict) -> list[list[str]]:
    """Stage that planted, exposures, kind, steps since, and shares recognised and recalled with Wilson intervals."""
    lines = [line for line in probes["lines"].get("canary", []) if "values" in line]
    return [
        [
            group["stage"], str(group["exposures"]), group["kind"],
            "before" if group["since"] is None else str(group["since"]), str(group["rows"]),
            *(share(group[key], group["rows"]) for key in ("recognised", "recalled")),
        ]
        for line in lines
        for group in line["values"]["groups"]
    ]  # fmt: skip


def memory_rows(probes: JsonDict, show: Any) -> list[list[str]]:
    """Texts: task, exposures, steps since, recognised and recalled with intervals, ROUGE of the continuation and of all."""
    lines = [line for line in probes["lines"].get("memory", []) if "values" in line]
    return [
        [
            task, str(entry["exposures"]), str(entry["since"]), str(entry["rows"]),
            *(share(entry[key], entry["rows"]) for key in ("recognised", "exact")),
            show(entry["rouge_l"]), show(entry["full_rouge_1"]),
        ]
        for line in lines
        for task, entry in line["values"].items()
    ]  # fmt: skip


def share(count: int, of: int) -> str:
    """A share with its 95 % Wilson interval."""
    low, high = wilson(count, of)
    return f"{count / of:.3f} ({low:.3f} to {high:.3f})"
