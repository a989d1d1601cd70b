"""The evaluation card of a run: few numbers of all kinds, and of each stage its certificate. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcit.core.types import JsonDict
from mcit.evals.certificate import read_certificates, timeless
from mcit.report.probes import metric_rows, rho
from mcit.runs.run import Run

_METRICS = {
    "mfn": "mean at the end (MFN), %",
    "mft": "plasticity: mean right after learning (MFT), %",
    "bwt_earlier": "BWT over the T-1 earlier tasks, points",
    "forgetting": "forgetting from the best score so far, points",
}


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
    stability = (report.get("probes") or {}).get("stability")
    if stability:
        settings = f"{rho(stability['settings'])}, {stability['settings']['rows']} rows"
        rows += [[f"{name} ({settings})", value] for name, value in metric_rows(stability, show)]
    certificates = report["certificates"]
    if certificates:
        size = certificates[-1]["audit"]["method_state_bytes"]
        rows.append(["state of methods kept between stages, bytes", f"{size:,}"])
    return rows
