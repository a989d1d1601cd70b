"""Unit vectors searched by cosine: exactly with numpy, above a number of entries with an inverted file of faiss.

Shapes: N entries, D dimension.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcit.core.errors import StateError
from mcit.core.optional import needed

EXACT = 50_000
"""Entries up to which a search looks at all of them."""
_PROBED = 8
"""Part of the lists of the inverted file that a search looks through: one of so many."""


class Vectors:
    """Rows of unit length; a row keeps its place until others are dropped."""

    def __init__(self, dimension: int, *, exact: int = EXACT) -> None:
        self._rows_ND = np.zeros((0, dimension), dtype=np.float32)
        self._count, self._exact = 0, exact
        self._index: Any = None
        """Of faiss, over the first ``_index.ntotal`` rows."""

    def __len__(self) -> int:
        return self._count

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""
        return self._rows_ND.shape[1]

    @property
    def matrix_ND(self) -> NDArray[np.float32]:
        """All rows, (N, D) fp32 of length 1."""
        return self._rows_ND[: self._count]

    @property
    def few(self) -> bool:
        """Whether there are so few that looking at all of them is quick."""
        return self._count <= self._exact

    @property
    def exact(self) -> bool:
        """Whether a search looks at every entry: there are few, or faiss (extra ``memory``) is not installed."""
        return self.few or find_spec("faiss") is None

    def add(self, vectors_ND: NDArray[Any], *, unit: bool = False) -> None:
        """Rows of any length but 0, or of `unit` length, which keep their bits.

        Raises StateError for other dimensions and for vectors that have no direction.
        """
        new_ND = np.asarray(vectors_ND, dtype=np.float32)
        if new_ND.ndim != 2 or new_ND.shape[1] != self.dimension:
            what = f"holds vectors of {self.dimension} numbers, was given shape {new_ND.shape}"
            raise StateError(what, where="memory", fix="use the encoder that the memory was begun with")
        needed_rows = self._count + len(new_ND)
        if needed_rows > len(self._rows_ND):
            room_ND = np.zeros((max(needed_rows, 2 * len(self._rows_ND)), self.dimension), dtype=np.float32)
            room_ND[: self._count] = self.matrix_ND
            self._rows_ND = room_ND
        self._rows_ND[self._count : needed_rows] = new_ND if unit else _unit(new_ND)
        self._count = needed_rows

    def drop(self, places: list[int]) -> None:
        """Remove rows; those after them move up."""
        if places:
            self._rows_ND = np.delete(self.matrix_ND, places, axis=0)
            self._count, self._index = len(self._rows_ND), None

    def search(self, query_D: NDArray[Any], count: int) -> list[tuple[int, float]]:
        """Places and cosines of the `count` nearest rows, nearest first; of equal ones the earlier come first."""
        count = min(count, self._count)
        if count < 1:
            return []
        query_D = _unit(np.asarray(query_D, dtype=np.float32)[None])[0]
        if self.exact:
            places_K = np.arange(self._count)
            cosines_K = self.matrix_ND @ query_D
        else:
            cosines_K, places_K = (found[0] for found in self._built().search(query_D[None], count))
            cosines_K, places_K = cosines_K[places_K >= 0], places_K[places_K >= 0]
        if len(cosines_K) > count:
            least = np.partition(cosines_K, len(cosines_K) - count)[len(cosines_K) - count]
            near_K = np.flatnonzero(cosines_K >= least)
            cosines_K, places_K = cosines_K[near_K], places_K[near_K]
        order_K = np.lexsort((places_K, -cosines_K))[:count]
        return [(int(places_K[k]), float(cosines_K[k])) for k in order_K]

    def _built(self) -> Any:
        """faiss's inverted file over all rows; trained anew after rows were dropped, or have doubled."""
        faiss = needed("faiss", where="memory")
        lists = max(1, int(4 * self._count**0.5))
        if self._index is None or self._count > 2 * self._index.ntotal:
            self._lists = faiss.IndexFlatIP(self.dimension)  # faiss does not hold it
            self._index = faiss.IndexIVFFlat(self._lists, self.dimension, lists, faiss.METRIC_INNER_PRODUCT)
            self._index.train(self.matrix_ND)
        if self._index.ntotal < self._count:
            self._index.add(self.matrix_ND[self._index.ntotal :])
        self._index.nprobe = max(1, self._index.nlist // _PROBED)
        return self._index


def _unit(rows_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths_N = np.linalg.norm(rows_ND, axis=1)
    if not np.isfinite(lengths_N).all() or not (lengths_N > 0).all():
        fix = "use another encoder, or fp32: its vectors hold NaN, infinity or nothing but 0"
        raise StateError("was given a vector without a direction", where="memory", fix=fix)
    out_ND: NDArray[np.float32] = (rows_ND / lengths_N[:, None]).astype(np.float32)
    return out_ND
