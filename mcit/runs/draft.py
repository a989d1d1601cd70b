"""The hidden directory of a stage in progress: live checkpoints, and the commit by rename.

A checkpoint is written under a temporary name and renamed when its manifest is in. A commit is put together in
``whole/`` inside the draft and renamed to the stage's final name; only then is the draft with its checkpoints removed,
so that a kill at any moment costs at most the steps since the last checkpoint. A checkpoint holds the metrics up to its
step too; the file of them in the draft is there to be watched, and written anew from the checkpoint at a restart.

With several ranks every method is called by all of them in the same order: rank 0 writes, each rank lets its engine add
what it alone holds to a checkpoint, and nobody goes on before the rename.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from mcit.core.errors import Interrupted, McitError, StateError
from mcit.core.files import append_line, canonical_json, explained, rename_directory, write_bytes, write_json
from mcit.core.ranks import ONE, Ranks, on_first
from mcit.core.records import StreamsRecord
from mcit.core.stored import check_manifest, read_record, write_manifest
from mcit.core.types import JsonDict
from mcit.runs.layout import RunLayout
from mcit.runs.ledger import Ledger

_WHOLE = "whole"
_METRICS, _PROBES = "metrics.jsonl", "probes.jsonl"


class Saved(Protocol):
    """What engine and methods look like from here."""

    def save(self, folder: Path) -> None:
        """Write everything mutable below `folder`."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""


class Cursors(Protocol):
    """What seekable streams look like from here."""

    @property
    def cursors(self) -> dict[str, int]:
        """Rows drawn so far, by stream."""

    def seek(self, cursors: Mapping[str, int]) -> None:
        """Continue at saved positions."""


class StageDraft:
    """Everything a stage writes before it is committed; used as a context manager."""

    def __init__(
        self,
        layout: RunLayout,
        folder: str,
        *,
        ledger: Ledger,
        keep: int,
        ranks: Ranks = ONE,
        final: Path | None = None,
    ) -> None:
        """`final` is where a stage goes that has to pass a gate first; its commit is noted when it does."""
        self._layout, self._folder, self._ledger, self._keep = layout, folder, ledger, keep
        self._ranks, self._waits = ranks, final is not None
        self._final = final or layout.stage(folder)
        self._lines: dict[str, list[str]] = {_METRICS: [], _PROBES: []}
        self._new = True
        self.path = layout.draft(folder)
        self.extra: JsonDict = {}
        """What the restored checkpoint was given as `extra`; empty when nothing was restored."""

    def __enter__(self) -> Self:
        on_first(self._ranks, self._begin)
        return self

    def _begin(self) -> None:
        if self._layout.stage(self._folder).exists():
            fix = "run the same command again: it goes on after this stage"
            raise StateError("the stage is committed already", where=str(self._layout.stage(self._folder)), fix=fix)
        self._new = not self.path.is_dir()
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if self._new:
            self._ledger.append("stage_started", stage=self._folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if self.path.is_dir():
                self._flush()
            return
        with contextlib.suppress(StateError, OSError):  # the error on its way out says more than a full disk here
            self._flush()
            if isinstance(error, Interrupted):
                self._ledger.append("interrupted", stage=self._folder, what=error.what)
            elif isinstance(error, McitError):
                self._ledger.append("problem", stage=self._folder, what=error.what, where=error.where)

    # ---- checkpoints ------------------------------------------------------------------------------------------------
    def restore(self, engine: Saved, methods: Saved, streams: Cursors) -> int:
        """Load the newest whole live checkpoint; returns its step, 0 when there is none.

        Damaged checkpoints are noted in the ledger and removed, older ones beyond `keep` too; metrics are those of the
        checkpoint. Raises StateError when the checkpoint is of another model, method or stream.
        """
        found = on_first(self._ranks, self._newest)
        step = int(found["step"])
        self.extra = found["extra"]
        if step:
            folder = self._layout.live(self._folder, step)
            engine.load(folder)
            methods.load(folder / "methods")
            streams.seek(found["cursors"])
        on_first(self._ranks, lambda: self._restored(step))
        return step

    def _newest(self) -> JsonDict:
        """Step, cursors and extra of the newest whole checkpoint; step 0 when there is none."""
        self._clear_temporary()
        for step in reversed(self._steps()):
            folder = self._layout.live(self._folder, step)
            try:
                check_manifest(folder)
                record = read_record(folder / "streams.json", StreamsRecord)
            except StateError as error:
                self._ledger.append("problem", stage=self._folder, what=error.what, where=error.where, step=step)
                self._remove(folder)
                continue
            return {"step": step, "cursors": record["cursors"], "extra": record["extra"]}
        return {"step": 0, "extra": {}}

    def _restored(self, step: int) -> None:
        if step:
            self._prune()
        for name in self._lines:
            saved, file = self._layout.live(self._folder, step) / name, self.path / name
            if step and saved.is_file() or file.is_file():
                write_bytes(file, saved.read_bytes() if step and saved.is_file() else b"")
        if step or not self._new:
            self._ledger.append("resumed", stage=self._folder, step=step)

    def record(self, step: int, metrics: Mapping[str, float | int | str]) -> None:
        """One line of metrics.jsonl, on disk with the next checkpoint or commit; rank 0's are kept."""
        if self._ranks.rank() == 0:
            self._lines[_METRICS].append(canonical_json({"step": step, **{k: _finite(v) for k, v in metrics.items()}}))

    def probe(self, line: JsonDict) -> None:
        """One line of probes.jsonl, kept as metrics are."""
        if self._ranks.rank() == 0:
            self._lines[_PROBES].append(canonical_json(line))

    def probed(self) -> list[JsonDict]:
        """The lines of probes.jsonl so far, on every rank."""
        return on_first(self._ranks, lambda: [json.loads(line) for line in self._so_far(_PROBES).decode().splitlines()])

    def checkpoint(
        self, step: int, engine: Saved, methods: Saved, streams: Cursors, extra: Mapping[str, object] | None = None
    ) -> None:
        """Write a live checkpoint, whole or not at all, then remove those beyond `keep`.

        Raises StateError when the disk is full; earlier checkpoints are untouched then.
        """
        final = self._layout.live(self._folder, step)
        work = final.with_name(f".{final.name}.tmp")

        def begin() -> None:
            self._flush()
            with explained(work):
                shutil.rmtree(work, ignore_errors=True)
                (work / "methods").mkdir(parents=True)

        def finish() -> None:
            methods.save(work / "methods")
            write_json(work / "streams.json", {"step": step, "cursors": streams.cursors, "extra": dict(extra or {})})
            self._copy_lines(work)
            write_manifest(work)
            if final.exists():
                self._remove(final)
            rename_directory(work, final)

        on_first(self._ranks, begin)
        with explained(work), _removed_on_error(work):
            engine.save(work)
            self._ranks.barrier()
            on_first(self._ranks, finish)
        on_first(self._ranks, lambda: self._noted(step))

    def _noted(self, step: int) -> None:
        self._ledger.append("checkpoint", stage=self._folder, step=step)
        self._prune()

    def _steps(self) -> list[int]:
        folder = self._layout.lives(self._folder)
        return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []

    def _prune(self) -> None:
        for step in self._steps()[: -self._keep]:
            self._remove(self._layout.live(self._folder, step))

    def _remove(self, folder: Path) -> None:
        """Hide first: a half-removed checkpoint must never look like a candidate."""
        hidden = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _clear_temporary(self) -> None:
        for folder in self._layout.lives(self._folder).glob(".*"):
            shutil.rmtree(folder, ignore_errors=True)

    # ---- metrics and probes -----------------------------------------------------------------------------------------
    def _so_far(self, name: str) -> bytes:
        self._flush()
        file = self.path / name
        return file.read_bytes() if file.is_file() else b""

    def _copy_lines(self, folder: Path) -> None:
        """Into a checkpoint or commit; probes only where there are any."""
        for name in self._lines:
            data = self._so_far(name)
            if data or name == _METRICS:
                write_bytes(folder / name, data)

    def _flush(self) -> None:
        for name, lines in self._lines.items():
            if lines:
                append_line(self.path / name, "\n".join(lines))
                lines.clear()

    # ---- commit -----------------------------------------------------------------------------------------------------
    def commit(self, write: Callable[[Path], None], progress: Mapping[str, object]) -> Path:
        """Let `write` fill a folder, add progress and metrics, manifest last, and rename it to the stage's final name.

        Rank 0 does it all. Returns the committed folder. Raises StateError when the disk is full; the checkpoints are
        untouched then.
        """
        on_first(self._ranks, lambda: self._commit(write, progress))
        return self._final

    def _commit(self, write: Callable[[Path], None], progress: Mapping[str, object]) -> None:
        self._flush()
        final, whole = self._final, self.path / _WHOLE
        with explained(whole), _removed_on_error(whole):
            shutil.rmtree(whole, ignore_errors=True)
            whole.mkdir()
            write(whole)
            write_json(whole / "progress.json", dict(progress))
            self._copy_lines(whole)
            write_manifest(whole)
            final.parent.mkdir(parents=True, exist_ok=True)
            rename_directory(whole, final)
        if not self._waits:
            ended = progress.get("ended")
            self._ledger.append("stage_committed", stage=self._folder, **({"ended": ended} if ended else {}))
        shutil.rmtree(self.path, ignore_errors=True)


@contextlib.contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    """Give the space back when a write fails half-way (a full disk, an error of the writer)."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _finite(value: float | int | str) -> float | int | str | None:
    """JSON has no NaN; an undefined metric is null."""
    return value if not isinstance(value, float) or value - value == 0.0 else None
