"""``mcit run``: plan, create or continue the run, train, score, report."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mcit.cli import team
from mcit.cli.common import (
    StopFlag,
    config_arguments,
    environment,
    print_json,
    profile_argument,
    reporter,
    start_torch,
    trust_argument,
)
from mcit.cli.log import Logged
from mcit.cli.team import nproc_argument
from mcit.core.doing import doing, told_to
from mcit.core.errors import ConfigError, GateStopped, McitError, StateError
from mcit.core.hashes import reading_all
from mcit.core.interfaces import Reporter
from mcit.core.profile import profiled, timed
from mcit.core.ranks import Ranks, on_first
from mcit.core.schema import EngineConfig, RunConfig
from mcit.core.types import Plan
from mcit.runs.layout import RunLayout

if TYPE_CHECKING:
    from mcit.report.matrix import Table
    from mcit.runs.run import Run

Planned = Callable[[Reporter], Plan]
Opened: TypeAlias = "Callable[[Plan, dict[str, Any]], Run]"


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("run", help="train a sequence; on an existing run, continue it")
    config_arguments(parser)
    parser.add_argument("--runs-dir", default="runs", help="folder of run directories (default: runs)")
    nproc_argument(parser)
    trust_argument(parser)
    profile_argument(parser)
    parser.add_argument("--new", action="store_true", help="start beside other runs of the same name")
    parser.add_argument("--extend", metavar="RUN", help="add the config's further stages to this run")
    parser.add_argument(
        "--from", dest="parent", metavar="RUN", help="share the first stages of this run, in a run beside it"
    )
    parser.add_argument(
        "--stage", type=int, metavar="K", help="with --from: share stages 1..K (default: all that are equal)"
    )
    parser.set_defaults(verb="run")


def run(args: argparse.Namespace) -> int:
    """Plan, then everything that is not done yet."""
    from mcit.plan.plan import read_config

    _check_arguments(args)
    config, text = read_config(args.config, args.set)  # schema and references first, without torch
    code = team.started(args, config)
    if code is not None:
        return code

    planned, opened = steps_of(
        config, Path(args.runs_dir), new=args.new, extend=args.extend, parent=args.parent, stages=args.stage
    )
    given = {"config_text": text, "as_json": args.json, "trust_mtime": args.trust_mtime, "profile": args.profile}
    return go(planned, opened, engine=config.engine, **given)


def steps_of(
    config: RunConfig,
    runs_dir: Path,
    *,
    new: bool = False,
    extend: str | None = None,
    parent: str | None = None,
    stages: int | None = None,
) -> tuple[Planned, Opened]:
    """How `train` plans a config and opens its run: a new one, the one there is, one to `extend`, or a branch of `parent`."""

    def planned(out: Reporter) -> Plan:
        from mcit.plan.gone import recorded
        from mcit.plan.plan import make_plan
        from mcit.runs.run import find_runs, open_existing

        root = extend or parent
        if root:
            run = open_existing(Path(root))
            known = recorded([run], name=run.plan()["name"])
        else:
            known = recorded([] if new else find_runs(runs_dir), name=config.name)
        begun = Path(extend) if extend else None
        return make_plan(config, announce=out.line, runs_dir=runs_dir, begun=begun, known=known)

    def opened(plan: Plan, start: dict[str, Any]) -> Run:
        from mcit.runs.extend import open_branch, open_or_extend
        from mcit.runs.run import open_existing

        if parent:
            return open_branch(plan, open_existing(Path(parent)), runs_dir=runs_dir, stages=stages, **start)
        return open_or_extend(plan, runs_dir=runs_dir, root=Path(extend) if extend else None, new=new, **start)

    return planned, opened


def _check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not go together, or a run that is none."""
    if sum(map(bool, (args.new, args.extend, args.parent))) > 1:
        raise ConfigError("--new, --extend and --from exclude each other", where="mcit run", fix="give one of them")
    if args.stage is not None and not args.parent:
        raise ConfigError("goes with --from only", where="--stage", fix="say whose stages with --from RUN")
    for root in filter(None, (args.extend, args.parent)):
        if not RunLayout(Path(root)).manifest.is_file():
            raise StateError("is no run directory", where=root, fix="name a run: `mcit status` lists them")


@dataclass(frozen=True)
class Done:
    """A run that went through."""

    root: Path
    paths: dict[str, str]
    """Files of the report by kind."""
    first: bool
    """Whether this process is rank 0."""


def go(
    planned: Planned,
    opened: Opened,
    *,
    engine: EngineConfig,
    config_text: str,
    as_json: bool,
    trust_mtime: bool = False,
    profile: bool = False,
) -> int:
    """`train` with signals and a live view, then print the report and where everything is."""
    stop = StopFlag(quiet=team.started_by_mcit())
    stop.install()
    given: dict[str, Any] = {"config_text": config_text, "trust_mtime": trust_mtime, "profile": profile}
    done = train(planned, opened, engine=engine, make_reporter=reporter, stop=stop, **given)
    if done.first:
        show(done.root, done.paths, as_json=as_json)
    return 0


def train(
    planned: Planned,
    opened: Opened,
    *,
    engine: EngineConfig,
    config_text: str,
    make_reporter: Callable[[], Reporter],
    stop: Callable[[], bool],
    trust_mtime: bool = False,
    profile: bool = False,
) -> Done:
    """Plan, open the run, train and score under its lock, and write the report.

    `opened` gets the plan and what `open_run` takes of a start: config text, resolved config, plan and environment.
    Base, data and pictures are read whole first, so that the run is what its digests say; with `trust_mtime` files that
    an earlier command read are known by size and times. With `profile` the run's profile.json says where time went.

    With several ranks all of them go through this; rank 0 opens, locks and reports. Raises Interrupted when `stop` says so.
    """
    out = Logged(make_reporter())
    with contextlib.closing(out), told_to(out.doing), profiled(profile):
        doing("loading torch and transformers")  # seconds in which nothing else could be told
        start_torch()
        with team.joined(engine) as ranks:
            return _trained(planned, opened, ranks, out, config_text=config_text, stop=stop, trust_mtime=trust_mtime)


def _trained(
    planned: Planned,
    opened: Opened,
    ranks: Ranks,
    out: Logged,
    *,
    config_text: str,
    stop: Callable[[], bool],
    trust_mtime: bool,
) -> Done:
    from mcit.plan import record
    from mcit.train.profiling import kept
    from mcit.train.sequence import device_of, run_sequence

    first = ranks.rank() == 0

    def open_or_create() -> Run:
        doing("reading the base's files")
        start = {
            "config_text": config_text,
            "resolved": record.resolved(plan.config),
            "plan_json": record.plan_json(plan),
            "environment": {**environment(), "ranks": ranks.size()},
        }
        return opened(plan, start)

    with reading_all(first and not trust_mtime):
        plan = team.same_plan(ranks, lambda: planned(out))
        run = team.same_run(ranks, open_or_create)
    with run.locked():
        if first:
            out.open(run.layout.log)
            out.watch(run.layout.root)
        out.line(f"run {run.layout.root}")
        for note in (*plan.notes, *run.notes):
            out.line(f"note: {note}")
        page = Page(run.layout, out.line)
        with kept(plan, run, device_of(plan)) as write_profile:
            with contextlib.closing(Followed(plan, run, out, first)) as followed:

                def scored() -> None:
                    write_profile()
                    with timed("report"):
                        page.refresh()
                    followed.scored()

                try:
                    run_sequence(plan, run, reporter=out, stop=stop, scored=scored, logged=followed.logged)
                except GateStopped:  # what the gate found belongs into the report
                    on_first(ranks, lambda: finish(run.layout.root))
                    raise
            write_profile()
            doing("writing the report")
            with timed("report"):
                paths = on_first(ranks, lambda: finish(run.layout.root))
                on_first(ranks, page.write)
    return Done(run.layout.root, paths, first)


class Followed:
    """A run and its trackers, which only the first rank tells."""

    def __init__(self, plan: Plan, run: Run, out: Logged, first: bool) -> None:
        from mcit.engine.trackers import Tracking
        from mcit.runs.identity import flatten

        self._plan, self._run, self._out = plan, run, out
        root = run.layout.root
        names = plan.config.track if first else []
        self._tracking = Tracking(names, folder=run.layout.tracking, run=root.resolve().name, say=out.line)
        self._tracking.about({"config": flatten(run.config()), "environment": flatten(environment())})
        self._known = self._table() if self._tracking.on else None
        self.logged = self._tracking.logged

    def scored(self) -> None:
        """Tell the matrix if it has changed."""
        table = self._table() if self._tracking.on else None
        if table is not None and table != self._known:
            done = sum(stage.steps for stage in self._plan.stages if self._run.is_committed(stage.folder))
            self._tracking.scores(*table, at=done)
        self._known = table

    def _table(self) -> Table | None:
        from mcit.report.matrix import matrix_table

        try:
            return matrix_table(self._run.layout.root)
        except McitError as error:
            self._out.line(f"note: the matrix was not told to trackers: {error}")
            return None

    def close(self) -> None:
        """Finish."""
        self._tracking.close()


class Page:
    """The HTML page of a run that goes on; what is wrong with it is said and never stops the run."""

    SHARE = 0.1
    """Most of a run's time that goes into writing it before the end: a long sequence has a long page."""

    def __init__(
        self, layout: RunLayout, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._layout, self._say, self._clock = layout, say, clock
        self._due = clock()

    def refresh(self) -> None:
        """Write it after a stage, unless that was done too short a time ago."""
        if self._clock() >= self._due:
            self.write()

    def write(self) -> None:
        """Write it now."""
        from mcit.report.page.html import write_page

        start = self._clock()
        doing("writing the page of the report")
        try:
            write_page([self._layout.root], self._layout.page)
        except McitError as error:
            self._say(f"note: the page of the report was not written: {error}")
        now = self._clock()
        self._due = now + (now - start) * (1 - self.SHARE) / self.SHARE


def finish(root: Path) -> dict[str, str]:
    """Write the report; returns its paths."""
    from mcit.report.tables import write_report

    return {kind: str(path) for kind, path in write_report(root).items()}


def show(root: Path, paths: dict[str, str], *, as_json: bool) -> None:
    """Matrix, metrics and paths."""
    from mcit.report.tables import full_report, render_terminal

    report = full_report(root)
    if as_json:
        print_json({"run": str(root), "report": paths, **report})
        return
    from rich.console import Console

    console = Console()
    for part in render_terminal(report):
        console.print(part)
    for kind, path in paths.items():
        print(f"{kind}: {path}")
    print(f"run: {root}")
