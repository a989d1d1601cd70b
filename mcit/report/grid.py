"""The accuracy matrix of a run that is being written, small enough for a terminal: read score by score as they appear."""

from __future__ import annotations

from pathlib import Path

from mcit.core.errors import StateError
from mcit.evals.score import SCORE, read_score
from mcit.report.matrix import read_plan
from mcit.runs.layout import RunLayout

_STAGES = 8
_NAME = 14
_LEAST, _MOST = 6, 10


class Grid:
    """Accuracies in percent by row (0 is the base) and task; each score is read once."""

    def __init__(self, run: Path) -> None:
        """Raises StateError if `run` is no run folder."""
        plan = read_plan(run)
        self._layout, self._mode = RunLayout(run), plan["scorer_mode"]
        self.tasks: list[str] = plan["tasks"]
        self.rows = ["base", *(stage["folder"] for stage in plan["stages"])]
        self.cells: dict[tuple[int, str], float] = {}

    def update(self) -> bool:
        """Read scores that are new; whether there were any. One that is being written is read the next time."""
        before = len(self.cells)
        for row in range(len(self.rows)):
            home = self._layout.evals(row)
            for task in self.tasks if home.is_dir() else ():
                if (row, task) not in self.cells and (home / task / SCORE).is_file():
                    try:
                        score = read_score(home / task)
                    except StateError:
                        continue
                    if score is not None:
                        self.cells[row, task] = score[self._mode]["accuracy"]
        return len(self.cells) > before

    def lines(self, width: int = 80) -> list[str]:
        """Head and rows as texts that fit `width` columns: the newest rows, the tasks scored last."""
        shown = sorted({row for row, _ in self.cells})[-_STAGES:]
        if not shown:
            return []
        scored = [task for task in self.tasks if any((row, task) in self.cells for row in shown)]
        cell = max(_LEAST, min(_MOST, max(map(len, scored))))
        room = max(1, (width - _NAME) // (cell + 1))
        tasks = scored[-room:]
        head = ["after", *(_cut(task, cell) for task in tasks)]
        if len(tasks) < len(scored):
            head[0] = f"after (+{len(scored) - len(tasks)})"
        rows = []
        for row in shown:
            values = [self.cells.get((row, task)) for task in tasks]
            rows.append([_cut(self.rows[row], _NAME), *("–" if v is None else f"{v:.1f}" for v in values)])
        return [
            f"{line[0]:<{_NAME}}{''.join(f' {text:>{cell}}' for text in line[1:])}".rstrip() for line in [head, *rows]
        ]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
