"""Training rows -> the same number of rows, X percent of them in the four styles that are not the task's own.

Which rows are chosen depends on rows, percentage and seed alone, never on a file of answers: the script that asks a
model and the transform that uses its answers see the same choice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mcit.core.errors import DataError
from mcit.core.seeds import seed_for
from mcit.core.types import JsonDict, Row
from mcit.data.asd.answers import Answers, content_of
from mcit.data.asd.assemble import OPTIONS, Content, Converted, convert
from mcit.data.asd.cells import CELLS, Corpus, find_cells
from mcit.data.asd.cues import STYLES, native_style, words
from mcit.data.asd.demo import DEMO_CELLS
from mcit.data.asd.exchange import Exchange, UnusableRow, exchanges_of
from mcit.data.asd.quota import assign, quota

ALL_CELLS = {**CELLS, **DEMO_CELLS}
_STALE_SHOWN = 3


@dataclass(frozen=True)
class Job:
    """One row that is to get one foreign style."""

    index: int
    row: Row
    style: str
    exchanges: tuple[Exchange, ...]
    content: tuple[Content, ...] | None
    """What the rule wrote; None where a model has to."""


@dataclass(frozen=True)
class Choice:
    """Which rows get which style, before any answer of a model is looked at."""

    native: str
    cells: str
    quota: int
    """Rows (or questions) per foreign style."""
    jobs: tuple[Job, ...]
    """By style, in the shuffled order."""
    unusable: Mapping[str, int]
    """Rows that cannot be taken apart, by reason."""


def choose(
    rows: Sequence[Row],
    *,
    percent: float,
    seed: int,
    native: str | None = None,
    unit: Literal["row", "question"] = "row",
    cells: str = "auto",
    within: str = "",
    cues: Sequence[str] = (),
) -> Choice:
    """Assign styles by the quota rule. Raises DataError for rows without a native style or diversified already."""
    _refuse_diversified(rows)
    native = native or _native(rows)
    exchanges, unusable = _apart(rows, native, cues)
    corpus = Corpus(rows, exchanges, within)
    name = find_cells(corpus, native) if cells == "auto" else cells
    rules = ALL_CELLS[name]
    written: dict[tuple[int, str], tuple[Content, ...] | None] = {}

    def eligible(index: int, style: str) -> bool:
        parts = exchanges[index]
        if not parts:
            return False
        if style not in rules:
            return _for_model(style, native, parts)
        contents = []
        for number, part in enumerate(parts):
            draw = random.Random(seed_for(seed, "asd", "rule", style, rows[index].id, number))
            content = rules[style](rows[index], part, corpus, draw)
            if content is None:
                return False
            contents.append(content)
        written[index, style] = tuple(contents)
        return True

    sizes = [1 if unit == "row" else max(1, len(parts)) for parts in exchanges]
    total = len(rows) if unit == "row" else sum(sizes)
    most = quota(total, percent)
    foreign = [style for style in STYLES if style != native]
    chosen = assign(sizes, foreign, most, seed=seed, eligible=eligible)
    jobs = [
        Job(index, rows[index], style, exchanges[index], written.get((index, style)))
        for style in foreign
        for index in chosen[style]
    ]
    return Choice(native, name, most, tuple(jobs), unusable)


def diversify(
    rows: Sequence[Row],
    choice: Choice,
    *,
    seed: int,
    unit: Literal["row", "question"] = "row",
    answers: Answers | None = None,
    limits: Mapping[str, tuple[int, int]],
) -> tuple[list[Row], JsonDict]:
    """The rows with the chosen ones converted, and the account for the manifest.

    A row whose answer a model has not given, or not well enough, keeps its native style and counts as a shortfall.
    Raises DataError for answers that were written for another version of a row.
    """
    out = list(rows)
    missed: dict[str, Counter[str]] = {}
    counts: dict[str, Counter[str]] = {}
    gold: dict[str, Counter[str]] = {}
    stale = [job for job in choice.jobs if answers and job.content is None and answers.stale(job.row, job.style)]
    if stale and answers:
        raise _stale(stale, answers)
    for job in choice.jobs:
        found = _content(job, answers, limits)
        if isinstance(found, str):
            missed.setdefault(job.style, Counter())[found] += 1
            continue
        contents, generator = found
        done = counts.setdefault(job.style, Counter())
        parts = list(zip(job.exchanges, contents, strict=True))
        made = convert(job.row, job.style, parts, first=done["questions"], seed=seed)
        out[job.index] = _row(job, made, choice, generator if generator else f"rule:{choice.cells}", seed)
        done.update(rows=1, questions=len(parts))
        if job.style in ("yn", "mcq"):
            gold.setdefault(job.style, Counter()).update(made.answers)
    account = _account(rows, choice, counts, missed, gold, unit)
    if answers:
        account["answers"] = {"file": answers.path.name, "torn_lines": answers.torn}
    return out, account


def _content(
    job: Job, answers: Answers | None, limits: Mapping[str, tuple[int, int]]
) -> tuple[Sequence[Content], str] | str:
    """Contents and generator (empty for a rule), or why there are none."""
    if job.content is not None:
        return job.content, ""
    attempts = answers.of(job.row, job.style) if answers else []
    accepted = [entry for entry in attempts if entry.accepted]
    if not accepted:
        return f"refused: {attempts[-1].reasons[0]}" if attempts and attempts[-1].reasons else "no answer of a model"
    last = accepted[-1]
    if len(last.content) != len(job.exchanges) or not all(_complete(job.style, item) for item in last.content):
        return "the answer of the model is not complete"
    low, high = limits.get(job.style, (0, 0))
    if high and not all(low <= words(item.text) <= high for item in last.content):
        return f"not {low} to {high} words long"
    return content_of(last, job.exchanges), last.name


def _complete(style: str, item: Content) -> bool:
    needed = {"yn": 1, "mcq": OPTIONS - 1}.get(style, 0)
    return len(item.distractors) == needed and (needed > 0 or bool(item.text.strip()))


def _row(job: Job, made: Converted, choice: Choice, generator: str, seed: int) -> Row:
    row = job.row
    meta = {key: value for key, value in row.meta.items() if key not in ("choices", "answers")}
    if made.options:
        meta["choices"] = list(made.options)
    meta["asd"] = {
        "style": job.style,
        "native_style": choice.native,
        "src_id": row.id,
        "seed": seed,
        "generator": generator,
    }
    system = row.turns[: len(row.turns) - len(row.dialogue)]
    return replace(row, turns=(*system, *made.turns), style=job.style, meta=meta)


def _refuse_diversified(rows: Sequence[Row]) -> None:
    found = next((row for row in rows if "asd" in row.meta), None)
    if found is not None:
        what = "the row's style has been diversified already"
        raise DataError(what, where=found.where, fix="use asd once, on native rows")


def _native(rows: Sequence[Row]) -> str:
    fix = "name it in the transform: native: mcq, short, yn, brief or detail"
    styles = {row.style: native_style(row.style) for row in rows}
    found = set(styles.values())
    if len(found) != 1 or None in found:
        raise DataError(
            f"the task's own answer style does not follow from its rows' styles {sorted(styles)}",
            where="transforms: asd",
            fix=fix,
        )
    return str(found.pop())


def _apart(rows: Sequence[Row], native: str, cues: Sequence[str]) -> tuple[list[tuple[Exchange, ...]], dict[str, int]]:
    exchanges: list[tuple[Exchange, ...]] = []
    unusable: Counter[str] = Counter()
    for row in rows:
        try:
            exchanges.append(exchanges_of(row, native=native, cues=cues))
        except UnusableRow as error:
            exchanges.append(())
            unusable[str(error)] += 1
    return exchanges, dict(sorted(unusable.items()))


def _for_model(style: str, native: str, parts: Sequence[Exchange]) -> bool:
    """Whether a model can be asked for the style; see the table of prompts."""
    if style in ("brief", "detail"):
        return True
    return style in ("yn", "mcq") and native == "short" and not any(p.is_yes_no or p.is_box for p in parts)


def _stale(jobs: Sequence[Job], answers: Answers) -> DataError:
    named = ", ".join(f"{job.row.id} ({job.style})" for job in jobs[:_STALE_SHOWN])
    return DataError(
        f"{len(jobs)} answer(s) were written for other versions of the rows: {named}",
        where=str(answers.path),
        fix="run scripts/asd_generate.py generate again; it asks for these rows only",
    )


def _account(
    rows: Sequence[Row],
    choice: Choice,
    counts: Mapping[str, Counter[str]],
    missed: Mapping[str, Counter[str]],
    gold: Mapping[str, Counter[str]],
    unit: str,
) -> JsonDict:
    styles: dict[str, JsonDict] = {}
    converted = 0
    for style in (s for s in STYLES if s != choice.native):
        done = counts.get(style, Counter())
        reached = done["rows"] if unit == "row" else done["questions"]
        reasons = dict(sorted(missed.get(style, Counter()).items()))
        jobs = [job for job in choice.jobs if job.style == style]
        assigned = len(jobs) if unit == "row" else sum(len(job.exchanges) for job in jobs)
        if assigned < choice.quota:
            why = "too few rows allow the style"
            reasons[why if unit == "row" else f"{why}, or their questions do not add up"] = choice.quota - assigned
        converted += done["rows"]
        styles[style] = {
            "rows": done["rows"],
            "questions": done["questions"],
            "short_by": choice.quota - reached,
            "reasons": reasons,
            **({"answers": dict(sorted(gold[style].items()))} if style in gold else {}),
        }
    return {
        "native": choice.native,
        "native_rows": len(rows) - converted,
        "cells": choice.cells,
        "unit": unit,
        "quota": choice.quota,
        "styles": styles,
        "unusable": dict(choice.unusable),
    }
