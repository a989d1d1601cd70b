"""A verb on several ranks: start them or be one of them, speak once, fail together.

Only rank 0 prints. What the others say goes to ``logs/rank-XXX.log`` in the run directory, kept when the command fails.
An error that all ranks raise ends all of them in order; one that a rank raises alone is posted on the board, told
once, and ends the others within seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mcit.cli.common import STOPPING
from mcit.core.errors import Interrupted, McitError, PlanError, Problem
from mcit.core.ranks import ONE, Ranks, agreed, error_from, is_agreed, on_all, on_first
from mcit.core.schema import EngineConfig, RunConfig
from mcit.core.types import JsonDict
from mcit.engine import board as boards
from mcit.engine import launch
from mcit.engine.board import Board

if TYPE_CHECKING:
    from mcit.core.types import Plan
    from mcit.runs.run import Run

_ECHO_WAIT_S = 3.0


def nproc_argument(parser: argparse.ArgumentParser) -> None:
    """--nproc."""
    parser.add_argument("--nproc", type=int, metavar="N", help="start N processes on this machine (default: 1)")


def started(args: argparse.Namespace, config: RunConfig) -> int | None:
    """Check number of ranks, launcher and engine; start the ranks if this process is to do that.

    Returns the exit code of the ranks, or None when this process is to do the work. Raises PlanError for what cannot
    work, before anything is loaded.
    """
    refuse(config, nproc=args.nproc)
    if launch.launch_of(os.environ) is not None or (args.nproc or 1) == 1:
        return None
    outcome = launch.start_ranks(args.argv, args.nproc, says=STOPPING)
    if outcome.error is not None:
        from mcit.cli.main import show_error

        show_error(outcome.error, as_json=args.json)
    return outcome.code


def refuse(config: RunConfig, *, nproc: int | None, here: bool = True) -> None:
    """Raise PlanError with everything that cannot work with this number of ranks and this launcher; `here`: on this machine."""
    found = launch.problems(config, nproc=nproc, env=os.environ, here=here)
    if found:
        raise PlanError.of(found)


class Team:
    """This process among the ranks of its command."""

    def __init__(self, place: launch.Launch, engine: EngineConfig) -> None:
        self.place, self.timeout = place, engine.timeout
        self.parent = started_by_mcit()
        self._early = Path(os.environ[boards.FOLDER]) if self.parent else Path(tempfile.mkdtemp(prefix="mcit-"))
        self.board = Board(self._early, place.rank) if self.parent else None
        self.log = self._early / f"rank-{place.rank:03d}.log"
        self._logs: Path | None = None
        self.ranks: Ranks = ONE

    def begin(self, *, cpu: bool) -> None:
        """Sign in and join the process group."""
        from mcit.engine import world

        if self.place.rank:
            _speak_into(self.log)
        if self.board:
            self.board.sign_in()
            self.board.watch()
        world.init(self.timeout, cpu=cpu)
        self.ranks = world

    def in_run(self, root: Path) -> None:
        """The run directory is known: logs go there."""
        from mcit.runs.layout import RunLayout

        logs = RunLayout(root).logs

        def clean() -> None:
            shutil.rmtree(logs, ignore_errors=True)
            logs.mkdir(parents=True)

        on_first(self.ranks, clean)
        if not all(self.ranks.gather_objects(logs.is_dir())):
            raise agreed(
                PlanError(
                    f"{root} is not on a file system that all nodes see",
                    where="--runs-dir",
                    fix="give a folder that every node has mounted at the same place",
                )
            )
        self._logs, early = logs, self.log
        self.log = logs / early.name
        if self.place.rank:
            sys.stdout.flush()
            sys.stderr.flush()
            self.log.write_bytes(early.read_bytes())
            _speak_into(self.log)
            early.unlink()
        if self.board is None:
            shutil.rmtree(self._early, ignore_errors=True)
            self.board = Board(logs, self.place.rank)
            self.board.watch()

    def end(self) -> None:
        """Everything went well: nothing is kept of the logs."""
        from mcit.engine import world

        self.ranks.barrier()
        if self.place.rank == 0 and self._logs:
            shutil.rmtree(self._logs, ignore_errors=True)
        world.shutdown()

    # ---- failing ----------------------------------------------------------------------------------------------------
    def fail(self, error: BaseException, *, as_json: bool) -> int:
        """Tell an error once for all ranks; returns the code to end with."""
        with contextlib.suppress(OSError):
            self._keep_traceback(error)
        if isinstance(error, KeyboardInterrupt):
            what, fix = "stopped at once by a second signal", "run the same command again to continue"
            error = Interrupted(what, where=f"rank {self.place.rank}", fix=fix)
        elif isinstance(error, Interrupted) or is_agreed(error):
            return self._fail_together(error, as_json=as_json)
        kind = ""
        if isinstance(error, Exception):
            error, kind = boards.explained(error, rank=self.place.rank, timeout=self.timeout)
        if kind == "echo" and self.board and (first := self.board.wait_for_first(_ECHO_WAIT_S)):
            return int(first["exit"])
        record = boards.record_of(error, rank=self.place.rank, log=self.log)
        to_tell = self._post({**record, "kind": kind})
        if to_tell and not self.parent:
            _tell(error_from(record), as_json=as_json)
        return int(record["exit"])

    def _fail_together(self, error: BaseException, *, as_json: bool) -> int:
        """Nobody ends before rank 0 has told it, or the launcher would take the first one to end for the cause."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        record = boards.record_of(error, rank=self.place.rank, log=self.log, agreed=True)
        with contextlib.suppress(Exception):
            self.ranks.barrier()
        if self.place.rank == 0:
            self._post(record)
            if not self.parent:
                _tell(error_from(record), as_json=as_json)
        with contextlib.suppress(Exception):
            self.ranks.barrier()
        return int(record["exit"])

    def _post(self, record: JsonDict) -> bool:
        """Put an error on the board; whether it is this rank that tells it. A board that cannot be written is none."""
        try:
            return self.board.post(record) if self.board else True
        except (McitError, OSError):
            return True

    def _keep_traceback(self, error: BaseException) -> None:
        lines = "".join(traceback.format_exception(error))
        if self.place.rank:
            sys.stderr.write(lines)
        elif self._logs or self.parent:
            with open(self.log, "a") as file:
                file.write(lines)


_team: Team | None = None


@contextlib.contextmanager
def joined(engine: EngineConfig) -> Iterator[Ranks]:
    """Be one of the ranks that a launcher started, for the rest of the command; one process alone is `ONE`."""
    global _team
    place = launch.launch_of(os.environ)
    if place is None or place.size == 1:
        yield ONE
        return
    _team = Team(place, engine)
    _team.begin(cpu=engine.device == "cpu")
    yield _team.ranks
    _team.end()
    _team = None


def started_by_mcit() -> bool:
    """Whether this process is a rank that ``mcit --nproc`` started, which tells the user for it."""
    return boards.FOLDER in os.environ and boards.PARENT in os.environ and launch.launch_of(os.environ) is not None


def in_run(root: Path) -> None:
    """Tell the team where the run is."""
    if _team is not None:
        _team.in_run(root)


def failed(error: BaseException, *, as_json: bool) -> int | None:
    """End a rank that failed; None when this process is no rank of several and the caller tells the error."""
    if _team is not None:
        code = _team.fail(error, as_json=as_json)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # threads of a broken process group must not hold the process
    place = launch.launch_of(os.environ)
    if place is None or place.size == 1:
        return None
    foreseen = isinstance(error, McitError)
    if started_by_mcit():
        record = boards.record_of(error, rank=place.rank, agreed=foreseen)
        if Board(Path(os.environ[boards.FOLDER]), place.rank).post(record) and not foreseen:
            traceback.print_exception(error)
        return int(record["exit"])
    return error.exit_code if isinstance(error, McitError) and place.local_rank else None


def same_plan(ranks: Ranks, make: Callable[[], Plan]) -> Plan:
    """The plan, resolved by rank 0 first, which builds what is missing; the others load that.

    Raises PlanError naming what differs when a rank resolves the config to something else.
    """
    made: list[Plan] = []
    on_first(ranks, lambda: made.append(make()))
    plan = on_all(ranks, lambda: made[0] if made else make())
    if ranks.size() > 1:
        from mcit.cli.common import environment
        from mcit.plan.record import plan_json
        from mcit.runs.identity import differences, identity, told

        found = ranks.gather_objects({"plan": plan.digest, **identity(plan_json(plan), environment())})
        problems = [
            Problem(
                f"rank {k}",
                f"has another plan than rank 0: {'; '.join(told(changes))}",
                "give all ranks the same files",
            )
            for k, other in enumerate(found)
            if (changes := differences(found[0], other))
        ]
        if problems:
            raise agreed(PlanError.of(problems))
    return plan


def same_run(ranks: Ranks, make: Callable[[], Run]) -> Run:
    """The run, opened or created by rank 0, on every rank."""
    from mcit.runs.run import Run

    made: list[Run] = []

    def first() -> str:
        made.append(make())
        return str(made[0].layout.root)

    root = on_first(ranks, first)
    run = made[0] if made else Run(Path(root))
    run.share(ranks)
    in_run(run.layout.root)
    return run


def _speak_into(path: Path) -> None:
    """Everything this process prints from now on goes to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _tell(error: McitError, *, as_json: bool) -> None:
    from mcit.cli.main import show_error

    show_error(error, as_json=as_json)
