"""Sections of a report that Markdown and the page show alike: titles, sentences and tables, made from the full report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mcit.core.types import JsonDict
from mcit.evals.certificate import HEAD as CARD
from mcit.evals.certificate import card_rows
from mcit.report.attacks import HEAD as ATTACKS
from mcit.report.attacks import attack_rows
from mcit.report.evalcard import run_rows
from mcit.report.forgetting import HEAD as FORGET
from mcit.report.forgetting import later_rows, table_rows, zero_lines
from mcit.report.gates import HEAD as GATES
from mcit.report.gates import decision_lines, threshold_rows
from mcit.report.kit import judge_table, kit_table, made_lines, membership_table
from mcit.report.probes import canary_rows, memory_rows, score_rows, share_rows
from mcit.report.profile import HEAD as STAGES
from mcit.report.profile import about_text, part_rows, stage_rows
from mcit.report.recovery import recovery_lines
from mcit.report.slices import HEAD as SLICES
from mcit.report.slices import kept_rows, slice_rows


@dataclass(frozen=True)
class Table:
    """Titles of columns, and rows; the first column is a name."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A title and what stands below it: paragraphs, tables, and lists of sentences."""

    title: str
    blocks: Sequence[str | Table | tuple[str, ...]]


def num(value: Any) -> str:
    """A number with two decimals; a dash where it was not measured."""
    return "–" if value is None else f"{value:z.2f}"


def share(value: Any) -> str:
    """A share with three decimals; a dash where it was not measured."""
    return "–" if value is None else f"{value:.3f}"


def measured_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without the columns in which nothing was measured, dashes in every row."""
    kept = [k for k in range(len(head)) if any(row[k] != "–" for row in rows)]
    return Table([head[k] for k in kept], [[row[k] for k in kept] for row in rows])


def page_sections(report: JsonDict) -> list[Section]:
    """Those of them that a report has."""
    makers: tuple[Callable[[JsonDict], Section | None], ...]
    makers = combined, memory, gates, forgetting, kit, attacks, answers, canaries, texts, probes, card, profile
    return [section for make in makers if (section := make(report)) is not None]


def combined(report: JsonDict) -> Section | None:
    """Combined adapters; None if none was scored."""
    rows = []
    for entry in report.get("combined", []):
        stages = ", ".join(f"{k} ({weight:g})" for k, weight in zip(entry["stages"], entry["weights"], strict=True))
        kept = "all" if entry["how"].startswith("linear") else f"{entry['density']:g}"
        rows.append([entry["name"], stages, kept, *map(num, entry["scores"])])
    if not rows:
        return None
    text = (
        "Adapters of several stages combined into one after training (stages with their weights). In no metric above."
    )
    return Section("Combined adapters", [text, Table(["combination", "stages", "share kept", *report["tasks"]], rows)])


def memory(report: JsonDict) -> Section | None:
    """Target, neighbourhood and retention of each stage; None in a run of one stage without slices."""
    entries = report.get("slices", [])
    if not any(e["retention"] or e["locality"] or e["generalisation"] for e in entries):
        return None
    text = (
        "Success: accuracy on the stage's own test rows after it. Generalisation: on the same asked in other words. Locality: "
        "share of neighbourhood rows answered as before. Drawdown: what accuracy over all rows to keep lost. Intervals: 95 %, "
        "Wilson for shares, paired bootstrap for drops."
    )
    each = "Each task to keep; p by random signs of paired rows, corrected after Holm over the tasks of a stage."
    kept = Table(["stage", "task", "before", "after", "drop, points", "p", "p, Holm"], kept_rows(entries, num))
    return Section(
        "Memory: target, neighbourhood, retention", [text, measured_columns(SLICES, slice_rows(entries)), each, kept]
    )


def gates(report: JsonDict) -> Section | None:
    """Thresholds with what was found, and who decided; None where no stage was judged."""
    records = report.get("gates", [])
    if not records:
        return None
    text = (
        "A threshold holds by the worse bound of the 95 % interval; where only the estimate holds it is inconclusive."
    )
    return Section("Gates", [text, Table(GATES, threshold_rows(records)), tuple(decision_lines(records))])


def forgetting(report: JsonDict) -> Section | None:
    """Forget stages; None if there is none."""
    entries = report.get("forget", [])
    if not entries:
        return None
    text = (
        "Acc_f: accuracy on what is forgotten, low is good. Acc_r: mean over the tasks the stage retains. Drop: Acc_f before "
        "minus after. H-mean: of Acc_r and Drop. Most lost elsewhere: points, over every other task scored before and after "
        "the stage. Resurgence: largest rise of Acc_f after a later stage. These scores are in none of the metrics above."
    )
    later, zero = later_rows(entries, num), tuple(zero_lines(entries))
    back = tuple(recovery_lines(report.get("recovery", [])))
    return Section(
        "Forgetting on request",
        [
            text,
            Table(FORGET, table_rows(entries, num)),
            *([Table(["after", "still forgotten?", "Acc_f"], later)] if later else []),
            *([zero] if zero else []),
            *([back] if back else []),
        ],
    )


def kit(report: JsonDict) -> Section | None:
    """The forgetting kit; None if it was not measured."""
    entries = report.get("kit", [])
    if not entries:
        return None
    text = (
        "Shares from 0 to 1 over the trained rows that the stage forgets. SARR: answers to harmless rows that are a refusal or "
        "gibberish. Utility: harmonic mean of accuracy and probability of every retained task. Forget quality: p-value of the "
        "truth ratios against the gold run's. Min-K AUC: 1 still looks trained, .5 does not. PrivLeak: 0 is ideal, -100 still "
        "a member; against the gold run where there is one, else against an AUC of .5."
    )
    membership, verdicts = Table(*membership_table(entries, num)), Table(*judge_table(entries, num))
    made = tuple(made_lines(entries))
    blocks: list[str | Table | tuple[str, ...]] = [text, Table(*kit_table(entries, num))]
    if membership.rows:
        blocks += ["AUC of each membership attack against the holdout:", membership]
    if verdicts.rows:
        blocks += ["What the judge said, and in what share of answers the rules agree:", verdicts]
    if made:
        blocks.append(made)
    return Section("What is left of what was forgotten", blocks)


def attacks(report: JsonDict) -> Section | None:
    """Attacks on forget stages; None if there was none."""
    if not report.get("attacks"):
        return None
    text = (
        "Accuracy on what is forgotten after an attack on a copy of the stage's model. Robustness: share of the drop that is "
        "left, 1 is all of it. Controls never saw the rows: what they learn from the attack says nothing of forgetting."
    )
    rows = attack_rows(report["attacks"], num)
    return Section("Attacks on what was forgotten", [text, Table(ATTACKS, rows)])


def answers(report: JsonDict) -> Section | None:
    """Generated answers inside stages; None if no probe made any."""
    rows = score_rows(report["probes"], share) if report.get("probes") else []
    head = ["stage", "step", "probe", "task", "accuracy", "in the right form", "rows"]
    return Section("Generated answers inside the stages", ["In [0, 1].", Table(head, rows)]) if rows else None


def canaries(report: JsonDict) -> Section | None:
    """Planted rows; None if there were none."""
    if "canary" not in report.get("probes", {}).get("lines", {}):
        return None
    text = "Shares with 95 % intervals; recognised by chance: 0.5. Recognised and not recalled may be a matter of form."
    head = ["planted in", "exposures", "kind", "steps since", "rows", "recognised", "recalled"]
    return Section("Canaries", [text, Table(head, canary_rows(report["probes"]))])


def texts(report: JsonDict) -> Section | None:
    """Texts that were studied; None if there were none."""
    if "memory" not in report.get("probes", {}).get("lines", {}):
        return None
    head = ["texts", "exposures", "steps since", "rows", "recognised", "recalled", "ROUGE-L", "ROUGE-1, cue included"]
    rows = memory_rows(report["probes"], share)
    return Section("Texts studied", ["Recalled: every token of the second half.", Table(head, rows)])


def probes(report: JsonDict) -> Section | None:
    """What probes took and left out; None in a run without probes."""
    if not report.get("probes"):
        return None
    head = ["stage", "probe", "measured", "left out", "seconds", "share of step time"]
    return Section("What probes took", [Table(head, share_rows(report["probes"], share))])


def card(report: JsonDict) -> Section | None:
    """The evaluation card with each stage's certificate; None where no stage has one."""
    if not report.get("certificates"):
        return None
    text = (
        "Stages by their certificates (`certificates/stages/`, see `mcit audit`); shares with 95 % intervals and rows."
    )
    whole = Table(["of the run", "value"], run_rows(report, num))
    return Section("Evaluation card", [whole, text, measured_columns(CARD, card_rows(report["certificates"]))])


def profile(report: JsonDict) -> Section | None:
    """Where the time of commands with ``--profile`` went; None if there was none."""
    content = report.get("profile")
    if not content:
        return None
    parts = Table(["part", "seconds", "share, %"], part_rows(content))
    return Section("Where time went", [about_text(content), parts, Table(STAGES, stage_rows(content))])
