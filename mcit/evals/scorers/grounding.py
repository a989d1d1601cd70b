"""Overlap of boxes (RefCOCO and the like).

Strict: brackets go, then the first and the last character go, whatever they are, and four comma-separated numbers are
read: "0.36" at the end is read as 0.3. Both boxes are multiplied by the longer side of the picture (the row's ``size``),
which decides exact halves, and areas keep their sign. Right if the intersection over union is more than 0.5.
Fixed: four numbers wherever they stand; right from 0.5 on.
"""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core.errors import DataError
from mcit.evals.parse import Box, iou, read_box
from mcit.evals.scorers.base import Gold, Scorer

_HALF = 0.5
_DIGITS = 9
"""Overlap is compared at so many decimals: half of a box is half, whatever its coordinates are in binary."""


class Grounding(Scorer):
    """Enough overlap or not."""

    version = 2
    published = "SEFE eval_grounding.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """The published parse, scale and threshold; a row without ``size`` is not scaled."""
        box, wanted = published_box(prediction), gold_box(gold)
        if box is None:
            return 0.0
        side = max(gold.get("size") or (1.0,))
        return float(_signed_iou([x * side for x in box], [x * side for x in wanted]) > _HALF)

    def fixed(self, prediction: str, gold: Gold) -> float:
        """All digits and the usual threshold."""
        box = read_box(prediction)
        return float(box is not None and round(iou(box, gold_box(gold)), _DIGITS) >= _HALF)

    def lenient(self, prediction: str, gold: Gold) -> float:
        """A box has no looser form than `fixed`."""
        return max(self.strict(prediction, gold), self.fixed(prediction, gold))

    def constants(self, golds: Sequence[Gold]) -> list[str]:
        """Every gold box, the mean box and the whole picture."""
        boxes = [gold_box(gold) for gold in golds]
        mean = [sum(box[i] for box in boxes) / len(boxes) for i in range(4)] if boxes else []
        texts = [_text(box) for box in [*boxes, (0.0, 0.0, 1.0, 1.0), *([mean] if mean else [])]]
        return list(dict.fromkeys(texts))


def _signed_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union where a reversed box has a negative area; 0 for a union that is not positive."""
    inside = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside
    return inside / union if union > 0 else 0.0


def published_box(text: str) -> Box | None:
    """The box that the published code reads; None where it fails."""
    parts = text.replace("[", "").replace("]", "")[1:-1].split(",")
    if len(parts) != 4:
        return None
    try:
        x1, y1, x2, y2 = map(float, parts)
    except ValueError:
        return None
    return (x1, y1, x2, y2)


def gold_box(gold: Gold) -> Box:
    """The row's ``box``, else the four numbers of its answer. Raises DataError when there is neither."""
    given = gold.get("box")
    box = read_box(str(gold.get("answer", ""))) if given is None else read_box(",".join(map(str, given)))
    if box is None:
        where = str(gold.get("question", ""))
        raise DataError("the test row has no gold box", where=where, fix="add four numbers as box")
    return box


def _text(box: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in box) + "]"
