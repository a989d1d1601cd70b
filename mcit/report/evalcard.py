"""The evaluation card of a run: few numbers of all kinds, and of each stage its certificate. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcit.core.types import JsonDict
from mcit.evals.certificate import read_certificates, timeless
from mcit.report.probes import metric_rows, rho, share
from mcit.runs.run import Run

_METRICS = {
    "mfn": "mean at the end (MFN), %",
    "mft": "plasticity: mean right after learning (MFT), %",
    "bwt_earlier": "BWT over the T-1 earlier tasks, points",
    "forgetting": "forgetting from the best score so far, points",
}
_MOMENTS = {0, 10, 100}
"""Steps after planting, or after the stage that studied, whose shares are on the card; the last measurement is too."""


def read_card(run: Path) -> list[JsonDict]:
    """Certificates of stages that stand, without times: equal for equal runs. Raises StateError for a damaged one."""
    return [timeless(one) for one in read_certificates(Run(run))]


def run_rows(report: JsonDict, show: Any) -> list[list[str]]:
    """One row per number of the whole run; what was not measured is left out."""
    found: list[tuple[str, Any]] = [(text, report["metrics"][name]) for name, text in _METRICS.items()]
    last = [value for value in (report["format_validity"] or [[]])[-1] if value is not None]
    found.append(
        ("answers in another form at the end, mean over tasks, %", 100 - sum(last) / len(last) if last else None)
    )
    rows = [[text, show(value)] for text, value in found if value is not None]
    rows += [[f"drop of {task} against the base, points", show(drop)] for task, drop in _general(report)]
    probes = report.get("probes") or {}
    stability = probes.get("stability")
    if stability:
        settings = f"{rho(stability['settings'])}, {stability['settings']['rows']} rows"
        rows += [[f"{name} ({settings})", value] for name, value in metric_rows(stability, show)]
    rows += _kept(probes)
    certificates = report["certificates"]
    if certificates:
        size = certificates[-1]["audit"]["method_state_bytes"]
        rows.append(["state of methods kept between stages, bytes", f"{size:,}"])
    return rows


def _general(report: JsonDict) -> list[tuple[str, float]]:
    """Drop from the base to the last stage of what no stage trains and every stage is to keep (`slices.retention`)."""
    there = [cost["stage"] for cost in report.get("costs", []) if cost["committed"]]
    kept = {entry["stage"]: {one["task"]: one for one in entry["retention"]} for entry in report.get("slices") or []}
    if not there or not {there[0], there[-1]} <= kept.keys():
        return []
    first, last = kept[there[0]], kept[there[-1]]
    return [(task, first[task]["before"] - last[task]["after"]) for task in first if task in last]


def _kept(probes: JsonDict) -> list[list[str]]:
    """Shares recognised and recalled 0, 10 and 100 steps after planting or study and at the end, of both probes."""
    lines = {
        name: [line["values"] for line in made if "values" in line] for name, made in probes.get("lines", {}).items()
    }
    found: dict[str, dict[int, list[JsonDict]]] = {}
    for values in lines.get("canary", []):
        of: dict[str, list[JsonDict]] = {}
        for group in values["groups"]:
            of.setdefault(group["stage"], []).append(group)
        for stage, groups in of.items():
            if groups[0]["since"] is not None:
                found.setdefault(f"canaries of {stage}", {})[groups[0]["since"]] = groups
    for values in lines.get("memory", []):
        for task, entry in values.items():
            if entry["exposures"]:
                found.setdefault(f"texts of {task}", {})[entry["since"]] = [{**entry, "recalled": entry["exact"]}]
    rows = []
    for name, by_since in found.items():
        for since in sorted({*_MOMENTS & by_since.keys(), max(by_since)}):
            for key in ("recognised", "recalled"):
                count, of_all = (sum(group[k] for group in by_since[since]) for k in (key, "rows"))
                rows.append([f"{name} {key} after {since} more steps", share(count, of_all)])
    return rows
