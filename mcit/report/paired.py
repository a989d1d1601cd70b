"""Differences between runs with intervals over the same questions, resampled alike in all of them."""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core.types import JsonDict
from mcit.evals.bootstrap import percentile_interval, resampled_means
from mcit.evals.continual import METRICS
from mcit.report.matrix import Measured, metric_samples


def unlike(reports: Sequence[JsonDict]) -> list[str]:
    """Why numbers of these runs are not of one kind, each reason a sentence: other rules, other tasks."""
    out = []
    if len({report["scorer_mode"] for report in reports}) > 1:
        rules = ", ".join(f"{report['name']} {report['scorer_mode']}" for report in reports)
        out.append(
            f"Scored by different rules ({rules}): a difference may be one of the rules. --mode takes one for all."
        )
    if len({frozenset(report["tasks"]) for report in reports}) > 1:
        out.append("The runs have different tasks, and a metric is a mean over each run's own.")
    return out


def paired(reports: Sequence[JsonDict], measured: Sequence[Measured]) -> list[JsonDict]:
    """Final score of each task in each run, with its difference from the first run; no interval where questions differ."""
    out = []
    for task in dict.fromkeys(task for report in reports for task in report["tasks"]):
        rows = [_final_rows(found, task) for found in measured]
        line: JsonDict = {"task": task, "runs": []}
        for k, (report, own) in enumerate(zip(reports, rows, strict=True)):
            mode = report["scorer_mode"]
            score = None if own is None else 100.0 * sum(own[mode]) / len(own[mode])
            entry: JsonDict = {"score": score, "difference": None, "span": None}
            first, first_mode = rows[0], reports[0]["scorer_mode"]
            if k and score is not None and own and first and own["id"] == first["id"]:
                a, b = 100.0 * resampled_means([first[first_mode], own[mode]], own["id"])
                entry["difference"] = score - 100.0 * sum(first[first_mode]) / len(first[first_mode])
                entry["span"] = percentile_interval(b - a)
            line["runs"].append(entry)
        out.append(line)
    return out


def paired_metrics(reports: Sequence[JsonDict], measured: Sequence[Measured]) -> list[JsonDict]:
    """Each metric of two runs with the second's difference from the first; no interval where tasks or questions differ."""
    same = _questions(measured[0]) == _questions(measured[1])
    samples = (
        [metric_samples(found, report["scorer_mode"]) for report, found in zip(reports, measured, strict=True)]
        if same
        else []
    )
    out = []
    for name in METRICS:
        a, b = (report["metrics"][name] for report in reports)
        span = None
        if samples and len(samples[0][name]) == len(samples[1][name]) > 0:
            span = percentile_interval([y - x for x, y in zip(samples[0][name], samples[1][name], strict=True)])
        difference = None if a is None or b is None or not same else b - a
        out.append({"metric": name, "scores": [a, b], "difference": difference, "span": span})
    return out


def _questions(found: Measured) -> JsonDict:
    """Ids of the questions of each task in its newest row."""
    newest: JsonDict = {}
    for (_, task), rows in sorted(found.rows.items()):
        newest[task] = rows["id"]
    return newest


def _final_rows(measured: Measured, task: str) -> JsonDict | None:
    return measured.rows.get((len(measured.stages), task))
