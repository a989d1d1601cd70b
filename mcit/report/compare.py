"""Two runs compared: what differs, what that did to the scores, in words and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcit.core.types import JsonDict
from mcit.report.differences import KINDS, Difference, run_differences
from mcit.report.matrix import measure
from mcit.report.paired import paired, paired_metrics, unlike
from mcit.report.tables import full_report


def comparison(first: Path, second: Path, *, mode: str | None = None) -> JsonDict:
    """Differences, scores with paired intervals, and both in words; the second run is told against the first.

    Raises StateError if a folder is no run or a file is damaged.
    """
    runs = [Path(first), Path(second)]
    reports, measured = [full_report(run, mode=mode) for run in runs], [measure(run) for run in runs]
    found = run_differences(*runs)
    tasks, metrics = paired(reports, measured), paired_metrics(reports, measured)
    names = [report["name"] for report in reports]
    return {
        "runs": [str(run) for run in runs],
        "names": names,
        "words": [*differ_words(found), *score_words(tasks, metrics, names), *unlike(reports), *caution(found)],
        "differences": [vars(item) for item in found],
        "tasks": [
            {"task": line["task"], "scores": [run["score"] for run in line["runs"]], **_second(line)} for line in tasks
        ],
        "metrics": metrics,
        "scorer_modes": [report["scorer_mode"] for report in reports],
    }


def differ_words(found: Sequence[Difference]) -> list[str]:
    """What differs and what does not, each in a sentence."""
    kinds = [kind for kind in KINDS if any(item.kind == kind for item in found)]
    if not kinds:
        return ["Nothing differs: sequence, settings, data, base, code, versions, hardware and seeds are the same."]
    parts = []
    for kind in kinds:
        items = [item for item in found if item.kind == kind]
        told = "; ".join(f"{item.what}: {item.first} -> {item.second}" for item in items[:_SHOWN])
        more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
        parts.append(f"{kind.capitalize()} differ{'s' if kind in _ONE else ''}: {told}{more}.")
    same = [kind for kind in KINDS if kind not in kinds]
    return [*parts, *([f"The same in both: {', '.join(same)}."] if same else [])]


_SHOWN = 4
_ONE = ("sequence", "base", "code", "hardware", "layout")


def score_words(tasks: Sequence[JsonDict], metrics: Sequence[JsonDict], names: Sequence[str]) -> list[str]:
    """What happened to the scores: tasks that rose, fell and cannot be told apart, then MFN and forgetting."""
    both = [line for line in tasks if line["runs"][1]["difference"] is not None]
    out = []
    for k, name in enumerate(names):
        if all(line["runs"][k]["score"] is None for line in tasks):
            out.append(f"{name} has no score after its last stage yet.")
        else:
            only = [
                line["task"]
                for line in tasks
                if line["runs"][k]["score"] is not None and line["runs"][1 - k]["score"] is None
            ]
            if only:
                out.append(f"Scored at the end in {name} alone: {', '.join(only)}.")
    for title, wanted in (("Higher", 1), ("Lower", -1), ("Not to be told apart", 0)):
        chosen = [line for line in both if _sign(line["runs"][1]["span"]) == wanted]
        if chosen:
            out.append(f"{title} in {names[1]}: {'; '.join(map(_task, chosen))}.")
    known = {line["metric"]: line for line in metrics}
    for name, title in (("mfn", "MFN"), ("forgetting", "Forgetting")):
        line = known[name]
        if line["difference"] is not None:
            a, b = line["scores"]
            out.append(f"{title} {a:.1f} -> {b:.1f}, {line['difference']:+.1f} points{_within(line['span'])}.")
    return out


def caution(found: Sequence[Difference]) -> list[str]:
    """What the numbers cannot say."""
    out = [
        "Intervals: 95 %, over questions, the same ones resampled in both runs. They do not hold the spread of seeds."
    ]
    causes = [item for item in found if item.kind not in ("layout", "hardware", "versions")]
    if len(causes) > 1:
        out.append(
            f"{len(causes)} things differ beside versions and machine: the scores cannot say which of them did it."
        )
    return out


def _second(line: JsonDict) -> JsonDict:
    return {key: line["runs"][1][key] for key in ("difference", "span")}


def _sign(span: Sequence[float] | None) -> int | None:
    return None if span is None else 1 if span[0] > 0 else -1 if span[1] < 0 else 0


def _task(line: JsonDict) -> str:
    first, second = line["runs"]
    return (
        f"{line['task']} {first['score']:.1f} -> {second['score']:.1f}"
        f" ({second['difference']:+.1f}{_within(second['span'])})"
    )


def _within(span: Sequence[float] | None) -> str:
    return "" if span is None else f", {span[0]:+.1f} to {span[1]:+.1f}"


def render(found: JsonDict) -> list[Any]:
    """Tables of scores and of differences for a terminal."""
    from rich.table import Table

    scores = Table(title="final accuracy and metrics in %, Retention as a ratio", title_justify="left")
    for name, side in (("", "left"), ("A", "right"), ("B", "right"), ("B - A", "right"), ("95 %", "right")):
        scores.add_column(name, justify=side)  # type: ignore[arg-type]
    for line in found["tasks"]:
        scores.add_row(line["task"], *_cells(line, 1))
    for line in found["metrics"]:
        if any(score is not None for score in line["scores"]):
            scores.add_row(
                _SHORT.get(line["metric"], line["metric"].upper()), *_cells(line, _DIGITS.get(line["metric"], 1))
            )
    if not found["differences"]:
        return [scores]
    differ = Table(title="what differs", title_justify="left")
    for name in ("", "what", "A", "B"):
        differ.add_column(name, overflow="fold")
    for item in found["differences"]:
        differ.add_row(item["kind"], item["what"], item["first"], item["second"])
    return [scores, differ]


_SHORT = {"bwt_all": "BWT / T", "bwt_earlier": "BWT / (T-1)", "forgetting": "Forgetting", "retention": "Retention"}
_DIGITS = {"retention": 2}


def _cells(line: JsonDict, digits: int) -> list[str]:
    """Both scores, their difference and its interval; a dash where there is none."""
    scores = ["–" if score is None else f"{score:.{digits}f}" for score in line["scores"]]
    change, span = line["difference"], line["span"]
    within = "–" if span is None else f"{span[0]:+.{digits}f} to {span[1]:+.{digits}f}"
    return [*scores, "–" if change is None else f"{change:+.{digits}f}", within]
