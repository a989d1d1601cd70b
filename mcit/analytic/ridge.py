"""Ridge regression that learns and forgets rows exactly, in any order: sums of products and one solve.

``W = (XᵀX + γI)⁻¹ XᵀY`` of ACIL (Zhuang et al., NeurIPS 2022, arXiv:2205.14922) for learning; forgetting is the same with the
sign turned, which is the only algebra that is exact. Kept are the sums ``XᵀX`` and ``XᵀY`` in fp64. With features rounded to
multiples of ``2^-bits`` every product and sum is a whole multiple of ``2^-2bits`` below ``2^53`` of them, so nothing is ever
rounded: after forgetting the sums have the very bits of sums that never held the rows.
Shapes: N rows, D features, K targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcit.core.errors import StateError

_LEAST = 1e-9
"""How far below 0 an eigenvalue of ``XᵀX`` may seem, as a share of the largest."""


class Ridge:
    """The sums and what follows from them."""

    def __init__(self, gram_DD: Tensor, cross_DK: Tensor, *, gamma: float, bits: int | None = None) -> None:
        """`bits` None takes features as they are: exact up to rounding of fp64."""
        self.gram_DD, self.cross_DK, self.gamma, self.bits = gram_DD.double(), cross_DK.double(), gamma, bits

    @classmethod
    def empty(cls, features: int, targets: int, *, gamma: float, bits: int | None = None) -> Ridge:
        """Nothing learned yet: weights are 0."""
        zeros = torch.zeros(features, features, dtype=torch.float64)
        return cls(zeros, zeros.new_zeros(features, targets), gamma=gamma, bits=bits)

    def extend(self, targets: int) -> None:
        """Append targets that no row has yet."""
        self.cross_DK = torch.cat([self.cross_DK, self.cross_DK.new_zeros(len(self.cross_DK), targets)], 1)

    def rounded(self, x_ND: Tensor) -> Tensor:
        """Features as they are learned, fp64."""
        x_ND = x_ND.double()
        return x_ND if self.bits is None else (x_ND * 2**self.bits).round() / 2**self.bits

    def learn(self, x_ND: Tensor, y_NK: Tensor) -> None:
        """Add rows. Raises StateError where sums would no longer be exact."""
        self._add(x_ND, y_NK, 1)

    def forget(self, x_ND: Tensor, y_NK: Tensor) -> None:
        """Take learned rows away. Raises StateError, changing nothing, for rows that cannot have been learned."""
        x_ND = self.rounded(x_ND)
        left_DD = self.gram_DD - x_ND.T @ x_ND
        least = _LEAST * max(float(self.gram_DD.diagonal().max()), self.gamma)
        eye_DD = torch.eye(len(left_DD), dtype=left_DD.dtype, device=left_DD.device)
        # it fails where an eigenvalue lies below -least; that costs less than to know the eigenvalue
        if torch.linalg.cholesky_ex(left_DD + least * eye_DD).info:
            value = float(torch.linalg.eigvalsh(left_DD)[0])
            what = f"rows to forget were never learned: what is left would have the eigenvalue {value:.3g}"
            raise StateError(what, where="ridge", fix="ask for rows that were learned, with the targets they had")
        self._add(x_ND, y_NK, -1)

    def _add(self, x_ND: Tensor, y_NK: Tensor, sign: int) -> None:
        x_ND, y_NK = self.rounded(x_ND), y_NK.double()
        gram_DD = self.gram_DD + sign * (x_ND.T @ x_ND)
        limit = float("inf") if self.bits is None else 2.0 ** (53 - 2 * self.bits)
        if not float(gram_DD.abs().max()) < limit:
            what = f"sums of products reach {float(gram_DD.abs().max()):.3g}, above {limit:.3g} they would be rounded"
            raise StateError(what, where="ridge", fix="use fewer bits, or smaller features")
        self.gram_DD, self.cross_DK = gram_DD, self.cross_DK + sign * (x_ND.T @ y_NK)

    def weight(self) -> Tensor:
        """W, (D, K) fp64."""
        return torch.cholesky_solve(self.cross_DK, torch.linalg.cholesky(self._regular()))

    def inverse(self) -> Tensor:
        """R = ``(XᵀX + γI)⁻¹``, (D, D) fp64."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self._regular()))

    def _regular(self) -> Tensor:
        eye_DD = torch.eye(len(self.gram_DD), dtype=torch.float64, device=self.gram_DD.device)
        return self.gram_DD + self.gamma * eye_DD
