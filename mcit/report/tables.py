"""Reports of a run: Markdown, CSV and JSON on disk, tables for the terminal, several runs side by side.

Everything is a pure function of the run's files. Numbers are rounded here and nowhere else: two decimals.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mcit.core.files import write_json, write_text
from mcit.core.records import ProgressRecord
from mcit.core.stored import read_listed
from mcit.core.types import JsonDict
from mcit.evals.continual import METRICS
from mcit.report import sections
from mcit.report.accumulation import task_rows
from mcit.report.attacks import read_attacks
from mcit.report.evalcard import read_card
from mcit.report.forgetting import HEAD, forget_csv, read_forgetting, table_rows
from mcit.report.gates import read_gates
from mcit.report.kit import kit_csv, read_kits
from mcit.report.matrix import read_matrix, read_plan
from mcit.report.paired import unlike
from mcit.report.probes import gap_rows, metric_rows, read_probes, rho
from mcit.report.profile import profile_of
from mcit.report.recovery import read_recovery
from mcit.report.sections import Section, Table, num, share
from mcit.report.slices import read_slices
from mcit.runs.gates import standing_of
from mcit.runs.layout import RunLayout
from mcit.runs.shared import check_order, home

NAMES = {
    "mft": "MFT, mean right after learning",
    "mfn": "MFN, mean at the end",
    "maa": "MAA, mean of the averages after each stage",
    "bwt_all": "BWT, divided by all T tasks (= MFN - MFT)",
    "bwt_earlier": "BWT, divided by the T-1 earlier tasks",
    "forgetting": "Forgetting, from the best score so far",
    "fwt": "FWT, before training against the base",
    "retention": "Retention, MFN / MFT",
}
"""What a metric is called in reports; both conventions of backward transfer are named."""
COST = ("stage", "steps", "positions", "trained parameters", "seconds", "peak memory, MiB", "last loss")
_NONE = "–"


# ---- on disk ---------------------------------------------------------------------------------------------------------
def write_report(run: Path, *, mode: str | None = None) -> dict[str, Path]:
    """Write ``report/{report.md,matrix.csv,report.json}``, and ``forget.csv`` where a stage forgets; returns paths by kind.

    Raises StateError if `run` is no run folder, a score is damaged or the folder cannot be written.
    """
    run = Path(run)
    report, folder = full_report(run, mode=mode), RunLayout(run).report
    paths = {"markdown": folder / "report.md", "csv": folder / "matrix.csv", "json": folder / "report.json"}
    write_text(paths["markdown"], markdown(report))
    write_text(paths["csv"], matrix_csv(report))
    write_json(paths["json"], report)
    if report["forget"]:
        paths["forget_csv"] = folder / "forget.csv"
        write_text(paths["forget_csv"], forget_csv(report["forget"]))
    if report["kit"]:
        paths["kit_csv"] = folder / "kit.csv"
        write_text(paths["kit_csv"], kit_csv(report["kit"]))
    return paths


def full_report(run: Path, *, mode: str | None = None) -> JsonDict:
    """`read_matrix` with what forget stages did, what probes measured and the costs of each committed stage."""
    found = read_matrix(run, mode=mode)
    mode = found["scorer_mode"]
    asked = {"forget": read_forgetting(run, mode=mode), "kit": read_kits(run, mode=mode), "attacks": read_attacks(run)}
    inside = {"slices": read_slices(run, mode=mode), "gates": read_gates(run), "probes": read_probes(run)}
    spent = {"costs": costs(run), "profile": profile_of(run)}
    asked["recovery"] = read_recovery(run, asked["kit"], mode=mode)
    return {**found, **asked, **inside, "certificates": read_card(run), **spent}


def costs(run: Path) -> list[JsonDict]:
    """Steps, positions (text and images, no padding), trained parameters, time, memory, last loss of each committed stage.

    Stages that were rejected are left out: they are none of the run's.
    Raises StateError for one that is missing while a later one is there.
    """
    layout, out = RunLayout(run), []
    stages = standing_of(layout, read_plan(run)["stages"])
    check_order(layout, [stage["folder"] for stage in stages])
    for stage in stages:
        folder = home(layout, stage["folder"])
        found = read_listed(folder, "progress.json", ProgressRecord) if folder.is_dir() else {}
        keys = ("steps", "tokens", "trained", "seconds", "peak_bytes", "loss", "ended", "logged", "drift")
        kept = {key: found.get(key) for key in keys}
        out.append({"stage": stage["folder"], "committed": bool(found), **kept})
    return out


def matrix_csv(report: JsonDict) -> str:
    """One line per row of the matrix, the base first; columns are tasks; an empty field was not measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["after", *report["tasks"]])
    for name, row in _rows(report):
        writer.writerow([name, *("" if cell is None else f"{cell:.2f}" for cell in row)])
    return out.getvalue()


# ---- Markdown --------------------------------------------------------------------------------------------------------
def markdown(report: JsonDict) -> str:
    """The whole report as one Markdown page."""
    tasks = report["tasks"]
    filters = f" Filters: {', '.join(report['filters'])}." if report["filters"] else ""
    mode = f"Scores in percent, scorer mode `{report['scorer_mode']}`.{filters}"
    parts = [
        f"# {report['name']}",
        f"{mode} A dash was not measured or is not defined.",
        "## Accuracy",
        _table(["after", *tasks], [[name, *map(num, row)] for name, row in _rows(report)] + _constant_row(report)),
        "## Metrics",
        _table(["metric", "value", "95 % interval"], [list(line) for line in _metric_lines(report)]),
        "Intervals: bootstrap over questions, the same questions in every stage. They do not hold the spread of seeds, "
        "and where all answers are right or all are wrong they have no width, however few the questions are.",
        "## Accuracy with 95 % intervals",
        _table(["after", *tasks], _interval_rows(report)),
        "## Format validity",
        "Share of answers that have the form the task asks for, whatever they say.",
        _table(["after", *tasks], _stage_rows(report, "format_validity", base="base_format_validity")),
        "## Superficial and essential forgetting",
        "Superficial: answers in another form after the last stage. Essential: answers in the right form that were "
        "right just after learning and are wrong after the last stage, of those in the right form. Mean: over tasks "
        "trained before the last stage.",
        _table(["task", "superficial", "essential"], _kinds_rows(report)),
        "## Accuracy of answers in the right form",
        _table(["after", *tasks], _stage_rows(report, "accuracy_on_valid")),
        "## Lenient minus strict",
        "What style-free reading would add to strict accuracy.",
        _table(["after", *tasks], _stage_rows(report, "lenient_minus_strict")),
        "## Answers cut off at the limit, and mean answer length in tokens",
        _table(["after", *tasks], _pair_rows(report)),
        *_chosen_parts(report),
        "## Distance from the best constant answer (kappa)",
        _table(["after", *tasks], _stage_rows(report, "kappa")),
        *_sections(sections.combined(report), sections.memory(report), sections.gates(report)),
        *_accumulation_parts(report),
        *_sections(sections.forgetting(report), sections.kit(report), sections.attacks(report)),
        *_probe_parts(report),
        *_sections(
            sections.answers(report), sections.canaries(report), sections.texts(report), sections.probes(report)
        ),
        *_sections(sections.card(report), sections.profile(report)),
        "## Cost",
        "Peak memory: of one process while the stage trained; of tensors on a GPU, of the whole process on a CPU.",
        _table(COST, _cost_rows(report)),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(*found: Section | None) -> list[str]:
    """Sections as Markdown; one that is None is not there."""
    parts = []
    for section in found:
        if section is not None:
            parts.append(f"## {section.title}")
            for block in section.blocks:
                if isinstance(block, Table):
                    parts.append(_table(block.head, block.rows))
                else:
                    parts.append(block if isinstance(block, str) else "\n".join(f"- {line}" for line in block))
    return parts


def _chosen_parts(report: JsonDict) -> list[str]:
    """How many answers were chosen among options; nothing where a run writes them all."""
    if "chosen" not in report:
        return []
    rows = [
        [stage, *(_NONE if a is None else f"{a} of {n}" for a, n in zip(chosen, of, strict=True))]
        for stage, chosen, of in zip(report["stages"], report["chosen"], report["n"], strict=True)
    ]
    return [
        "## Answers chosen among the options of their rows",
        "The likeliest option was taken (`eval.options: forward`); the other answers were written.",
        _table(["after", *report["tasks"]], rows),
    ]


def _accumulation_parts(report: JsonDict) -> list[str]:
    """The section on tasks that come back; nothing where none does."""
    found = report.get("accumulation")
    if not found:
        return []
    head = [
        "task",
        "visits",
        "frequency",
        "stages since",
        "last",
        "mean gain",
        "mean loss",
        "residue at the last visit",
    ]
    by_visit = [[str(k), num(value)] for k, value in enumerate(found["residue"], start=1)]
    return [
        "## Knowledge accumulation",
        f"KA: accuracy over the test rows of all tasks, unseen ones included. After the last stage {num(found['final'])}, "
        f"area under the curve over its length {num(found['area'])}. A visit's gain is the accuracy after it minus before it, "
        "a loss what went until the next one, residue the accuracy before a visit minus before the first.",
        _table(head, task_rows(found, num)),
        _table(["visit", "mean residue"], by_visit),
    ]


def _probe_parts(report: JsonDict) -> list[str]:
    """The section on the stability gap; nothing where it was not measured."""
    stability = report.get("probes", {}).get("stability")
    if not stability:
        return []
    settings, error = stability["settings"], stability["standard_error"]
    wide = "nothing was measured yet" if error is None else f"standard error up to {error:.3f}"
    return [
        "## Inside the stages",
        f"Proxy: a row counts where each token of its answer is the likeliest one, given those before. "
        f"{rho(settings)}; {settings['rows']} rows per task at most ({wide}); "
        "a window holds w evaluations, whatever steps they span. In [0, 1].",
        _table(["metric", "value"], metric_rows(stability, share)),
        "Earlier tasks in each stage: before its first update, at the lowest point, after the last step.",
        _table(["stage", "task", "before", "lowest", "at step", "end"], gap_rows(stability, share)),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    width = len(head)
    return "\n".join("| " + " | ".join([*line, *[_NONE] * (width - len(line))]) + " |" for line in lines)


def _span(pair: Sequence[float] | None) -> str:
    return _NONE if pair is None else f"{pair[0]:z.2f} to {pair[1]:z.2f}"


def _rows(report: JsonDict) -> list[tuple[str, list[Any]]]:
    """Rows of the matrix with their names; the base only if something was scored with it."""
    base = [("base", report["base"])] if any(cell is not None for cell in report["base"]) else []
    return base + list(zip(report["stages"], report["matrix"], strict=True))


def _constant_row(report: JsonDict) -> list[list[str]]:
    known = any(value is not None for value in report["constant"])
    return [["best constant", *map(num, report["constant"])]] if known else []


def _metric_lines(report: JsonDict) -> list[tuple[str, str, str]]:
    found, spans = report["metrics"], report["intervals"]["metrics"]
    lines = [(NAMES[name], num(found[name]), _span(spans.get(name))) for name in METRICS]
    return lines + [
        (f"Average after {stage}", num(value), _NONE)
        for stage, value in zip(report["stages"], found["average"], strict=True)
    ]


def _interval_rows(report: JsonDict) -> list[list[str]]:
    return [
        [stage, *map(_span, row)] for stage, row in zip(report["stages"], report["intervals"]["matrix"], strict=True)
    ]


def _stage_rows(report: JsonDict, key: str, *, base: str | None = None) -> list[list[str]]:
    first = [["base", *map(num, report[base])]] if base and any(v is not None for v in report[base]) else []
    return first + [[stage, *map(num, row)] for stage, row in zip(report["stages"], report[key], strict=True)]


def _pair_rows(report: JsonDict) -> list[list[str]]:
    rows = zip(report["stages"], report["truncation_rate"], report["mean_length"], strict=True)
    return [
        [stage, *(_NONE if a is None else f"{a:.2f} %, {b:.2f}" for a, b in zip(cut, length, strict=True))]
        for stage, cut, length in rows
    ]


def _kinds_rows(report: JsonDict) -> list[list[str]]:
    kinds = report["forgetting_kinds"]
    entries = [*((task, kinds["tasks"][task]) for task in report["tasks"]), ("mean", kinds["mean"])]
    return [[name, num(kind["superficial"]), num(kind["essential"])] for name, kind in entries]


def _cost_rows(report: JsonDict) -> list[list[str]]:
    def whole(value: int | None) -> str:
        return _NONE if value is None else f"{value:,}"

    def loss(value: Any) -> str:
        return _NONE if value is None else f"{value:.4f}"

    def steps(cost: JsonDict) -> str:
        ended = cost.get("ended")
        return f"{ended['step']:,} of {ended['planned']:,}: {ended['reason']}" if ended else whole(cost["steps"])

    def row(cost: JsonDict) -> list[str]:
        peak = cost["peak_bytes"]
        memory = whole(None if peak is None else round(peak / 2**20))
        sizes = whole(cost["tokens"]), whole(cost["trained"])
        return [cost["stage"], steps(cost), *sizes, num(cost["seconds"]), memory, loss(cost["loss"])]

    return [row(cost) for cost in report.get("costs", [])]


# ---- terminal --------------------------------------------------------------------------------------------------------
def render_terminal(report: JsonDict) -> list[Any]:
    """Accuracy matrix, format validity after the last stage and metrics as rich tables."""
    from rich.table import Table as Grid

    matrix = Grid(title=f"accuracy in % ({report['scorer_mode']})", title_justify="left")
    matrix.add_column("after", no_wrap=True)
    for task in report["tasks"]:
        matrix.add_column(task, justify="right")
    valid = [["in the right form", *map(num, row)] for row in report["format_validity"][-1:]]
    for line in [[name, *map(num, row)] for name, row in _rows(report)] + _constant_row(report) + valid:
        matrix.add_row(*line, *[_NONE] * (len(report["tasks"]) + 1 - len(line)))
    numbers = Grid(show_header=True)
    for name, side in (("metric", "left"), ("value", "right"), ("95 % interval", "right")):
        numbers.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for name, value, span in _metric_lines(report)[: len(METRICS)]:
        numbers.add_row(name, value, span)
    if not report.get("forget"):
        return [matrix, numbers]
    titles, *lines = zip(HEAD, *table_rows(report["forget"], num), strict=True)  # a measure per line: HEAD is too wide
    forget = Grid(title="forgetting on request", title_justify="left")
    for name in titles:
        forget.add_column(name, justify="left" if name == HEAD[0] else "right")
    for measure in lines:
        forget.add_row(*measure)
    return [matrix, numbers, forget]


# ---- several runs ----------------------------------------------------------------------------------------------------
def compare(reports: Sequence[JsonDict]) -> str:
    """Metrics and final rows of several runs side by side, as Markdown."""
    names = [report["name"] for report in reports]
    tasks = list(dict.fromkeys(task for report in reports for task in report["tasks"]))
    metric_rows = [[NAMES[name], *(num(r["metrics"][name]) for r in reports)] for name in METRICS]
    kinds = [
        [f"{kind.capitalize()} forgetting, mean", *(num(r["forgetting_kinds"]["mean"][kind]) for r in reports)]
        for kind in ("superficial", "essential")
    ]
    task_rows = [[f"{task} at the end", *(num(_final(r, task)) for r in reports)] for task in tasks]
    asked = list(dict.fromkeys(e["task"] for r in reports for e in r.get("forget", [])))
    forget_rows = [
        [f"{title}, {task}", *(num(_forgotten(r, task, key)) for r in reports)]
        for task in asked
        for key, title in (("after", "Acc_f after its stage"), ("h_mean", "H-mean"), ("resurgence", "Resurgence"))
    ]
    modes = sorted({report["scorer_mode"] for report in reports})
    head = " ".join([f"Scores in percent, scorer mode {', '.join(modes)}.", *unlike(reports)])
    return f"{head}\n\n{_table(['', *names], metric_rows + kinds + task_rows + forget_rows)}\n"


def _forgotten(report: JsonDict, task: str, key: str) -> float | None:
    return next((e[key] for e in report.get("forget", []) if e["task"] == task), None)


def _final(report: JsonDict, task: str) -> float | None:
    if task not in report["tasks"] or not report["matrix"]:
        return None
    row, at = report["matrix"][-1], report["tasks"].index(task)
    value: float | None = row[at] if at < len(row) else None
    return value
