"""What a report says in words before it shows a number: what was forgotten, how much of it is form, what to quote, the cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mcit.core.types import JsonDict
from mcit.report.matrix import Measured


@dataclass(frozen=True)
class Fall:
    """What a task lost between the stage that taught it and the last one; scores in percent."""

    task: str
    then: float
    now: float
    wrong: int
    """Answers that were right then and are wrong now."""
    form: int
    """Of those, answers in another form than the task asks for."""

    @property
    def points(self) -> float:
        """Points lost; negative where the score rose."""
        return self.then - self.now


def falls(measured: Measured, mode: str) -> list[Fall]:
    """One entry for each task learned before the last scored stage and scored then and now, the largest loss first."""
    last = max((row for row, _ in measured.scores), default=0)
    out = []
    for task, first in zip(measured.tasks, measured.first, strict=True):
        then, now = measured.rows.get((first + 1, task)), measured.rows.get((last, task))
        if first + 1 >= last or then is None or now is None or then["id"] != now["id"]:
            continue
        pairs = list(zip(then[mode], now[mode], now["valid"], strict=True))
        lost = [valid for before, after, valid in pairs if before > after]
        scores = [100.0 * sum(pair[k] for pair in pairs) / len(pairs) for k in (0, 1)]
        out.append(Fall(task, scores[0], scores[1], len(lost), sum(not valid for valid in lost)))
    return sorted(out, key=lambda fall: -fall.points)


def headline(measured: Measured, mode: str) -> str:
    """Which task was forgotten most, and how much of that is only form."""
    if not measured.scores:
        return "Nothing has been scored yet."
    found = falls(measured, mode)
    if not found:
        return (
            "No task has been scored both after its own stage and after a later one, so nothing is known of forgetting."
        )
    worst = found[0]
    if worst.points <= 0:
        return (
            f"No task lost accuracy after it was learned; {worst.task} went from {worst.then:.1f} to {worst.now:.1f}."
        )
    return f"{worst.task} lost {worst.points:.1f} of {worst.then:.1f} points{_kinds(worst)}."


def _kinds(fall: Fall) -> str:
    if not fall.wrong:
        return ""
    share = round(100 * fall.form / fall.wrong)
    if share == 0:
        return f"; all {fall.wrong} answers that went wrong still have the right form, so the loss is one of content"
    if share == 100:
        return f"; all {fall.wrong} answers that went wrong have another form, so none of it need be lost content"
    return f"; of the {fall.wrong} answers that went wrong {share} % changed their form, the rest their content"


def others(measured: Measured, mode: str) -> str:
    """The other tasks that lost accuracy; empty where there is none."""
    lost = [fall for fall in falls(measured, mode)[1:] if fall.points > 0]
    parts = [f"{fall.task} {fall.points:.1f} of {fall.then:.1f} points{_share(fall)}" for fall in lost]
    return f"Also lost: {'; '.join(parts)}." if parts else ""


def _share(fall: Fall) -> str:
    return f" ({round(100 * fall.form / fall.wrong)} % form)" if fall.wrong else ""


def quote(report: JsonDict) -> str:
    """Which score to quote, with its interval and what that does not hold."""
    value, span = report["metrics"]["mfn"], report["intervals"]["metrics"].get("mfn")
    if value is None:
        return "There is no final score to quote: not every task was scored after the last stage."
    within = (
        f" (95 % interval {span[0]:.1f} to {span[1]:.1f} over questions, without the spread of seeds)" if span else ""
    )
    loss = report["metrics"]["forgetting"]
    beside = f"; forgetting {loss:.1f}" if loss is not None else ""
    return (
        f"Quote MFN {value:.1f}, the mean over tasks at the end{within}{beside}; scorer mode {report['scorer_mode']}."
    )


def cost(report: JsonDict) -> str:
    """Time, steps, tokens and the largest peak of memory of the committed stages."""
    done = [stage for stage in report["costs"] if stage["committed"]]
    if not done:
        return "No stage is committed yet."
    seconds = sum(stage["seconds"] or 0.0 for stage in done)
    tokens = sum(_whole(stage["tokens"]) for stage in done)
    steps = sum(stage["steps"] or 0 for stage in done)
    left = len(report["costs"]) - len(done)
    more = f" {left} of {len(report['costs'])} stages are still to come." if left else ""
    peak = max((stage["peak_bytes"] or 0 for stage in done), default=0)
    memory = f", at most {peak / 2**20:,.0f} MiB of memory" if peak else ""
    return f"Training took {duration(seconds)}: {steps:,} steps over {tokens:,} tokens{memory}.{more}"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _whole(value: Any) -> int:
    return sum(value.values()) if isinstance(value, dict) else value or 0
