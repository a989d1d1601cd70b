"""The HTML report: one self-contained file, read without network, on a phone and on paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcit.core.files import parse_json, write_bytes, write_text
from mcit.core.stored import listed_bytes
from mcit.core.types import JsonDict
from mcit.report.matrix import Measured, measure
from mcit.report.page import charts, words
from mcit.report.page.bundle import script
from mcit.report.page.examples import examples
from mcit.report.paired import paired, paired_metrics, unlike
from mcit.report.probes import gap_rows, metric_rows, rho
from mcit.report.sections import page_sections
from mcit.report.tables import NAMES, full_report
from mcit.runs.layout import RunLayout
from mcit.runs.run import read_plan
from mcit.runs.shared import home


def write_page(runs: Sequence[Path], target: Path, *, mode: str | None = None, figures: bool = False) -> list[Path]:
    """Write the page of one run, or of several side by side, and with `figures` each chart as SVG and PNG beside it.

    Raises StateError if a folder is no run, a file is damaged or the target cannot be written.
    """
    text, drawn = _made(runs, mode)
    write_text(target, text)
    paths = [target]
    for name, content in (charts.figures(drawn) if figures else {}).items():
        paths.append(target.parent / f"{target.stem}-{name}")
        write_bytes(paths[-1], content.encode() if isinstance(content, str) else content)
    return paths


def page_text(runs: Sequence[Path], *, mode: str | None = None) -> str:
    """The same page as text. Raises StateError if a folder is no run or a file is damaged."""
    return _made(runs, mode)[0]


def _made(runs: Sequence[Path], mode: str | None) -> tuple[str, dict[str, JsonDict]]:
    """Text and charts."""
    reports, measured = [full_report(run, mode=mode) for run in runs], [measure(run) for run in runs]
    drawn = charts_of(runs, reports, measured)
    return render(runs, reports, measured, drawn), drawn


def render(
    runs: Sequence[Path], reports: Sequence[JsonDict], measured: Sequence[Measured], drawn: dict[str, JsonDict]
) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader

    env = Environment(
        loader=PackageLoader("mcit.report.page", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["num"] = lambda value, digits=1: "–" if value is None else f"{value:z,.{digits}f}"
    env.filters["span"] = lambda pair, digits=1: (
        "" if pair is None else f"{pair[0]:z.{digits}f} to {pair[1]:z.{digits}f}"
    )
    env.filters["split"] = _value_and_interval
    env.filters["duration"] = lambda value: "–" if value is None else words.duration(value)
    pages = [_page(run, report, found) for run, report, found in zip(runs, reports, measured, strict=True)]
    return env.get_template("page.html.j2").render(
        title=", ".join(report["name"] for report in reports),
        pages=pages,
        compared=paired(reports, measured) if len(reports) > 1 else None,
        metrics=_metrics_of(reports, measured),
        unlike=unlike(reports),
        charts=list(drawn),
        specs=json.dumps(drawn).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
        script=script() if drawn else "",
    )


def _metrics_of(reports: Sequence[JsonDict], measured: Sequence[Measured]) -> list[JsonDict]:
    """Each metric that some run has: its title, and by run value, interval and difference from the first run."""
    against = [
        paired_metrics([reports[0], report], [measured[0], one]) for report, one in zip(reports, measured, strict=True)
    ]
    return [
        {
            "title": title,
            "runs": [
                {
                    "value": report["metrics"][name],
                    "span": report["intervals"]["metrics"].get(name),
                    "paired": next(line for line in lines if line["metric"] == name) if k else None,
                }
                for k, (report, lines) in enumerate(zip(reports, against, strict=True))
            ],
        }
        for name, title in NAMES.items()
        if any(report["metrics"][name] is not None for report in reports)
    ]


def _value_and_interval(cell: str) -> tuple[str, str]:
    """A cell of a section in two parts where it is a number with an interval: ``0.8 (0.6 to 0.9), n 10``."""
    text = cell.replace("`", "")
    value, _, rest = text.partition(" (")
    return (value, f"({rest}") if rest and value.lstrip("-").replace(".", "").isdigit() else (text, "")


def _page(run: Path, report: JsonDict, measured: Measured) -> JsonDict:
    mode = report["scorer_mode"]
    return {
        "report": report,
        "headline": words.headline(measured, mode),
        "others": words.others(measured, mode),
        "quote": words.quote(report),
        "cost": words.cost(report),
        "grids": [
            {"title": "Accuracy", "rows": _grid(report, "matrix", base="base", spans=report["intervals"]["matrix"])},
            {
                "title": "Answers in the right form",
                "rows": _grid(report, "format_validity", base="base_format_validity"),
            },
        ],
        "sections": page_sections(report),
        "stability": probe_words(report["probes"]),
        "examples": examples(run, measured, mode),
        "config": listed_bytes(run, RunLayout(run).resolved.name).decode(),
    }


def probe_words(probes: JsonDict) -> JsonDict | None:
    """Metrics of the probe ``stability`` and what they were measured with; None where it did not run."""
    stability = probes.get("stability")
    if not stability:
        return None

    def show(value: Any) -> str:
        return "–" if value is None else f"{value:.3f}"

    settings = stability["settings"]
    measured = f"{rho(settings)}; {settings['rows']} rows per task at most; a window holds w evaluations."
    return {"metrics": metric_rows(stability, show), "gaps": gap_rows(stability, show), "measured": measured}


def _grid(report: JsonDict, key: str, *, base: str, spans: list[Any] | None = None) -> list[JsonDict]:
    """Rows of a heat map: name and cells with value, interval and whether the task was learned in that stage."""
    width = len(report["tasks"])
    rows = _plain_row("base", report[base], report)
    for j, (stage, values) in enumerate(zip(report["stages"], report[key], strict=True)):
        rows.append(
            {"name": stage, "cells": _cells(values, spans[j] if spans else [None] * width, j + 1, report, width)}
        )
    return rows + (_plain_row("best constant", report["constant"], report) if key == "matrix" else [])


def _plain_row(name: str, values: list[Any], report: JsonDict) -> list[JsonDict]:
    """A row that is of no stage and has no intervals; none where nothing of it is known."""
    width = len(report["tasks"])
    known = any(value is not None for value in values)
    return [{"name": name, "cells": _cells(values, [None] * width, None, report, width)}] if known else []


def _cells(values: list[Any], spans: list[Any], stage: int | None, report: JsonDict, width: int) -> list[JsonDict]:
    padded = [*values, *[None] * (width - len(values))]
    ranges = [*spans, *[None] * (width - len(spans))]
    return [
        {"value": value, "span": span, "own": report["first"][i] == stage}
        for i, (value, span) in enumerate(zip(padded, ranges, strict=True))
    ]


def charts_of(runs: Sequence[Path], reports: Sequence[JsonDict], measured: Sequence[Measured]) -> dict[str, JsonDict]:
    """Vega-Lite specifications by name: accuracy of all runs; of a single one also forgetting and training."""
    drawn = {"accuracy": charts.curves(reports)}
    if len(runs) == 1:
        drawn["accumulation"] = charts.accumulation(reports[0])
        drawn["frequency"] = charts.frequency(reports[0])
        drawn["forgetting"] = charts.forgetting(words.falls(measured[0], reports[0]["scorer_mode"]))
        lines = reports[0]["probes"].get("lines", {})
        title = "rows answered exactly (teacher-forced)"
        drawn["stability"] = charts.inside(lines.get("stability", []), path="tasks", title=title)
        drawn["norms"] = charts.norms(lines.get("stability", []))
        drawn["memories"] = charts.memories(lines.get("canary", []))
        drawn["drift"] = charts.drift(reports[0]["costs"])
        drawn["time"] = charts.time(reports[0]["costs"], reports[0]["probes"].get("shares", []))
        drawn["generation"] = charts.inside(lines.get("generation", []), path="", title="accuracy of answers")
        drawn |= {
            f"training-{name.replace('/', '-')}": spec for name, spec in charts.training(_metrics(runs[0])).items()
        }
    return {name: spec for name, spec in drawn.items() if spec is not None}


def _metrics(run: Path) -> dict[str, list[JsonDict]]:
    """Lines of ``metrics.jsonl`` by committed stage. Raises StateError for a file that was cut off or edited."""
    layout, out = RunLayout(run), {}
    for stage in read_plan(layout)["stages"]:
        folder = home(layout, stage["folder"])
        if folder.is_dir():
            lines = listed_bytes(folder, "metrics.jsonl").splitlines()
            out[stage["folder"]] = [parse_json(line, where=str(folder / "metrics.jsonl")) for line in lines]
    return out
