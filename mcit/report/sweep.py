"""One report of several runs of a config: every metric per run, over all runs, and by order and seed.

Means are over runs; `sd` is the standard deviation of a sample (divided by n - 1), and missing with one run. Imports no torch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from mcit.core.files import write_json, write_text
from mcit.core.records import SweepRecord
from mcit.core.stored import read_sealed
from mcit.core.types import JsonDict
from mcit.evals.continual import METRICS
from mcit.report.matrix import read_matrix
from mcit.report.tables import NAMES
from mcit.runs.layout import SWEEP, RunLayout
from mcit.runs.run import Run

_NONE = "–"
_Numbers = list[float | None]


def read_sweep(folder: Path, *, mode: str | None = None) -> JsonDict:
    """Metrics and last rows of all runs of a sweep, with means and standard deviations.

    Raises StateError for a folder that holds no sweep, or a damaged run.
    """
    record = read_sealed(folder / SWEEP, SweepRecord)
    runs = [{**entry, **_of_run(folder.parent / entry["run"], mode)} for entry in record["runs"]]
    tasks = list(dict.fromkeys(task for run in runs for task in run["final"]))
    orders = list(dict.fromkeys(tuple(run["order"]) for run in runs))
    per_order = [[run for run in runs if tuple(run["order"]) == order] for order in orders]
    return {
        "name": record["name"],
        "scorer_mode": mode or next((run["mode"] for run in runs if run["mode"]), None),
        "runs": runs,
        "missing": [run["run"] for run in runs if not run["finished"]],
        "metrics": {name: summary([run["metrics"].get(name) for run in runs]) for name in METRICS},
        "final": {task: summary([run["final"].get(task) for run in runs]) for task in tasks},
        "orders": [
            {"order": list(order), **{name: summary([run["metrics"].get(name) for run in some]) for name in METRICS}}
            for order, some in zip(orders, per_order, strict=True)
        ],
        "scale": "percent",
    }


def _of_run(root: Path, mode: str | None) -> JsonDict:
    """What a sweep shows of a run; nothing measured where it does not exist yet."""
    if not RunLayout(root).manifest.is_file():
        return {"metrics": {}, "final": {}, "finished": False, "mode": None}
    found = read_matrix(root, mode=mode)
    final = dict(zip(found["tasks"], found["matrix"][-1] if found["matrix"] else [], strict=False))
    return {
        "metrics": {name: found["metrics"][name] for name in METRICS},
        "final": final,
        "finished": _finished(Run(root), final, found["tasks"]),
        "mode": found["scorer_mode"],
    }


def _finished(run: Run, final: Mapping[str, float | None], tasks: Sequence[str]) -> bool:
    """Whether what its `eval.tasks` asks for was scored after the last stage; nothing is asked for with ``none``."""
    setting = run.config().get("eval", {}).get("tasks", "seen")
    if setting == "none":
        return run.finished()
    wanted = [task for task in tasks if task in setting] if isinstance(setting, list) else tasks
    return all(final.get(task) is not None for task in wanted)


def summary(values: Sequence[float | None]) -> JsonDict:
    """Number, mean, standard deviation (n - 1), smallest and largest of what was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return {"n": 0, "mean": None, "sd": None, "min": None, "max": None}
    sd = stdev(known) if len(known) > 1 else None
    return {"n": len(known), "mean": fmean(known), "sd": sd, "min": min(known), "max": max(known)}


def write_sweep(folder: Path) -> dict[str, Path]:
    """Write ``report.md``, ``runs.csv`` and ``report.json`` of a sweep; returns paths by kind."""
    report = read_sweep(folder)
    paths = {"markdown": folder / "report.md", "csv": folder / "runs.csv", "json": folder / "report.json"}
    write_text(paths["markdown"], markdown(report))
    write_text(paths["csv"], runs_csv(report))
    write_json(paths["json"], report)
    return paths


def runs_csv(report: JsonDict) -> str:
    """One line per run: order, seed, metrics, last accuracy of every task; an empty field was not measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    tasks = list(report["final"])
    writer.writerow(["run", "order", "seed", *METRICS, *tasks])
    for run in report["runs"]:
        cells = [run["metrics"].get(name) for name in METRICS] + [run["final"].get(task) for task in tasks]
        order = "-".join(map(str, run["order"]))
        writer.writerow([run["run"], order, run["seed"], *("" if cell is None else f"{cell:.4f}" for cell in cells)])
    return out.getvalue()


def markdown(report: JsonDict) -> str:
    """The whole report as one Markdown page."""
    head = ["", "n", "mean", "sd", "smallest", "largest"]
    by_order = [
        [_order(entry), *(f"{_num(entry[name]['mean'])} ± {_num(entry[name]['sd'])}" for name in METRICS)]
        for entry in report["orders"]
    ]
    runs = [
        [run["run"], _order(run), str(run["seed"]), *(_num(run["metrics"].get(name)) for name in METRICS)]
        for run in report["runs"]
    ]
    missing = f" Not finished: {', '.join(report['missing'])}." if report["missing"] else ""
    mode = f"Scores in percent, scorer mode `{report['scorer_mode']}`."
    parts = [
        f"# {report['name']}: {len(report['runs'])} runs",
        f"{mode} sd: standard deviation over runs, divided by n - 1.{missing}",
        "## Metrics over all runs",
        _table(head, [[NAMES[name], *_line(report["metrics"][name])] for name in METRICS]),
        "## Accuracy after the last stage",
        _table(head, [[task, *_line(found)] for task, found in report["final"].items()]),
        "## By order, mean ± sd over seeds",
        _table(["order", *METRICS], by_order),
        "## Runs",
        _table(["run", "order", "seed", *METRICS], runs),
    ]
    return "\n\n".join(parts) + "\n"


def _order(entry: JsonDict) -> str:
    return ", ".join(map(str, entry["order"]))


def _line(found: JsonDict) -> list[str]:
    return [str(found["n"]), *(_num(found[key]) for key in ("mean", "sd", "min", "max"))]


def _num(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
