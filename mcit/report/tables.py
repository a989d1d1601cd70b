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
from mcit.evals.certificate import HEAD as CARD
from mcit.evals.certificate import card_rows
from mcit.evals.continual import METRICS
from mcit.report.accumulation import task_rows
from mcit.report.attacks import HEAD as ATTACK_HEAD
from mcit.report.attacks import attack_rows, read_attacks
from mcit.report.evalcard import read_card, run_rows
from mcit.report.forgetting import HEAD, forget_csv, later_rows, read_forgetting, table_rows, zero_lines
from mcit.report.gates import HEAD as GATES
from mcit.report.gates import decision_lines, read_gates, threshold_rows
from mcit.report.kit import judge_table, kit_csv, kit_table, made_lines, membership_table, read_kits
from mcit.report.matrix import read_matrix, read_plan
from mcit.report.probes import (
    canary_rows,
    gap_rows,
    memory_rows,
    metric_rows,
    read_probes,
    rho,
    score_rows,
    share_rows,
)
from mcit.report.slices import HEAD as SLICES
from mcit.report.slices import kept_rows, read_slices, slice_rows
from mcit.runs.gates import rejected_of
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
    return {**found, **asked, **inside, "certificates": read_card(run), "costs": costs(run)}


def costs(run: Path) -> list[JsonDict]:
    """Steps, positions (text and images, no padding), seconds and last loss of each committed stage, by ``progress.json``.

    Raises StateError for one that is missing while a later one is there.
    """
    layout, out, stages = RunLayout(run), [], read_plan(run)["stages"]
    folders = [stage["folder"] for stage in stages]
    without = rejected_of(layout, folders)
    check_order(layout, [folder for folder in folders if folder not in without])
    for stage in stages:
        folder = home(layout, stage["folder"])
        found = read_listed(folder, "progress.json", ProgressRecord) if folder.is_dir() else {}
        kept = {key: found.get(key) for key in ("steps", "tokens", "seconds", "loss", "ended")}
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
        _table(["after", *tasks], [[name, *map(_num, row)] for name, row in _rows(report)] + _constant_row(report)),
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
        "## Distance from the best constant answer (kappa)",
        _table(["after", *tasks], _stage_rows(report, "kappa")),
        *_combined_parts(report),
        *_slice_parts(report),
        *_gate_parts(report),
        *_accumulation_parts(report),
        *_forget_parts(report),
        *_kit_parts(report),
        *_attack_parts(report),
        *_probe_parts(report),
        *_card_parts(report),
        "## Cost",
        _table(["stage", "steps", "positions", "seconds", "last loss"], _cost_rows(report)),
    ]
    return "\n\n".join(parts) + "\n"


def _combined_parts(report: JsonDict) -> list[str]:
    """The section on combined adapters; nothing if none was scored."""
    rows = []
    for entry in report.get("combined", []):
        stages = ", ".join(f"{k} ({weight:g})" for k, weight in zip(entry["stages"], entry["weights"], strict=True))
        kept = "all" if entry["how"].startswith("linear") else f"{entry['density']:g}"
        rows.append([entry["name"], stages, kept, *map(_num, entry["scores"])])
    if not rows:
        return []
    text = (
        "Adapters of several stages combined into one after training (stages with their weights). In no metric above."
    )
    return ["## Combined adapters", text, _table(["combination", "stages", "share kept", *report["tasks"]], rows)]


def _forget_parts(report: JsonDict) -> list[str]:
    """The section on forget stages; nothing if there is none."""
    entries = report.get("forget", [])
    if not entries:
        return []
    later = later_rows(entries, _num)
    return [
        "## Forgetting on request",
        "Acc_f: accuracy on what is forgotten, low is good. Acc_r: mean over the tasks the stage retains. Drop: Acc_f before "
        "minus after. H-mean: of Acc_r and Drop. Most lost elsewhere: points, over every other task scored before and after "
        "the stage. Resurgence: largest rise of Acc_f after a later stage. These scores are in none of the metrics above.",
        _table(HEAD, table_rows(entries, _num)),
        *([_table(["after", "still forgotten?", "Acc_f"], [[a, b, c] for a, b, c in later])] if later else []),
        *(["\n".join(zero_lines(entries))] if zero_lines(entries) else []),
    ]


def _slice_parts(report: JsonDict) -> list[str]:
    """The section on target, neighbourhood and retention of each stage; nothing in a run of one stage without slices."""
    entries = report.get("slices", [])
    if not any(e["retention"] or e["locality"] or e["generalisation"] for e in entries):
        return []
    return [
        "## Memory: target, neighbourhood, retention",
        "Success: accuracy on the stage's own test rows after it. Generalisation: on the same asked in other words. Locality: "
        "share of neighbourhood rows answered as before. Drawdown: what accuracy over all rows to keep lost. Intervals: 95 %, "
        "Wilson for shares, paired bootstrap for drops.",
        _table(SLICES, slice_rows(entries)),
        "Each task to keep; p by random signs of paired rows, corrected after Holm over the tasks of a stage.",
        _table(["stage", "task", "before", "after", "drop, points", "p", "p, Holm"], kept_rows(entries, _num)),
    ]


def _gate_parts(report: JsonDict) -> list[str]:
    """The section on gates; nothing where no stage was judged."""
    records = report.get("gates", [])
    if not records:
        return []
    text = "A threshold holds by the worse bound of the 95 % interval; where only the estimate holds it is inconclusive."
    return [
        "## Gates",
        text,
        _table(GATES, threshold_rows(records)),
        "\n".join(f"- {s}" for s in decision_lines(records)),
    ]


def _card_parts(report: JsonDict) -> list[str]:
    """The evaluation card; nothing where no stage has a certificate."""
    if not report.get("certificates"):
        return []
    text = "Stages by their certificates (`certificates/stages/`, see `mcit audit`); shares with 95 % intervals and rows."
    rows = card_rows(report["certificates"])
    return ["## Evaluation card", _table(["of the run", "value"], run_rows(report, _num)), text, _table(CARD, rows)]


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
    by_visit = [[str(k), _num(value)] for k, value in enumerate(found["residue"], start=1)]
    return [
        "## Knowledge accumulation",
        f"KA: accuracy over the test rows of all tasks, unseen ones included. After the last stage {_num(found['final'])}, "
        f"area under the curve over its length {_num(found['area'])}. A visit's gain is the accuracy after it minus before it, "
        "a loss what went until the next one, residue the accuracy before a visit minus before the first.",
        _table(head, task_rows(found, _num)),
        _table(["visit", "mean residue"], by_visit),
    ]


def _probe_parts(report: JsonDict) -> list[str]:
    """The sections on what probes measured inside stages; nothing where there were none."""
    probes = report.get("probes")
    if not probes:
        return []
    parts = []
    stability = probes["stability"]
    if stability:
        settings = stability["settings"]
        parts += [
            "## Inside the stages",
            f"Proxy: a row counts where each token of its answer is the likeliest one, given those before. "
            f"{rho(settings)}; {settings['rows']} rows per task at most (standard error up to "
            f"{stability['standard_error']:.3f}); a window holds w evaluations, whatever steps they span. In [0, 1].",
            _table(["metric", "value"], metric_rows(stability, _share)),
            "Earlier tasks in each stage: before its first update, at the lowest point, after the last step.",
            _table(["stage", "task", "before", "lowest", "at step", "end"], gap_rows(stability, _share)),
        ]
    scores = score_rows(probes, _share)
    if scores:
        head = ["stage", "step", "task", "accuracy", "in the right form", "rows"]
        parts += ["## Generated answers inside the stages", "In [0, 1].", _table(head, scores)]
    if "canary" in probes["lines"]:
        head = ["planted in", "exposures", "kind", "steps since", "rows", "recognised", "recalled"]
        text = "Shares with 95 % intervals; recognised by chance: 0.5. Recognised and not recalled may be a matter of form."
        parts += ["## Canaries", text, _table(head, canary_rows(probes))]
    if "memory" in probes["lines"]:
        head = [
            "texts",
            "exposures",
            "steps since",
            "rows",
            "recognised",
            "recalled",
            "ROUGE-L",
            "ROUGE-1, cue included",
        ]
        parts += [
            "## Texts studied",
            "Recalled: every token of the second half.",
            _table(head, memory_rows(probes, _share)),
        ]
    head = ["stage", "probe", "measured", "left out", "seconds", "share of step time"]
    return [*parts, "## What probes took", _table(head, share_rows(probes, _share))]


def _share(value: Any) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _kit_parts(report: JsonDict) -> list[str]:
    """The section of the forgetting kit; nothing if it was not measured."""
    entries = report.get("kit", [])
    if not entries:
        return []
    attacks, verdicts = membership_table(entries, _num), judge_table(entries, _num)
    return [
        "## What is left of what was forgotten",
        "Shares from 0 to 1 over the trained rows that the stage forgets. SARR: answers to harmless rows that are a refusal or "
        "gibberish. Utility: harmonic mean of accuracy and probability of every retained task. Forget quality: p-value of the "
        "truth ratios against the gold run's. Min-K AUC: 1 still looks trained, .5 does not. PrivLeak: 0 is ideal, -100 still "
        "a member; against the gold run where there is one, else against an AUC of .5.",
        _table(*kit_table(entries, _num)),
        *(["AUC of each membership attack against the holdout:", _table(*attacks)] if attacks[1] else []),
        *(
            ["What the judge said, and in what share of answers the rules agree:", _table(*verdicts)]
            if verdicts[1]
            else []
        ),
        "\n".join(made_lines(entries)),
    ]


def _attack_parts(report: JsonDict) -> list[str]:
    """The section on attacks; nothing if there was none."""
    if not report.get("attacks"):
        return []
    text = (
        "Accuracy on what is forgotten after an attack on a copy of the stage's model. Robustness: share of the drop that is "
        "left, 1 is all of it. Controls never saw the rows: what they learn from the attack says nothing of forgetting."
    )
    return ["## Attacks on what was forgotten", text, _table(ATTACK_HEAD, attack_rows(report["attacks"], _num))]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    width = len(head)
    return "\n".join("| " + " | ".join([*line, *[_NONE] * (width - len(line))]) + " |" for line in lines)


def _num(value: Any) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _span(pair: Sequence[float] | None) -> str:
    return _NONE if pair is None else f"{pair[0]:.2f} to {pair[1]:.2f}"


def _rows(report: JsonDict) -> list[tuple[str, list[Any]]]:
    """Rows of the matrix with their names; the base only if something was scored with it."""
    base = [("base", report["base"])] if any(cell is not None for cell in report["base"]) else []
    return base + list(zip(report["stages"], report["matrix"], strict=True))


def _constant_row(report: JsonDict) -> list[list[str]]:
    known = any(value is not None for value in report["constant"])
    return [["best constant", *map(_num, report["constant"])]] if known else []


def _metric_lines(report: JsonDict) -> list[tuple[str, str, str]]:
    found, spans = report["metrics"], report["intervals"]["metrics"]
    lines = [(NAMES[name], _num(found[name]), _span(spans.get(name))) for name in METRICS]
    return lines + [
        (f"Average after {stage}", _num(value), _NONE)
        for stage, value in zip(report["stages"], found["average"], strict=True)
    ]


def _interval_rows(report: JsonDict) -> list[list[str]]:
    return [
        [stage, *map(_span, row)] for stage, row in zip(report["stages"], report["intervals"]["matrix"], strict=True)
    ]


def _stage_rows(report: JsonDict, key: str, *, base: str | None = None) -> list[list[str]]:
    first = [["base", *map(_num, report[base])]] if base and any(v is not None for v in report[base]) else []
    return first + [[stage, *map(_num, row)] for stage, row in zip(report["stages"], report[key], strict=True)]


def _pair_rows(report: JsonDict) -> list[list[str]]:
    rows = zip(report["stages"], report["truncation_rate"], report["mean_length"], strict=True)
    return [
        [stage, *(_NONE if a is None else f"{a:.2f} %, {b:.2f}" for a, b in zip(cut, length, strict=True))]
        for stage, cut, length in rows
    ]


def _kinds_rows(report: JsonDict) -> list[list[str]]:
    kinds = report["forgetting_kinds"]
    entries = [*((task, kinds["tasks"][task]) for task in report["tasks"]), ("mean", kinds["mean"])]
    return [[name, _num(kind["superficial"]), _num(kind["essential"])] for name, kind in entries]


def _cost_rows(report: JsonDict) -> list[list[str]]:
    def whole(value: int | None) -> str:
        return _NONE if value is None else f"{value:,}"

    def loss(value: Any) -> str:
        return _NONE if value is None else f"{value:.4f}"

    def steps(cost: JsonDict) -> str:
        ended = cost.get("ended")
        return f"{ended['step']:,} of {ended['planned']:,}: {ended['reason']}" if ended else whole(cost["steps"])

    return [
        [c["stage"], steps(c), whole(c["tokens"]), _num(c["seconds"]), loss(c["loss"])] for c in report.get("costs", [])
    ]


# ---- terminal --------------------------------------------------------------------------------------------------------
def render_terminal(report: JsonDict) -> list[Any]:
    """Accuracy matrix, format validity after the last stage and metrics as rich tables."""
    from rich.table import Table

    matrix = Table(title=f"accuracy in % ({report['scorer_mode']})", title_justify="left")
    matrix.add_column("after", no_wrap=True)
    for task in report["tasks"]:
        matrix.add_column(task, justify="right")
    valid = [["in the right form", *map(_num, row)] for row in report["format_validity"][-1:]]
    for line in [[name, *map(_num, row)] for name, row in _rows(report)] + _constant_row(report) + valid:
        matrix.add_row(*line, *[_NONE] * (len(report["tasks"]) + 1 - len(line)))
    numbers = Table(show_header=True)
    for name, side in (("metric", "left"), ("value", "right"), ("95 % interval", "right")):
        numbers.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for name, value, span in _metric_lines(report)[: len(METRICS)]:
        numbers.add_row(name, value, span)
    if not report.get("forget"):
        return [matrix, numbers]
    titles, *lines = zip(HEAD, *table_rows(report["forget"], _num), strict=True)  # a measure per line: HEAD is too wide
    forget = Table(title="forgetting on request", title_justify="left")
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
    metric_rows = [[NAMES[name], *(_num(r["metrics"][name]) for r in reports)] for name in METRICS]
    kinds = [
        [f"{kind.capitalize()} forgetting, mean", *(_num(r["forgetting_kinds"]["mean"][kind]) for r in reports)]
        for kind in ("superficial", "essential")
    ]
    task_rows = [[f"{task} at the end", *(_num(_final(r, task)) for r in reports)] for task in tasks]
    asked = list(dict.fromkeys(e["task"] for r in reports for e in r.get("forget", [])))
    forget_rows = [
        [f"{title}, {task}", *(_num(_forgotten(r, task, key)) for r in reports)]
        for task in asked
        for key, title in (("after", "Acc_f after its stage"), ("h_mean", "H-mean"), ("resurgence", "Resurgence"))
    ]
    modes = sorted({report["scorer_mode"] for report in reports})
    head = f"Scores in percent, scorer mode {', '.join(modes)}."
    return f"{head}\n\n{_table(['', *names], metric_rows + kinds + task_rows + forget_rows)}\n"


def _forgotten(report: JsonDict, task: str, key: str) -> float | None:
    return next((e[key] for e in report.get("forget", []) if e["task"] == task), None)


def _final(report: JsonDict, task: str) -> float | None:
    if task not in report["tasks"] or not report["matrix"]:
        return None
    row, at = report["matrix"][-1], report["tasks"].index(task)
    value: float | None = row[at] if at < len(row) else None
    return value
