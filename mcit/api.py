"""mcit from Python: plan, run, evaluate, export and report, with the checks, files and errors of the commands.

```python
import mcit

plan = mcit.plan("tiny")                      # every check, no weights
report = mcit.run("tiny", runs_dir="runs")    # trains, scores; called again it continues
print(report)                                 # what was forgotten, what to quote, what it cost
mcit.export(report, stage=3, kind="merged", out="my-model")
```

A config is a file, the name of a shipped config, or a mapping of what such a file holds. Everything works on the run
directory and nothing is kept in the process: a run begun here is continued by ``mcit resume``, and the other way round.
What a user can cause is a `mcit.core.errors.McitError` with its problems, each with where, what and fix. An interrupt
(Ctrl-C) loses at most the steps since the last checkpoint. One process; under ``torchrun`` every rank makes the same call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.core.errors import ConfigError
from mcit.core.interfaces import Reporter, Silent
from mcit.core.ranks import on_first
from mcit.core.types import JsonDict, Plan

if TYPE_CHECKING:
    from mcit.core.schema import RunConfig
    from mcit.export.export import Export, Kind
    from mcit.runs.run import Run

Source = str | Path | Mapping[str, Any]
"""A config: a file, the name of a shipped one, or what such a file holds."""
_KINDS = ("adapter", "delta", "merged", "pool")


@dataclass(frozen=True)
class Report:
    """Scores of a run so far; numbers in percent, None where nothing was measured."""

    run: Path
    headline: str
    """Which task was forgotten most, and how much of that is only form."""
    quote: str
    """Which score to quote, with its interval."""
    cost: str
    """Steps, tokens and time."""
    tasks: tuple[str, ...]
    stages: tuple[str, ...]
    matrix: tuple[tuple[float | None, ...], ...]
    """A row per stage, a column per task; a row is as long as there were tasks by then."""
    metrics: Mapping[str, float | None]
    """``mfn``, ``forgetting`` and the others, by the names of ``report.json``."""
    content: JsonDict
    """Everything that ``report.json`` holds."""

    def __str__(self) -> str:
        return "\n".join((self.headline, self.quote, self.cost))


RunFolder = str | Path | Report
"""A run: its folder, or a report of it."""


def plan(config: Source, *, overrides: Sequence[str] = (), runs_dir: str | Path = "runs", fetch: bool = False) -> Plan:
    """Check a config as ``mcit plan`` does, without loading weights; `overrides` are ``key=value``, as for ``--set``.

    Raises ConfigError, DataError or PlanError with every problem; without `fetch` also where a download is needed first.
    """
    checked, _ = _config(config, overrides)
    from mcit.cli.common import start_torch

    start_torch(computes=False)
    from mcit.core.fetch import NeedsDownload, without_network
    from mcit.models.load import pending
    from mcit.plan.plan import make_plan

    waiting = None if fetch else pending(checked.base)
    if waiting:
        fix = "call it with fetch=True, or mcit.run, which downloads"
        raise NeedsDownload(f"has to be downloaded first: {waiting}", where="base", fix=fix)
    with contextlib.nullcontext() if fetch else without_network():
        return make_plan(checked, runs_dir=Path(runs_dir))


def run(
    config: Source,
    *,
    overrides: Sequence[str] = (),
    runs_dir: str | Path = "runs",
    new: bool = False,
    profile: bool = False,
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Train, score and report a sequence as ``mcit run`` does; what is done already is kept, what was begun is continued.

    `reporter` is told what happens; `new` starts beside another run of the same name; `profile` measures where time goes.
    Raises McitError: what ``mcit plan`` refuses, a run that is damaged, locked or another one, Interrupted after a checkpoint
    once `stop` says so.
    """
    from mcit.cli.run import steps_of, train

    checked, text = _config(config, overrides)
    planned, opened = steps_of(checked, Path(runs_dir), new=new)
    given: dict[str, Any] = {"engine": checked.engine, "config_text": text, "stop": stop, "profile": profile}
    return report(train(planned, opened, make_reporter=lambda: reporter or Silent(), **given).root)


def evaluate(
    run: RunFolder,
    *,
    after: int | None = None,
    tasks: Sequence[str] = (),
    rescore: bool = False,
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Score stages of a run as ``mcit eval`` does: all that are committed or one (0 is the base), tasks due or named ones.

    `rescore` scores stored answers again and needs no model. Raises ConfigError for a stage or task that the run does not
    have, StateError for a run that is damaged or locked.
    """
    from mcit.cli import team
    from mcit.cli.common import config_of_run, start_torch
    from mcit.cli.eval import generate
    from mcit.cli.run import finish

    opened, told = _open(run), reporter or Silent()
    if rescore:
        if after is not None or tasks:
            raise ConfigError("goes with neither after nor tasks", where="rescore", fix="leave them out")
        from mcit.evals.evaluate import rescore as again

        with opened.locked():
            again(opened.layout.root, reporter=told)
            finish(opened.layout.root)
        return report(opened.layout.root)
    start_torch()
    with team.joined(config_of_run(opened).engine) as ranks:
        team.same_run(ranks, lambda: opened)
        with opened.locked():
            generate(opened, after=after, tasks=tasks, reporter=told, stop=stop)
            on_first(ranks, lambda: finish(opened.layout.root))
    return report(opened.layout.root)


def export(
    run: RunFolder,
    *,
    stage: int,
    kind: Kind = "adapter",
    out: str | Path | None = None,
    max_rank: int | None = None,
) -> Export:
    """Write stages 1..`stage` as ``mcit export`` does: checked by loading it again before it gets its name.

    Returns folder and record. Raises ConfigError for what cannot be exported, StateError for a run or an export that was
    changed, or when the reloaded export differs from the trained model.
    """
    if kind not in _KINDS:
        raise ConfigError(f"there is no kind of export '{kind}'", where="kind", fix=f"one of {', '.join(_KINDS)}")
    opened = _open(run)
    from mcit.cli.common import start_torch

    start_torch()
    from mcit.export.export import export_stage

    return export_stage(opened, stage=stage, kind=kind, out=Path(out) if out else None, max_rank=max_rank)


def report(run: RunFolder, *, mode: str | None = None, html: str | Path | None = None) -> Report:
    """Scores of a run in words and numbers, under a scorer mode (the run's own); with `html` also the page as a file.

    Reads files alone. Raises StateError if `run` is no run folder or a file is damaged, ConfigError for an unknown mode.
    """
    if mode not in (None, "strict", "fixed"):
        raise ConfigError(f"there is no scorer mode '{mode}'", where="mode", fix="say strict or fixed")
    from mcit.report.matrix import measure
    from mcit.report.page import words
    from mcit.report.page.html import write_page
    from mcit.report.tables import full_report

    root = _root(run)
    content = full_report(root, mode=mode)
    if html is not None:
        write_page([root], Path(html), mode=mode)
    return Report(
        run=root,
        headline=words.headline(measure(root), content["scorer_mode"]),
        quote=words.quote(content),
        cost=words.cost(content),
        tasks=tuple(content["tasks"]),
        stages=tuple(content["stages"]),
        matrix=tuple(map(tuple, content["matrix"])),
        metrics={name: value for name, value in content["metrics"].items() if name != "average"},
        content=content,
    )


def _config(config: Source, overrides: Sequence[str]) -> tuple[RunConfig, str]:
    """The checked config and its text."""
    from mcit.plan.plan import read_config, read_mapping

    if isinstance(config, Mapping):
        return read_mapping(config, list(overrides))
    if not isinstance(config, (str, Path)):
        what = f"a {type(config).__name__} is no config"
        raise ConfigError(what, where="config", fix="give a file, the name of a shipped config, or a mapping")
    return read_config(str(config), list(overrides))


def _open(run: RunFolder) -> Run:
    from mcit.runs.run import open_existing

    return open_existing(_root(run))


def _root(run: RunFolder) -> Path:
    return run.run if isinstance(run, Report) else Path(run)
