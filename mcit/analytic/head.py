"""A ridge classifier that knows which rows it learned, by their checksums: what can be asked to forget single rows.

Analytic continual unlearning (Tang et al., ACU, 2025, arXiv:2505.12239) for heads on frozen features: exact learning and
forgetting, no rows kept. Kept of a row are a checksum of what it says and shows, and one of its features, so that a row that
was never learned, or that now has other features, is refused by name instead of spoiling the head.
Shapes: N rows, D features, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcit.analytic.ridge import Ridge
from mcit.core.errors import StateError
from mcit.core.files import digest_of, sha256_file
from mcit.core.types import Batch, JsonDict, Row

NAME = "head"
"""Of the tensors of a head in a store: kinds ``gram``, ``cross`` and ``weight``."""


def row_key(row: Row) -> str:
    """Checksum of what a row shows and says."""
    shown = [sha256_file(Path(row.root) / name) for name in row.images]
    return digest_of([shown, [[turn.role, " ".join(turn.text.split())] for turn in row.turns]])


def unit_features(x_ND: Tensor) -> Tensor:
    """Features with a root mean square of 1, so that none is above the root of D, and a constant 1 behind them; (N, D + 1)."""
    x_ND = x_ND.double()
    x_ND = x_ND * (x_ND.shape[1] ** 0.5 / x_ND.norm(dim=1, keepdim=True).clamp(min=1e-12))
    return torch.cat([x_ND, torch.ones_like(x_ND[:, :1])], 1)


def prompt_states(hidden_BTD: Tensor, batch: Batch, *, mean: bool = False) -> Tensor:
    """The state at the last token before each row's last answer, or the mean over all tokens up to it; (B, D) fp32."""
    answer_BT = batch.answer_BT.to(hidden_BTD.device)
    begins_BT = answer_BT[:, 1:] & ~answer_BT[:, :-1]  # place t: an answer begins at t + 1
    place_B = begins_BT.shape[1] - 1 - begins_BT.flip(1).int().argmax(1)
    hidden_BTD = hidden_BTD.float()
    if not mean:
        return hidden_BTD[torch.arange(len(place_B)), place_B]
    before_BT = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)[None] <= place_B[:, None]
    used_BT = before_BT & batch.attention_BT.to(hidden_BTD.device).bool()
    return (hidden_BTD * used_BT[..., None]).sum(1) / used_BT.sum(1, keepdim=True)


class RowHead:
    """One column per class; a row's target is 1 in its class and 0 elsewhere."""

    def __init__(self, *, gamma: float, bits: int, classes: Sequence[str] = ()) -> None:
        self.gamma, self.bits = gamma, bits
        self.classes = list(classes)
        self.rows: dict[str, dict[str, str]] = {name: {} for name in classes}
        """By class, the checksum of each row's features by the checksum of the row."""
        self.ridge: Ridge | None = None

    def learn(self, label: str, x_ND: Tensor, keys: Sequence[str]) -> None:
        """Add rows of one class; those that it has already are left as they are."""
        if self.ridge is None:
            self.ridge = Ridge.empty(x_ND.shape[1] + 1, len(self.classes), gamma=self.gamma, bits=self.bits)
        if label not in self.rows:
            self.classes.append(label)
            self.rows[label] = {}
            self.ridge.extend(1)
        x_ND = self.ridge.rounded(unit_features(x_ND).cpu())
        new = [k for k, key in enumerate(keys) if key not in self.rows[label] and key not in keys[:k]]
        self.ridge.learn(x_ND[new], self._targets(label, len(new)))
        self.rows[label].update((keys[k], _fingerprint(x_ND[k])) for k in new)

    def holds(self, key: str) -> list[str]:
        """Classes that a row was learned as."""
        return [label for label in self.classes if key in self.rows[label]]

    def forget(self, x_ND: Tensor, keys: Sequence[str], where: Sequence[str]) -> int:
        """Take rows away from every class they were learned as; returns how many times.

        Raises StateError, changing nothing, for a row that now has other features than it was learned with.
        """
        if self.ridge is None:
            return 0
        x_ND = self.ridge.rounded(unit_features(x_ND).cpu())
        for k, key in enumerate(keys):
            for label in self.holds(key):
                if self.rows[label][key] != _fingerprint(x_ND[k]):
                    fix = "make the request on the machine and with the versions that the run was trained with"
                    raise StateError("has other features now than it was learned with", where=where[k], fix=fix)
        done = 0
        for label in self.classes:
            mine = [k for k, key in enumerate(keys) if key in self.rows[label] and key not in keys[:k]]
            if mine:
                self.ridge.forget(x_ND[mine], self._targets(label, len(mine)))
                for k in mine:
                    del self.rows[label][keys[k]]
                done += len(mine)
        return done

    def weight(self) -> Tensor:
        """(D + 1, K) fp64; the last row is that of the constant."""
        if self.ridge is None:
            raise StateError("nothing was learned yet", where="analytic head", fix="train a stage first")
        return self.ridge.weight()

    def _targets(self, label: str, count: int) -> Tensor:
        y_NK = torch.zeros(count, len(self.classes), dtype=torch.float64)
        y_NK[:, self.classes.index(label)] = 1
        return y_NK

    # ---- on disk ------------------------------------------------------------------------------------------------------
    def state(self) -> JsonDict:
        """What `load` needs beside the tensors."""
        return {"gamma": self.gamma, "bits": self.bits, "classes": self.classes, "rows": self.rows}

    def tensors(self) -> dict[str, Tensor]:
        """``gram`` (D + 1, D + 1), ``cross`` and ``weight`` (D + 1, K), fp64; empty while nothing was learned."""
        if self.ridge is None:
            return {}
        return {"gram": self.ridge.gram_DD, "cross": self.ridge.cross_DK, "weight": self.weight()}

    @classmethod
    def load(cls, state: Mapping[str, Any], gram_DD: Tensor | None, cross_DK: Tensor | None) -> RowHead:
        """The head that `state` and `tensors` were written of."""
        head = cls(gamma=float(state["gamma"]), bits=int(state["bits"]), classes=state["classes"])
        head.rows = {label: dict(state["rows"][label]) for label in head.classes}
        if gram_DD is not None and cross_DK is not None:
            head.ridge = Ridge(gram_DD, cross_DK, gamma=head.gamma, bits=head.bits)
        return head


def _fingerprint(x_D: Tensor) -> str:
    return hashlib.sha256(x_D.cpu().contiguous().numpy().tobytes()).hexdigest()[:32]
