"""Charts of a report as Vega-Lite specifications: plain JSON, drawn by the browser or made into SVG and PNG."""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from typing import Any

from mcit.core.types import JsonDict
from mcit.report.page.words import Fall

_MOST_POINTS = 400
"""Points of a training curve that are drawn; longer ones are thinned out evenly."""
_MOST_MODULES = 30
"""Modules of the drift chart."""


def curves(reports: Sequence[JsonDict]) -> JsonDict | None:
    """Accuracy of every task after every stage, with 95 % bands; a facet per run where there are several."""
    values = []
    for report in reports:
        spans = report["intervals"]["matrix"]
        for j, (stage, row) in enumerate(zip(report["stages"], report["matrix"], strict=True)):
            for i, value in enumerate(row):
                if value is not None:
                    low, high = spans[j][i] or (value, value)
                    point = {"run": report["name"], "stage": j + 1, "after": stage, "task": report["tasks"][i]}
                    values.append({**point, "accuracy": value, "low": low, "high": high})
    if not values:
        return None
    x = {"field": "stage", "type": "ordinal", "axis": {"labelAngle": 0}, "title": "after stage"}
    y = {"field": "accuracy", "type": "quantitative", "scale": {"domain": [0, 100]}, "title": "accuracy in %"}
    legend = {"symbolOpacity": 1}  # not the band's
    colour = {"field": "task", "type": "nominal", "sort": None, "title": "task", "legend": legend}
    tips = [
        {"field": name, "format": ".1f"} if name in ("accuracy", "low", "high") else {"field": name}
        for name in ("task", "after", "accuracy", "low", "high")
    ]
    band = {
        "mark": {"type": "area", "opacity": 0.12},
        "encoding": {"x": x, "y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}, "color": colour},
    }
    line = {"mark": {"type": "line", "point": True}, "encoding": {"x": x, "y": y, "color": colour, "tooltip": tips}}
    layers = {"layer": [band, line]}
    if len(reports) == 1:
        return _spec(values, {**layers, "width": "container", "height": 260})
    row = {"field": "run", "sort": [report["name"] for report in reports], "title": None}
    facet = {"facet": {"row": row}, "spec": {**layers, "width": 320, "height": 160}}
    return _spec(values, facet)


def accumulation(report: JsonDict) -> JsonDict | None:
    """KA after each stage of a stream in which tasks come back; None where none does, or not all tasks were scored."""
    found = report["accumulation"]
    values = [
        {"stage": j + 1, "after": report["stages"][j], "accuracy": value}
        for j, value in enumerate(found["curve"] if found else [])
        if value is not None
    ]
    if not values:
        return None
    encoding = {
        "x": {"field": "stage", "type": "quantitative", "title": "stages so far", "axis": {"format": "d"}},
        "y": {
            "field": "accuracy",
            "type": "quantitative",
            "scale": {"domain": [0, 100]},
            "title": "accuracy over all tasks in %",
        },
        "tooltip": [{"field": "after"}, {"field": "accuracy", "format": ".1f"}],
    }
    mark = {"type": "line", "point": {"size": 12}}
    return _spec(values, {"mark": mark, "width": "container", "height": 220, "encoding": encoding})


def frequency(report: JsonDict) -> JsonDict | None:
    """Last accuracy of each task against the share of stages that visited it."""
    found = report["accumulation"]
    values = [
        {
            "task": task,
            "frequency": one["frequency"],
            "visits": one["visits"],
            "since": one["since"],
            "accuracy": one["last"],
        }
        for task, one in (found["tasks"] if found else {}).items()
        if one["last"] is not None
    ]
    if not values:
        return None
    encoding = {
        "x": {"field": "frequency", "type": "quantitative", "title": "share of stages that trained the task"},
        "y": {
            "field": "accuracy",
            "type": "quantitative",
            "scale": {"domain": [0, 100]},
            "title": "last accuracy in %",
        },
        "color": {"field": "since", "type": "quantitative", "title": "stages since"},
        "tooltip": [{"field": f} for f in ("task", "visits", "since", "accuracy")],
    }
    return _spec(
        values, {"mark": {"type": "point", "filled": True}, "width": "container", "height": 180, "encoding": encoding}
    )


def forgetting(falls: Sequence[Fall]) -> JsonDict | None:
    """Answers that went wrong since a task was learned, by what changed: form or content."""
    values = [
        {"task": fall.task, "kind": kind, "answers": count}
        for fall in falls
        for kind, count in (("form", fall.form), ("content", fall.wrong - fall.form))
    ]
    if not any(value["answers"] for value in values):
        return None
    return _spec(
        values,
        {
            "mark": "bar",
            "width": "container",
            "height": 40 + 26 * len(falls),
            "encoding": {
                "y": {"field": "task", "type": "nominal", "sort": None, "title": None},
                "x": {
                    "field": "answers",
                    "type": "quantitative",
                    "title": "answers that went wrong",
                    "axis": {"tickMinStep": 1},
                },
                "color": {"field": "kind", "type": "nominal", "title": "what changed"},
                "tooltip": [{"field": "task"}, {"field": "kind"}, {"field": "answers"}],
            },
        },
    )


def inside(lines: Sequence[JsonDict], *, path: str, title: str) -> JsonDict | None:
    """Accuracy of each task over the steps of the run, by a probe's lines; `path` leads to the tasks of a measurement."""
    values = []
    for line in lines:
        tasks = line.get("values", {}) if not path else line.get("values", {}).get(path, {})
        values += [
            {"step": line["run_step"], "stage": line["folder"], "task": task, "accuracy": entry["accuracy"]}
            for task, entry in tasks.items()
        ]
    if not values:
        return None
    borders = [{"step": line["run_step"], "stage": line["folder"]} for line in lines if line["step"] == 0]
    x = {"field": "step", "type": "quantitative", "title": "step of the run"}
    y = {"field": "accuracy", "type": "quantitative", "scale": {"domain": [0, 1]}, "title": title}
    tips = [{"field": "task"}, {"field": "stage"}, {"field": "step"}, {"field": "accuracy", "format": ".3f"}]
    curves = {
        "mark": {"type": "line", "point": {"size": 14}},
        "encoding": {"x": x, "y": y, "color": {"field": "task", "type": "nominal"}, "tooltip": tips},
    }
    rules = {"data": {"values": borders}, "mark": {"type": "rule", "strokeDash": [4, 4]}, "encoding": {"x": x}}
    return _spec(values, {"layer": [rules, curves], "width": "container", "height": 240})


def memories(lines: Sequence[JsonDict]) -> JsonDict | None:
    """Recognition and recall of canaries over the steps since they were planted, on a logarithmic axis."""
    values = []
    for line in lines:
        for group in line.get("values", {}).get("groups", []):
            if group["since"] is not None:
                point = {"since": group["since"] + 1, "planted": f"{group['stage']}, {group['kind']}"}
                point["exposures"] = group["exposures"]
                for name in ("recognised", "recalled"):
                    values.append({**point, "measure": name, "share": group[name] / group["rows"]})
    if not values:
        return None
    encoding = {
        "x": {
            "field": "since",
            "type": "quantitative",
            "scale": {"type": "log"},
            "title": "steps since it was planted, plus 1",
        },
        "y": {"field": "share", "type": "quantitative", "scale": {"domain": [0, 1]}, "title": "share of rows"},
        "color": {"field": "exposures", "type": "nominal"},
        "strokeDash": {"field": "measure", "type": "nominal"},
        "detail": {"field": "planted"},
        "tooltip": [{"field": f} for f in ("planted", "exposures", "measure", "since", "share")],
    }
    mark = {"type": "line", "point": {"size": 14}}
    return _spec(values, {"mark": mark, "width": "container", "height": 240, "encoding": encoding})


def norms(lines: Sequence[JsonDict]) -> JsonDict | None:
    """Norms of the gradients of the task and of what methods add, over the first steps of each stage."""
    values = [
        {"step": line["run_step"], "stage": line["folder"], "gradient": name, "norm": value}
        for line in lines
        for name, value in line.get("values", {}).get("norms", {}).items()
    ]
    if not values:
        return None
    encoding = {
        "x": {"field": "step", "type": "quantitative", "title": "step of the run"},
        "y": {"field": "norm", "type": "quantitative", "title": "norm of the gradient"},
        "color": {"field": "gradient", "type": "nominal"},
        "detail": {"field": "stage"},
        "tooltip": [{"field": "gradient"}, {"field": "stage"}, {"field": "step"}, {"field": "norm", "format": ".4g"}],
    }
    mark = {"type": "line", "point": {"size": 14}}
    return _spec(values, {"mark": mark, "width": "container", "height": 180, "encoding": encoding})


def drift(costs: Sequence[JsonDict]) -> JsonDict | None:
    """Drift of the modules that moved furthest, as a bar per stage: of adapted matrices, else what a method logged."""
    adapted = any(cost["drift"] for cost in costs)
    values = [
        {"stage": cost["stage"], "module": name.removeprefix("drift/"), "drift": value}
        for cost in costs
        for name, value in ((cost["drift"] if adapted else cost["logged"]) or {}).items()
        if (adapted or name.startswith("drift/")) and value is not None
    ]
    if not values:
        return None
    begin = len(os.path.commonprefix([value["module"] for value in values]).rpartition(".")[0])
    values = [{**value, "module": value["module"][begin:].lstrip(".")} for value in values]
    furthest: dict[str, float] = {}
    for value in values:
        furthest[value["module"]] = max(furthest.get(value["module"], 0.0), value["drift"])
    shown = sorted(furthest, key=lambda name: -furthest[name])[:_MOST_MODULES]
    encoding = {
        "y": {"field": "module", "type": "nominal", "sort": shown, "title": None, "axis": {"labelLimit": 140}},
        "yOffset": {"field": "stage", "type": "nominal"},
        "x": {"field": "drift", "type": "quantitative"},
        "color": {"field": "stage", "type": "nominal", "sort": None},
        "tooltip": [{"field": "module"}, {"field": "stage"}, {"field": "drift", "format": ".4g"}],
    }
    kept = [value for value in values if value["module"] in shown]
    return _spec(kept, {"mark": "bar", "width": "container", "encoding": encoding})


def time(costs: Sequence[JsonDict], shares: Sequence[JsonDict]) -> JsonDict | None:
    """Seconds per step of each stage: the steps themselves, and each probe between them."""
    steps = {cost["stage"]: cost["steps"] for cost in costs if cost["steps"] and cost["seconds"] is not None}
    values = [
        {"stage": cost["stage"], "part": "training", "seconds": cost["seconds"] / steps[cost["stage"]]}
        for cost in costs
        if cost["stage"] in steps
    ]
    values += [
        {"stage": s["stage"], "part": f"probe {s['probe']}", "seconds": s["seconds"] / steps[s["stage"]]}
        for s in shares
        if s["stage"] in steps
    ]
    if not values:
        return None
    legend = {} if len({value["part"] for value in values}) > 1 else {"legend": None}
    encoding = {
        "y": {"field": "stage", "type": "nominal", "sort": None, "title": None},
        "x": {"field": "seconds", "type": "quantitative", "title": "seconds per step"},
        "color": {"field": "part", "type": "nominal", "sort": None, "title": None, **legend},
        "tooltip": [{"field": "stage"}, {"field": "part"}, {"field": "seconds", "format": ".4g"}],
    }
    return _spec(values, {"mark": "bar", "width": "container", "height": 40 + 22 * len(steps), "encoding": encoding})


def training(metrics: Mapping[str, Sequence[JsonDict]]) -> dict[str, JsonDict]:
    """Loss, and each method's share and penalty, over the steps of all stages: one chart each."""
    values: dict[str, list[JsonDict]] = {}
    before = 0
    for stage, lines in metrics.items():
        for line in lines[:: max(1, len(lines) // _MOST_POINTS)]:
            for name, value in line.items():
                if name == "loss" or name.startswith(("loss/", "penalty/")):
                    point = {"step": before + line["step"], "stage": stage, "value": value}
                    values.setdefault(name, []).append(point)
        before += lines[-1]["step"] if lines else 0
    encoding = {
        "x": {"field": "step", "type": "quantitative", "title": "step of the run"},
        "y": {"field": "value", "type": "quantitative", "title": None},
        "color": {"field": "stage", "type": "nominal", "sort": None},
        "tooltip": [{"field": "stage"}, {"field": "step"}, {"field": "value", "format": ".4g"}],
    }
    mark = {"type": "line", "strokeWidth": 1}
    return {
        name: _spec(points, {"title": name, "mark": mark, "width": "container", "height": 160, "encoding": encoding})
        for name, points in values.items()
    }


def _spec(values: Sequence[JsonDict], body: JsonDict) -> JsonDict:
    spec = {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "data": {"values": list(values)}, **body}
    return {**spec, "autosize": {"type": "fit-x", "contains": "padding"}} if body.get("width") == "container" else spec


def figures(charts: Mapping[str, JsonDict]) -> dict[str, Any]:
    """SVG text and PNG bytes of each chart by file name; charts that fill their container get a width."""
    import vl_convert

    out: dict[str, Any] = {}
    for name, spec in charts.items():
        fixed = {k: 640 if (k, v) == ("width", "container") else v for k, v in spec.items() if k != "autosize"}
        out[f"{name}.svg"] = vl_convert.vegalite_to_svg(fixed)
        out[f"{name}.png"] = vl_convert.vegalite_to_png(fixed, scale=2)
    return out
