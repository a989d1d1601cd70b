"""Judge a stage that was trained and waits: score it, compare with its gate, let it stand or set it aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mcit.core.interfaces import Reporter
from mcit.core.ranks import agreed, on_first
from mcit.core.records import ProgressRecord
from mcit.core.stored import read_listed
from mcit.core.types import JsonDict, Stage, TaskSpec
from mcit.evals.gate import alarm, judged, measured, overall, threshold_tasks
from mcit.runs.gates import EVALS, conclude, frozen_gate, rejected, scored_of, slices_of, stage_in, stopped, words
from mcit.runs.run import Run

Scores = Callable[[tuple[TaskSpec, ...], Path], None]
"""Scores tasks with the candidate into a folder."""


def decide(
    run: Run,
    stage: Stage,
    *,
    due: Sequence[TaskSpec],
    before: Path,
    score: Scores,
    mode: str,
    reporter: Reporter,
) -> None:
    """Score what the gate asks for first, then all that is due, and decide; with several ranks all of them call it.

    `before` has the scores of the stage below. Raises GateStopped when the stage is set aside.
    """
    gate = on_first(run.ranks, lambda: frozen_gate(run, stage.folder) or {})
    slices = on_first(run.ranks, lambda: _slices(run, stage.folder))
    after = run.layout.candidate(stage.folder) / EVALS
    parts = [[t for t in gate["thresholds"] if t["first"]], [t for t in gate["thresholds"] if not t["first"]]]
    results: list[JsonDict] = []
    for number, part in enumerate(parts):
        asked = {task for threshold in part for task in threshold_tasks(threshold, slices)}
        if part or number:
            score(tuple(due) if number else tuple(task for task in due if task.name in asked), after)

        def judge(part: list[JsonDict] = part) -> list[JsonDict]:
            return [judged(t, measured(t, slices, before, after, mode=mode)) for t in part]

        results += on_first(run.ranks, judge)
        if part and not number and overall(results) != "pass":
            results += [judged(t, None) for t in parts[1]]
            break
    for result in scored_of(results):
        reporter.line(f"gate of {stage.folder}: {words(result)}")

    def close() -> JsonDict:
        progress = _ended(run, stage)
        verdict = "fail" if progress.startswith("gate: ") else overall(results)
        return conclude(run, stage.folder, index=stage.index, gate=gate, verdict=verdict, results=results)

    made = on_first(run.ranks, close)
    if made["decision"] != "promoted":
        raise agreed(stopped(run, made))
    reporter.line(f"gate of {stage.folder}: pass, the stage stands")


def _slices(run: Run, folder: str) -> JsonDict:
    stages = run.plan()["stages"]
    return slices_of(next(s for s in stages if s["folder"] == folder), stages, rejected(run))


def _ended(run: Run, stage: Stage) -> str:
    """Why the candidate ended early; empty if it did not."""
    found = read_listed(stage_in(run.layout.candidate(stage.folder)), "progress.json", ProgressRecord).get("ended")
    return str(found["reason"]) if found else ""


def monitor_of(stage: Stage) -> Callable[[Sequence[JsonDict]], str] | None:
    """What watches the lines of the probe ``stability`` of a stage; None where its gate watches nothing."""
    if stage.gate is None or not stage.gate.config.monitor:
        return None
    limits = [limit.model_dump(mode="json") for limit in stage.gate.config.monitor]
    current = frozenset(task.name for task in stage.tasks)
    return lambda lines: alarm(limits, lines, current)
