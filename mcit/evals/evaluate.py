"""Score tasks with a model: answers, then a score, task by task; what is there already is not made again.

Answers and scores are kept apart. Answers depend on the weights (lineage), the rows and how they are generated; a score
besides on scorer and style rules. When only the latter change, answers are scored again and no model is needed.
torch is imported only when answers are made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcit.core.errors import ConfigError, DataError, StateError
from mcit.core.files import digest_of
from mcit.core.interfaces import Reporter, Silent
from mcit.core.ranks import ONE, Ranks, agreed, on_first
from mcit.core.records import Backend
from mcit.core.schema import EvalConfig
from mcit.core.stored import read_sealed
from mcit.core.types import JsonDict, Progress, Row, TaskSpec
from mcit.data.folder import DataFolder
from mcit.evals.certificate import certify
from mcit.evals.filtering import Spec, identity, load_filters
from mcit.evals.options import chooser, choosing, setting_problems
from mcit.evals.predictions import (
    BACKEND,
    PART,
    PREDICTIONS,
    chosen,
    damage,
    made_with,
    read_predictions,
    recorded_settings,
    refused,
)
from mcit.evals.score import SCORE, load_scorer, read_rows, read_score, score_predictions, write_score
from mcit.evals.style import VERSION as STYLE_VERSION
from mcit.runs.layout import RunLayout
from mcit.runs.run import Run, read_plan

_CHUNK = 512
"""Rows per call of vLLM, which fills its own batches from them; a kill loses no more than these."""


State = Mapping[str, Path] | None
"""Folder of what each method left behind, for filters that read it."""


def needs_eval(
    tasks: Sequence[TaskSpec], *, folder: Path, config: EvalConfig, lineage: str, state: State = None
) -> bool:
    """Whether a task has no finished score for these weights and settings."""
    return any(not _is_scored(task, folder, _settings(task, config, lineage, state)) for task in _with_rows(tasks))


def needs_model(
    tasks: Sequence[TaskSpec], *, folder: Path, config: EvalConfig, lineage: str, state: State = None
) -> bool:
    """Whether a task has no finished answers, so that `evaluate` needs a model."""
    wanted = [(folder / task.name, _settings(task, config, lineage, state)) for task in _with_rows(tasks)]
    return any(made_with(path) != settings for path, settings in wanted)


def evaluate(
    tasks: Sequence[TaskSpec],
    *,
    folder: Path,
    model: Any,
    encoder: Any,
    config: EvalConfig,
    device: Any,
    lineage: str,
    reporter: Reporter | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ONE,
    pool: Any = None,
    state: State = None,
) -> None:
    """Answer and score the first ``config.rows`` test rows of each task into ``folder/<task>``.

    Finished answers and scores of the same weights and settings are kept; a killed call is continued by the next. Damaged
    ones are told and made again.
    With a `pool` each row is answered by the adapter that its router chooses.
    `model` may be None if `needs_model` says so. `progress` is shown with counts and the task's name filled in.
    With several ranks all of them call it: they share the batches, rank 0 writes and scores. Raises Interrupted after
    the batch in which `stop` says so, DataError for a bad row or picture, ConfigError for an unknown scorer, filter or
    style.
    """
    reporter = reporter or Silent()
    if wrong := setting_problems(config):
        raise agreed(ConfigError.of(wrong))
    own = Own(model, encoder, device, pool, config.filters, state)
    with contextlib.ExitStack() as stack:
        other = Vllm(stack, folder, config, ranks) if config.backend == "vllm" else None
        for task in tasks:
            if not task.rows.get("test"):
                reporter.line(f"{task.name}: has no test rows, nothing to score")
                continue
            path, settings = folder / task.name, _settings(task, config, lineage, state)
            if on_first(ranks, lambda path=path, settings=settings: _is_due(path, settings, reporter)):  # type: ignore[misc]
                shown = replace(progress, name=task.name) if progress else None
                given: JsonDict = {"label": task.name, "progress": shown, "stop": stop, "ranks": ranks}
                _answer(task, path, settings, own, other, reporter=reporter, **given)
            on_first(ranks, lambda task=task: _finish(task, folder, config, lineage, state, reporter))  # type: ignore[misc]


@dataclass(frozen=True)
class Own:
    """The run's own backend."""

    model: Any
    encoder: Any
    device: Any
    pool: Any = None
    """Adapters of which each row has its own; see `mcit.evals.pooled`."""
    filters: Sequence[Spec] = ()
    state: State = None


class Vllm:
    """vLLM, started with the first answers that are needed and kept for all tasks of an evaluation."""

    def __init__(self, stack: contextlib.ExitStack, home: Path, config: EvalConfig, ranks: Ranks) -> None:
        """Raises ConfigError with more than one process."""
        if ranks.size() > 1:
            what = f"answers come from one process, this run has {ranks.size()}"
            raise agreed(ConfigError(what, where="eval.backend: vllm", fix="use one process, or eval.backend: own"))
        self._stack, self._home, self._config = stack, home, config
        self._served: Any = None

    def answerer(self, rows: Sequence[Row], own: Own, settings: JsonDict, *, out: Path, reporter: Reporter) -> Any:
        """What answers a task's rows, after the comparison with the own backend.

        Raises ConfigError for filters that it cannot apply, or a model that it does not take.
        """
        from mcit.evals.generator import sharing
        from mcit.evals.vllm import check_filters, compare, serving

        check_filters(load_filters(own.filters))
        if self._served is None:
            served = serving(own.model, own.encoder, config=self._config.vllm, home=self._home)
            self._served = self._stack.enter_context(served)
        limit = settings["max_new_tokens"]
        given = {"count": self._config.vllm.compare, "max_new_tokens": limit, "device": own.device, "out": out}
        found = compare(self._served, own.model, rows, sharing=sharing(self._config), **given)
        reporter.line(
            f"{settings['task']}: vLLM {found['version']} and the own backend differ in {found['different']} "
            f"of {found['compared']} rows"
        )
        return self._served.for_task(limit)


def _finish(task: TaskSpec, folder: Path, config: EvalConfig, lineage: str, state: State, reporter: Reporter) -> None:
    (folder / task.name / PART).unlink(missing_ok=True)  # left by a process killed after its last batch
    if not _is_scored(task, folder, _settings(task, config, lineage, state), reporter):
        _score(task.name, folder / task.name, reporter, scorer=task.scorer, style=task.style)


def rescore(run: Path, *, reporter: Reporter | None = None) -> list[str]:
    """Score all finished answers of a run folder again, from files alone; returns ``after-02/task`` for each.

    Raises StateError for answers that were edited or cut off, or if `run` is no run folder.
    """
    layout = RunLayout(run)
    plan = read_plan(layout)
    stages = [layout.evals(after) for after in range(len(plan["stages"]) + 1)]
    homes = [
        folder / task
        for folder in (*stages, *sorted(layout.combinations.glob("*")))
        for task in plan["scorers"]
        if (folder / task / PREDICTIONS).is_file() or (folder / task / SCORE).is_file()
    ]
    opened, done = Run(run), [f"{home.parent.name}/{home.name}" for home in homes]
    opened.ledger.append("eval", rescored=done)  # before any score changes: see `mcit.evals.certificate`
    for home in homes:
        kind = plan["scorers"][home.name]
        _score(home.name, home, reporter or Silent(), scorer=kind["scorer"], style=kind["style"])
    certify(opened)
    return done


def _with_rows(tasks: Sequence[TaskSpec]) -> list[TaskSpec]:
    return [task for task in tasks if task.rows.get("test")]


def _settings(task: TaskSpec, config: EvalConfig, lineage: str, state: State) -> JsonDict:
    """Everything the answers depend on."""
    return {
        "task": task.name,
        "data": task.digest,
        "rows": config.rows,
        "lineage": lineage,
        "batch": _CHUNK if config.backend == "vllm" else config.batch,
        **({"tokens": config.tokens, "share_prefix": config.share_prefix} if config.backend == "own" else {}),
        "filters": identity(config.filters, load_filters(config.filters), state or {}),
        "max_new_tokens": config.max_new_tokens or task.max_new_tokens,
        **({"backend": "vllm", "max_length": config.vllm.max_length} if config.backend == "vllm" else {}),
        **({"options": choosing(task)} if config.options == "forward" else {}),
    }


def _score_digest(settings: JsonDict, *, scorer: str, style: str) -> str:
    """Everything a score depends on."""
    return digest_of([settings, scorer, load_scorer(scorer).version, style, STYLE_VERSION])


def _is_due(path: Path, settings: JsonDict, reporter: Reporter) -> bool:
    """Whether answers are to be made; damaged ones are told."""
    wrong = damage(path)
    if wrong is not None:
        reporter.line(f"{wrong.where}: {wrong.what}; the answers are made again")
    return made_with(path) != settings


def _is_scored(task: TaskSpec, folder: Path, settings: JsonDict, reporter: Reporter | None = None) -> bool:
    """Whether a score is there, whole and of these settings; a damaged one is told."""
    path = folder / task.name
    try:
        score = read_score(path)
        read_rows(path)
    except StateError as error:
        if reporter:
            reporter.line(f"{error.where}: {error.what}; the answers are scored again")
        return False
    return (
        score is not None
        and score["settings"] == _score_digest(settings, scorer=task.scorer, style=task.style)
        and made_with(path) == settings
    )


def _answer(
    task: TaskSpec, path: Path, settings: JsonDict, own: Own, other: Vllm | None, *, reporter: Reporter, **given: Any
) -> None:
    from mcit.evals.generate import predict

    rows = DataFolder.open(task.folder).rows("test")[: settings["rows"]]
    if not rows:
        raise DataError("the test split is empty", where=str(task.folder), fix="remove the folder: it is built again")
    predict(
        own.model,
        own.encoder,
        rows,
        out=path,
        batch=settings["batch"],
        tokens=settings.get("tokens"),
        share=settings.get("share_prefix") == "auto",
        max_new_tokens=settings["max_new_tokens"],
        device=own.device,
        filters=own.filters,
        state=own.state,
        settings=settings,
        answerer=other.answerer(rows, own, settings, out=path, reporter=reporter) if other else None,
        pool=own.pool,
        options=chooser(settings["options"]) if "options" in settings else None,
        reporter=reporter,
        **given,
    )


def _score(task: str, path: Path, reporter: Reporter, *, scorer: str, style: str) -> None:
    settings = recorded_settings(path)
    extra = {
        "task": task,
        "filters": [one["use"] for one in settings["filters"]],
        "lineage": settings["lineage"],
        "settings": _score_digest(settings, scorer=scorer, style=style),
        **({"backend": read_sealed(path / BACKEND, Backend)} if settings.get("backend") else {}),
    }
    made = read_predictions(path)
    if "options" in settings:
        extra["answered"] = {"chosen": chosen(made), "written": len(made) - chosen(made)}
        extra["answered"] |= {"refused": refused(made)} if refused(made) else {}
    scored = score_predictions(made, scorer=scorer, style=style, extra=extra)
    write_score(path, scored)
    score = scored.score
    reporter.line(
        f"{path.parent.name}/{task}: strict {score['strict']['accuracy']:.1f} %, "
        f"fixed {score['fixed']['accuracy']:.1f} %, format-valid {score['format_validity']:.1f} % of {score['n']} rows"
        + (f", {chosen(made)} of them chosen among options" if "options" in settings else "")
        + (f", {refused(made)} written because an option cannot be an answer" if refused(made) else "")
    )
