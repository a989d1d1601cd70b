"""Answers where each row has an adapter of its own: a batch is answered member by member, in the pool's order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from mcit.core.types import JsonDict, Row
from mcit.evals.filters.base import Filter
from mcit.evals.generate import Answerer


class Pool(Protocol):
    """Members of a pool on a model."""

    members: list[str]

    def choose(self, rows: Sequence[Row]) -> list[str]:
        """The member that answers each row."""

    def using(self, member: str | None) -> AbstractContextManager[None]:
        """That member acts, or none."""


class PooledAnswerer:
    """Routes rows, then lets `inner` answer the rows of each member with it switched on."""

    def __init__(self, inner: Answerer, pool: Pool) -> None:
        self._inner, self._pool = inner, pool

    def answer(self, rows: Sequence[Row], *, filters: Sequence[Filter] = (), device: Any) -> list[JsonDict]:
        """As `Generator.answer`, with the ``member`` of each row."""
        chosen = self._pool.choose(rows)
        out: dict[int, JsonDict] = {}
        for member in self._pool.members:
            places = [k for k, name in enumerate(chosen) if name == member]
            if places:
                with self._pool.using(member):
                    made = self._inner.answer([rows[k] for k in places], filters=filters, device=device)
                out |= {k: {**answer, "member": member} for k, answer in zip(places, made, strict=True)}
        return [out[k] for k in range(len(rows))]
