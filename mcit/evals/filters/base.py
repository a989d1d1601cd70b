"""What a generation filter is: a change of the scores of the next token, of the finished answer, or of both.

Filters are applied in listed order and are named in the score's file, so that a filtered score is never taken for a
plain one. Shapes: B rows, T positions so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcit.core.types import Row

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FilterContext:
    """What a filter may look at while answers are written."""

    rows: Sequence[Row]
    input_ids_BT: Tensor
    """Prompts, padded on the left, and what has been written so far."""
    prompt_length: int
    """Positions of the padded prompts."""
    tokenizer: Any


class Filter:
    """Base of all filters: does nothing. Overriding neither hook costs nothing."""

    def logits(self, step: int, scores_BV: Tensor, ctx: FilterContext) -> Tensor:
        """Scores of the token number `step` (from 0), changed or not; must not depend on rows of other batches."""
        return scores_BV

    def text(self, answer: str, row: Row) -> str:
        """The finished answer, changed or not."""
        return answer


def edits_scores(one: Filter) -> bool:
    """Whether the filter overrides `logits`."""
    return type(one).logits is not Filter.logits
