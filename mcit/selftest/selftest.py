"""The engine contract on the user's own devices: which checks to run, running them on every rank, and what came out.

Outcomes go to a folder that all ranks see, one file per check and rank, so that a rank that dies takes only the check
it was in with it: whoever started the ranks reads the files and starts the rest again.
"""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from mcit.core.errors import Interrupted, McitError
from mcit.core.files import read_json, write_json
from mcit.core.ranks import agreed
from mcit.core.schema import EngineConfig
from mcit.core.types import JsonDict

ENGINES = ("plain", "zero1", "zero2", "zero3")
CHECKS = (
    "window",
    "penalty",
    "discard",
    "clipping",
    "mixed rows",
    "frozen entries",
    "checkpoint",
    "agreement",
    "whole weights",
    "export",
)
"""In order of running; known here without torch."""
CHECK_S = 75.0
"""Seconds that one check may take, unless it is given more."""
_MEET_S = 5.0
"""Seconds that a rank whose check failed waits for the others to end it too."""


@dataclass(frozen=True)
class Item:
    """One check on one engine."""

    engine: str
    check: str


@dataclass(frozen=True)
class Outcome:
    """What came of it; of several ranks, the worst."""

    engine: str
    check: str
    passed: bool
    number: float | None
    """What was measured; None when the check did not get that far."""
    what: str
    """What the number is and what was allowed, or the error."""
    seconds: float


class TooLong(Exception):
    """A check ran into its limit."""


def items_for(engine: str | None, *, ranks: int) -> list[Item]:
    """The work of one command: one engine or ``all``; by default plain on one process and all four on several."""
    chosen = engine or ("all" if ranks > 1 else "plain")
    engines = ENGINES if chosen == "all" else (chosen,)
    return [Item(kind, check) for kind in engines for check in CHECKS]


def run_items(
    items: Sequence[Item],
    folder: Path,
    *,
    deadline: float,
    check_s: float = CHECK_S,
    config: EngineConfig | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
    **given: Any,
) -> None:
    """Run checks on this process, which may be one of several ranks, until `deadline` (Unix time); outcomes to `folder`.

    A check may take `check_s` seconds. `given` goes to the kit. Raises Interrupted when `stop` says so on any rank, and
    the error of a check that only some of several ranks ended with: they cannot go on together.
    """
    import torch

    from mcit.engine import world
    from mcit.selftest.kit import make_kit

    rank, size = world.rank(), world.size()
    for item in items:
        over, stopping = (
            any(flags) for flags in zip(*world.gather_objects([time.time() > deadline, stop()]), strict=True)
        )
        if stopping:
            what, fix = f"stopped before {item.check} on {item.engine}", "run it again: it begins anew"
            raise agreed(Interrupted(what, where="self-test", fix=fix))
        if over:
            return
        home = folder / "work" / name_of(item)
        engine = (config or EngineConfig()).model_copy(update={"kind": item.engine})
        with torch.random.fork_rng(devices=[]):
            outcome, error = _timed(item, functools.partial(make_kit, engine, home, **given), check_s)
        write_json(folder / "outcomes" / f"{name_of(item)}-rank-{rank:03d}.json", asdict(outcome))
        if rank == 0:
            say(line_of(outcome))
        if error is not None and size > 1 and not _met(item, outcome, folder, size):
            raise error


def _timed(item: Item, kit: Callable[[], Any], check_s: float) -> tuple[Outcome, Exception | None]:
    from mcit.selftest import checks
    from mcit.selftest.kit import exact_fp32

    start = time.monotonic()
    try:
        with _limited(check_s), exact_fp32():
            found = checks.CHECKS[item.check](kit())
    except (Exception, TooLong) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = "" if isinstance(error, (McitError, TooLong)) else f" ({Path(where.filename).name}:{where.lineno})"
        what = f"{type(error).__name__}: {' '.join(str(error).split())}{at}"
        return Outcome(item.engine, item.check, False, None, what, time.monotonic() - start), error
    number = found.number if math.isfinite(found.number) else 1e308  # JSON has no infinity
    return Outcome(item.engine, item.check, found.passed, number, found.what, time.monotonic() - start), None


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise TooLong in a block that takes longer, where the system has timers for it."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _met(item: Item, outcome: Outcome, folder: Path, size: int) -> bool:
    """After an error: whether every rank ended this check with the same one, so that they can go on together."""
    end = time.monotonic() + _MEET_S
    while len(found := _outcomes(item, folder)) < size and time.monotonic() < end:
        time.sleep(0.1)
    return len(found) == size and all(o.number is None and o.what == outcome.what for o in found.values())


# ---- outcomes --------------------------------------------------------------------------------------------------------
def name_of(item: Item) -> str:
    """File name of a check."""
    return f"{item.engine}-{item.check.replace(' ', '-')}"


def _outcomes(item: Item, folder: Path) -> dict[int, Outcome]:
    files = sorted((folder / "outcomes").glob(f"{name_of(item)}-rank-*.json"))
    return {int(path.stem.rpartition("-")[2]): Outcome(**read_json(path)) for path in files}


def outcome_of(item: Item, folder: Path, *, ranks: int) -> Outcome | None:
    """The outcome over all ranks; None while one of them has none."""
    found = _outcomes(item, folder)
    if len(found) < ranks:
        return None
    rank, worst = min(found.items(), key=lambda entry: _goodness(entry[1]))
    what = worst.what if worst.passed or ranks == 1 else f"rank {rank}: {worst.what}"
    return replace(worst, what=what, seconds=max(o.seconds for o in found.values()))


def _goodness(outcome: Outcome) -> tuple[bool, float]:
    return outcome.passed, -math.inf if outcome.number is None else -outcome.number


def died(item: Item, folder: Path, *, error: str) -> Outcome:
    """The outcome of the check that the ranks died in."""
    failed = [o for o in _outcomes(item, folder).values() if o.number is None]
    seconds = max((o.seconds for o in failed), default=0.0)
    return Outcome(item.engine, item.check, False, None, " ".join(error.split()), seconds)


def not_run(item: Item, *, limit: float) -> Outcome:
    """The outcome of a check for which no time was left."""
    return Outcome(item.engine, item.check, False, None, f"not run: {limit:g} s are over (--limit)", 0.0)


def result_of(outcome: Outcome) -> str:
    """In a word; what was not run did not pass."""
    return "passed" if outcome.passed else "not run" if outcome.what.startswith("not run") else "FAILED"


def line_of(outcome: Outcome) -> str:
    """One line, as it comes."""
    number = "" if outcome.number is None else f" {outcome.number:.1e}"
    return f"{outcome.engine} {outcome.check}: {result_of(outcome)}{number} ({outcome.seconds:.1f} s)"


def summary(outcomes: Sequence[Outcome]) -> JsonDict:
    """What ``--json`` prints of the self-test."""
    return {
        "passed": bool(outcomes) and all(o.passed for o in outcomes),
        "seconds": {kind: round(sum(o.seconds for o in outcomes if o.engine == kind), 1) for kind in _kinds(outcomes)},
        "checks": [{**asdict(o), "seconds": round(o.seconds, 2)} for o in outcomes],
    }


def _kinds(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(o.engine for o in outcomes))
