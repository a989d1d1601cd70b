"""Trackers: what a run measures, told to TensorBoard, Weights & Biases, MLflow or trackio through accelerate's classes.

Each scalar is told on two axes: steps of the whole run, and steps of its stage. A tracker that fails is told once and left
out from then on: no run ends because of one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mcit.core.optional import needed
from mcit.core.types import JsonDict

Cells = Sequence[Sequence[str | float | None]]
"""Rows of a table; the first cell of each is its name."""


class Tracker(Protocol):
    """One kind of tracker of one run."""

    def about(self, facts: Mapping[str, JsonDict]) -> None:
        """Config and environment, each as leaves by key."""

    def scalars(self, stage: str, step: int, of_run: int, values: Mapping[str, float]) -> None:
        """Values after `step` steps of a stage, `of_run` of the run; steps never go back but after a restart."""

    def table(self, name: str, head: Sequence[str], rows: Cells, of_run: int) -> None:
        """A table as it is after so many steps of the run."""

    def finish(self) -> None:
        """Close what is open."""


class Tracking:
    """All trackers of a run, on the rank that writes."""

    def __init__(self, names: Sequence[str], *, folder: Path, run: str, say: Callable[[str], None]) -> None:
        """`folder` is for their files, `run` names the run there. A tracker that cannot start is told and left out."""
        self._say = say
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                self._trackers[name] = _KINDS[name](folder / name, run)
            except Exception as error:
                self._left_out(name, error)

    @property
    def on(self) -> bool:
        """Whether anybody is told."""
        return bool(self._trackers)

    def about(self, facts: Mapping[str, JsonDict]) -> None:
        """Tell config and environment."""
        self._each(lambda tracker: tracker.about(facts))

    def logged(self, stage: str, before: int, step: int, values: Mapping[str, float]) -> None:
        """Tell the metrics of a step; `before` is what the stages below have of steps."""
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and v - v == 0}
        self._each(lambda tracker: tracker.scalars(stage, step, before + step, numbers))

    def scores(self, head: Sequence[str], rows: Cells, at: int) -> None:
        """Tell the accuracy matrix after `at` steps of the run as a table, and its last row as scalars."""
        self._each(lambda tracker: tracker.table("matrix", head, rows, at))

    def close(self) -> None:
        """Finish all of them."""
        self._each(lambda tracker: tracker.finish())
        self._trackers.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # whatever a tracker, its server or its network comes up with
                del self._trackers[name]
                self._left_out(name, error)

    def _left_out(self, name: str, error: Exception) -> None:
        what = str(error).strip().partition("\n")[0]
        self._say(f"note: tracker {name} is left out from here on: {type(error).__name__}: {what}")


class _Log(logging.LoggerAdapter[logging.Logger]):
    """In the place of the logger of accelerate's trackers, which refuses to log without a process state of accelerate's own.

    There is none: `mcit.engine.world` says who writes, and on one process no state is needed.
    """

    def warning_once(self, message: str, *args: Any) -> None:
        """A value that a tracker leaves out."""
        self.debug(message, *args)


def _started(tracker: Any) -> Any:
    """Started here and now; accelerate need not ask which rank it is on."""
    from accelerate import tracking

    tracking.logger = _Log(logging.getLogger("accelerate.tracking"), {})
    tracker.main_process_only = False
    tracker.start()
    return tracker


class TensorBoard:
    """One log folder for the axis of the run (``run``) and one per stage, so that stages lie over each other in one chart."""

    def __init__(self, folder: Path, run: str) -> None:
        needed("tensorboard", where="track")  # accelerate would take another package that writes its format
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._facts: Mapping[str, JsonDict] = {}

    def about(self, facts: Mapping[str, JsonDict]) -> None:
        """Kept until the first step is known."""
        self._facts = facts

    def scalars(self, stage: str, step: int, of_run: int, values: Mapping[str, float]) -> None:
        """The same tags in both folders."""
        self._writer("run", of_run).log(values, step=of_run)
        self._writer(stage, step).log(values, step=step)

    def table(self, name: str, head: Sequence[str], rows: Cells, of_run: int) -> None:
        """As Markdown text."""
        lines = [head, ["---"] * len(head), *([_shown(cell) for cell in row] for row in rows)]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        self._writer("run", of_run + 1).log({name: text, **_last(head, rows)}, step=of_run)

    def finish(self) -> None:
        """Close every folder."""
        for writer in self._writers.values():
            writer.finish()

    def _writer(self, name: str, first: int) -> Any:
        """The folder's writer; what an earlier process wrote there at `first` and later is purged by readers."""
        from accelerate.tracking import TensorBoardTracker

        if name not in self._writers:
            self._writers[name] = _started(TensorBoardTracker(name, str(self._folder), purge_step=first))
            if name == "run":
                texts = {
                    key: "\n".join(f"    {k}: {v}" for k, v in leaves.items()) for key, leaves in self._facts.items()
                }
                self._writers[name].log(texts, step=first)
        return self._writers[name]


class WandB:
    """One run of project ``mcit``; a start after an interruption goes on in it."""

    def __init__(self, folder: Path, run: str) -> None:
        from accelerate.tracking import WandBTracker

        folder.mkdir(parents=True, exist_ok=True)
        self._tracker = _started(WandBTracker("mcit", name=run, id=run, resume="allow", dir=str(folder)))
        self._stages: set[str] = set()

    def about(self, facts: Mapping[str, JsonDict]) -> None:
        """As the run's config."""
        self._tracker.store_init_configuration(dict(facts))

    def scalars(self, stage: str, step: int, of_run: int, values: Mapping[str, float]) -> None:
        """Over steps of the run, and below the stage's name over its own."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._tracker.tracker.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._tracker.log({**values, **_both(stage, step, values)}, step=of_run)

    def table(self, name: str, head: Sequence[str], rows: Cells, of_run: int) -> None:
        """As a table of its own."""
        self._tracker.log_table(name, columns=list(head), data=[list(map(_shown, row)) for row in rows], step=of_run)
        self._tracker.log(_last(head, rows), step=of_run)

    def finish(self) -> None:
        """End the run."""
        self._tracker.finish()


class MLflow:
    """One run of experiment ``mcit``, in ``mlruns`` of the current folder or where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, run: str) -> None:
        from accelerate.tracking import MLflowTracker

        self._folder = folder
        self._tracker = _started(MLflowTracker("mcit", run_name=run))

    def about(self, facts: Mapping[str, JsonDict]) -> None:
        """As parameters."""
        self._tracker.store_init_configuration(
            {f"{part}/{_plain(key)}": value for part, leaves in facts.items() for key, value in leaves.items()}
        )

    def scalars(self, stage: str, step: int, of_run: int, values: Mapping[str, float]) -> None:
        """Each name has an axis of its own."""
        named = {_plain(key): value for key, value in values.items()}
        self._tracker.log(named, step=of_run)
        self._tracker.log({f"{_plain(stage)}/{key}": value for key, value in named.items()}, step=step)

    def table(self, name: str, head: Sequence[str], rows: Cells, of_run: int) -> None:
        """As a CSV file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{name}.csv"
        lines = [head, *([_shown(cell) for cell in row] for row in rows)]
        file.write_text("".join(",".join(line) + "\n" for line in lines))
        self._tracker.log_artifact(str(file))
        self._tracker.log({_plain(key): value for key, value in _last(head, rows).items()}, step=of_run)

    def finish(self) -> None:
        """End the run."""
        self._tracker.finish()


class Trackio:
    """One run of project ``mcit``; a start after an interruption goes on in it."""

    def __init__(self, folder: Path, run: str) -> None:
        from accelerate.tracking import TrackioTracker

        self._tracker = _started(TrackioTracker("mcit", name=run, resume="allow"))

    def about(self, facts: Mapping[str, JsonDict]) -> None:
        """As the run's config."""
        self._tracker.store_init_configuration(dict(facts))

    def scalars(self, stage: str, step: int, of_run: int, values: Mapping[str, float]) -> None:
        """Over steps of the run; the stage's own step is a value beside them."""
        self._tracker.log({**values, **_both(stage, step, values)}, step=of_run)

    def table(self, name: str, head: Sequence[str], rows: Cells, of_run: int) -> None:
        """As trackio's own table."""
        import pandas
        import trackio

        frame = pandas.DataFrame([list(map(_shown, row)) for row in rows], columns=list(head))
        self._tracker.log({name: trackio.Table(dataframe=frame), **_last(head, rows)}, step=of_run)

    def finish(self) -> None:
        """End the run."""
        self._tracker.finish()


_KINDS: dict[str, Callable[[Path, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def _both(stage: str, step: int, values: Mapping[str, float]) -> dict[str, float]:
    """Values below the name of their stage, with its step."""
    return {f"{stage}/{name}": value for name, value in {**values, "step": step}.items()}


def _last(head: Sequence[str], rows: Cells) -> dict[str, float]:
    """The last row as scalars by column."""
    cells = zip(head[1:], rows[-1][1:], strict=False) if rows else ()
    return {f"accuracy/{name}": float(cell) for name, cell in cells if isinstance(cell, (int, float))}


def _shown(cell: str | float | None) -> str:
    return cell if isinstance(cell, str) else "–" if cell is None else f"{cell:.2f}"


def _plain(name: str) -> str:
    """A name in letters that MLflow takes; a slash would make a folder of a name that is a metric too (``loss``)."""
    return "".join(c if c.isalnum() or c in "_-. " else "_" for c in name.replace("/", "."))
