"""What a generation filter is: a change of the scores of the next token, of the finished answer, or of both.

Filters are applied in listed order and are named in the score's file, so that a filtered score is never taken for a
plain one. Shapes: B rows, T positions so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mcit.core.config import Config
from mcit.core.types import Row

if TYPE_CHECKING:
    from torch import Tensor


class FilterConfig(Config):
    """Settings of a filter."""


@dataclass(frozen=True)
class FilterContext:
    """What a filter may look at while answers are written."""

    rows: Sequence[Row]
    """One for each row of the scores, so each as often as there are beams."""
    input_ids_BT: Tensor
    """Prompts, padded on the left, and what has been written so far."""
    prompt_length: int
    """Positions of the padded prompts."""
    tokenizer: Any


@dataclass(frozen=True)
class Preparation:
    """What a filter may look at before a batch is answered."""

    rows: Sequence[Row]
    tokenizer: Any
    state: Mapping[str, Path]
    """Folder of what each method named in `Filter.reads` left behind."""
    states: Callable[[], Tensor]
    """Last hidden state at the last prompt token of each row, (B, D) fp32; a forward pass when it is first called."""
    hidden: Callable[[str, bool], Tensor]
    """(layer as in ``hidden:<layer>``, mean) -> states at the last prompt token, or their mean over the prompt; (B, D) fp32."""
    embeddings: Callable[[], Tensor]
    """The model's table of input embeddings, (V, D)."""


class Filter:
    """Base of all filters: does nothing. Overriding no hook costs nothing.

    Settings, version, source and the state that is read are part of the identity of predictions.
    """

    Config: type[FilterConfig] = FilterConfig
    version: ClassVar[int] = 1
    """Goes up when answers change; predictions of another version are made again."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Methods whose state is read."""
    beams: ClassVar[int] = 1
    """Beams to search with; the most of any filter counts. Scores then have B times as many rows."""

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def prepare(self, ctx: Preparation) -> None:
        """Before each batch of rows."""

    def acts_on(self, rows: Sequence[Row]) -> Sequence[bool]:
        """Which of the prepared rows the filter has anything to do with; the others are answered as without it, to the byte."""
        return [True] * len(rows)

    def logits(self, step: int, scores_BV: Tensor, ctx: FilterContext) -> Tensor:
        """Scores of the token number `step` (from 0), changed or not; must not depend on rows of other batches."""
        return scores_BV

    def text(self, answer: str, row: Row) -> str:
        """The finished answer, changed or not."""
        return answer


def edits_scores(one: Filter) -> bool:
    """Whether the filter overrides `logits`."""
    return type(one).logits is not Filter.logits


def picks_rows(one: Filter) -> bool:
    """Whether the filter overrides `acts_on`."""
    return type(one).acts_on is not Filter.acts_on


def prepares(one: Filter) -> bool:
    """Whether the filter overrides `prepare`."""
    return type(one).prepare is not Filter.prepare
