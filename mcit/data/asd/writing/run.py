"""Ask a model for every chosen row that no rule can write: in groups, side by side, again after a refusal, resumable."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from mcit.core.errors import DataError, Interrupted, StateError
from mcit.core.files import append_line, canonical_json
from mcit.core.types import JsonDict
from mcit.data.asd.answers import Answers, Entry, entry_json, load_answers
from mcit.data.asd.diversify import Choice, Job
from mcit.data.asd.exchange import source_of
from mcit.data.asd.writing.prompts import PROMPT_VERSION, Prompt, prompt_for, shape_of
from mcit.data.asd.writing.review import Normalise, review
from mcit.data.build import rows_for
from mcit.data.collect import Collected
from mcit.data.recipe import Recipe
from mcit.data.transforms.asd import Asd, asd_of

ATTEMPTS = 3
"""One reply and two more after refusals; then the row keeps its native style."""
_REPLY_KEPT = 500


class Backend(Protocol):
    """A model that answers prompts."""

    @property
    def name(self) -> str:
        """Kind of backend, for provenance."""

    @property
    def model(self) -> str:
        """Which model, for provenance."""

    @property
    def seed(self) -> int:
        """Seed of its decoding, for provenance."""

    @property
    def batch(self) -> int:
        """Prompts it takes at once."""

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """A reply per prompt. Raises McitError when it cannot go on."""


@dataclass
class Tally:
    """What a call did; jobs that were finished before are `before`."""

    jobs: int = 0
    before: int = 0
    accepted: int = 0
    given_up: int = 0
    requests: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Refusals by reason."""


@dataclass
class _State:
    job: Job
    made: int = 0
    reasons: tuple[str, ...] = ()
    accepted: bool = False


def asd_choice(recipe: Recipe, found: Collected) -> tuple[Asd, Choice]:
    """The recipe's ASD step and its choice among the collected rows.

    Raises DataError for a recipe without the step or rows that cannot be used.
    """
    step = asd_of(recipe.transforms)
    if step is None:
        raise DataError(
            "the recipe has no asd transform", where=str(recipe.path), fix="add: transforms: [{use: asd, percent: 20}]"
        )
    if found.fatal or len(found.bad) > recipe.config.allow_bad:
        raise DataError.of([*found.fatal, *found.bad])
    return step, step.choice(rows_for(recipe, found, step))


def to_write(choice: Choice) -> list[Job]:
    """The jobs that a model has to write."""
    return [job for job in choice.jobs if job.content is None]


def write_answers(
    jobs: Sequence[Job],
    cells: str,
    backend: Backend,
    *,
    out: Path,
    normalise: Normalise,
    limits: Mapping[str, tuple[int, int]],
    attempts: int = ATTEMPTS,
    concurrency: int = 1,
    announce: Callable[[str], None] = lambda line: None,
) -> Tally:
    """Append a line to `out` for every attempt; jobs that the file shows as finished are not asked again.

    A finished job has an accepted answer (of any model), or `attempts` refusals of this model and prompt version. Raises
    McitError as the backend does, Interrupted on Ctrl-C; what was answered until then is in the file.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
            states, tally = _resumed(jobs, backend, out, attempts)
            open_ones = [s for s in states if not s.accepted and s.made < attempts]
            while open_ones:
                announce(f"asking {backend.model} for {len(open_ones)} answer(s)")
                _round(open_ones, cells, backend, out, normalise, limits, concurrency, tally)
                open_ones = [s for s in open_ones if not s.accepted and s.made < attempts]
            tally.given_up = sum(not s.accepted for s in states)
            return tally
    except Timeout:
        raise StateError(
            "another process writes this file", where=str(out), fix="wait for it, or choose another --out"
        ) from None


def _resumed(jobs: Sequence[Job], backend: Backend, out: Path, attempts: int) -> tuple[list[_State], Tally]:
    known = load_answers(out) if out.exists() else Answers(out, (), 0)
    states, tally = [], Tally(jobs=len(jobs))
    for job in jobs:
        entries = known.of(job.row, job.style)
        ours = [entry for entry in entries if not entry.accepted and _same(entry.generator, backend)]
        state = _State(job, len(ours), ours[-1].reasons if ours else (), any(entry.accepted for entry in entries))
        tally.before += state.accepted or state.made >= attempts
        states.append(state)
    return states, tally


def _same(made: JsonDict, backend: Backend) -> bool:
    mine = (backend.name, backend.model, PROMPT_VERSION)
    return (made.get("backend"), made.get("model"), made.get("prompt")) == mine


def _round(
    states: Sequence[_State],
    cells: str,
    backend: Backend,
    out: Path,
    normalise: Normalise,
    limits: Mapping[str, tuple[int, int]],
    concurrency: int,
    tally: Tally,
) -> None:
    """One attempt at each; replies are written as they come."""
    stopped = threading.Event()

    def ask(group: Sequence[_State]) -> list[str] | None:
        if stopped.is_set():
            return None
        prompts = [
            prompt_for(s.job, shape_of(s.job, cells), limits=limits, refused=s.reasons if s.made else ()) for s in group
        ]
        return backend.complete(prompts)

    def keep(group: Sequence[_State], replies: list[str] | None) -> None:
        for state, reply in zip(group, replies or (), strict=False):
            tally.requests += 1
            entry = _judged(state, cells, reply, backend, normalise, limits)
            line: JsonDict = {**entry_json(entry), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            if not entry.accepted:
                line["reply"] = reply[:_REPLY_KEPT]
            append_line(out, canonical_json(line))
            state.made, state.reasons, state.accepted = state.made + 1, entry.reasons, entry.accepted
            tally.accepted += entry.accepted
            tally.refused.update(entry.reasons)

    groups = [states[at : at + backend.batch] for at in range(0, len(states), backend.batch)]
    with ThreadPoolExecutor(max_workers=concurrency) as pool:
        futures: dict[Future[list[str] | None], Sequence[_State]] = {pool.submit(ask, group): group for group in groups}
        left = dict(futures)
        try:
            for future in as_completed(futures):
                keep(left.pop(future), future.result())
        except BaseException as error:
            stopped.set()  # requests under way are waited for and their replies kept
            pool.shutdown(wait=True, cancel_futures=True)
            for future, group in left.items():
                if not future.cancelled() and future.exception() is None:
                    keep(group, future.result())
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(
                    f"stopped; {tally.accepted} answer(s) of this call are kept",
                    where=str(out),
                    fix="start the same command again to continue",
                ) from None
            raise


def _judged(
    state: _State,
    cells: str,
    reply: str,
    backend: Backend,
    normalise: Normalise,
    limits: Mapping[str, tuple[int, int]],
) -> Entry:
    job = state.job
    found = review(job, shape_of(job, cells), reply, normalise=normalise, limits=limits)
    made: JsonDict = {
        "backend": backend.name,
        "model": backend.model,
        "prompt": PROMPT_VERSION,
        "seed": backend.seed,
        "attempt": state.made + 1,
    }
    return Entry(job.row.id, job.style, source_of(job.row), not found.reasons, found.content, found.reasons, made)
