"""What a forget stage did: how much is forgotten, what it cost, and whether it came back.

Scores in percent; a score that was not measured is None, and so is what needs it. Formulas of GS-LoRA, arXiv:2403.11530: the
drop is taken from the score just before the stage. Pure Python, no rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Cell = float | None


def drop(before: Cell, after: Cell) -> Cell:
    """``Acc_f(before) - Acc_f(after)``; negative when the stage taught what it was to forget."""
    return None if before is None or after is None else before - after


def h_mean(retained: Cell, dropped: Cell) -> Cell:
    """``2 Acc_r Drop / (Acc_r + Drop)``; 0 where nothing was dropped or nothing is retained."""
    if retained is None or dropped is None:
        return None
    return 2 * retained * dropped / (retained + dropped) if retained > 0 and dropped > 0 else 0.0


def resurgence(after: Cell, later: Sequence[Cell]) -> Cell:
    """Largest rise of the score after any later stage; negative if it only fell, None without a later score."""
    found = [score for score in later if score is not None]
    return None if after is None or not found else max(found) - after


def mean(scores: Sequence[Cell]) -> Cell:
    """Mean of scores; None if one is missing, or there is none."""
    found = [score for score in scores if score is not None]
    return sum(found) / len(found) if found and len(found) == len(scores) else None


def losses(before: Mapping[str, Cell], after: Mapping[str, Cell]) -> dict[str, float]:
    """Points lost per task that has both scores; negative for a gain."""
    lost = {task: drop(before[task], after.get(task)) for task in before}
    return {task: value for task, value in lost.items() if value is not None}


def robustness(before: Cell, forgotten: Cell, attacked: Cell) -> Cell:
    """``(UE_N - UE_orig) / (UE_0 - UE_orig)`` with ``UE = 100 - accuracy``: how much of what was forgotten an attack leaves.

    Given accuracies before the stage, after it, and after the attack; None where nothing was forgotten. Protocol of
    Unlearn-Smooth (Fan et al., 2025, arXiv:2502.05374).
    """
    if before is None or forgotten is None or attacked is None or before <= forgotten:
        return None
    return (before - attacked) / (before - forgotten)


def recovery(clean: Cell, corrupted: Cell, now: Cell) -> Cell:
    """``(Acc_now - Acc_corrupted) / (Acc_clean - Acc_corrupted)``: 1 where the old knowledge is back.

    Accuracies on the true answers; negative where still more is lost, None where nothing was corrupted. After RESTOR
    (arXiv:2411.00204).
    """
    if clean is None or corrupted is None or now is None or clean <= corrupted:
        return None
    return (now - corrupted) / (clean - corrupted)
