"""Bytes of stored weights and of optimiser state, tensor by tensor.

Quantised layouts: Dettmers et al., "QLoRA", NeurIPS 2023, arXiv:2305.14314, section 3 (nf4: blocks of 64 with one scale,
scales in blocks of 256 with double quantisation); Dettmers et al., "8-bit Optimizers via Block-wise Quantization",
ICLR 2022, arXiv:2110.02861 (blocks of 256, two moments). Sizes are those of bitsandbytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Storage = Literal["fp32", "bf16", "nf4", "int8"]
PLAIN_BYTES = {"fp32": 4, "bf16": 2}
_NF4_BLOCK, _SCALE_BLOCK, _MOMENT_BLOCK = 64, 256, 256
_SMALLEST_8BIT = 4096
"""Tensors with fewer numbers keep 32-bit moments."""
_NF4_CODE, _SCALE_CODE, _SCALE_OFFSET = 16 * 4, 256 * 4, 4


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the model during a stage."""

    shape: tuple[int, ...]
    storage: Storage
    trained: bool
    block: str = ""
    """The layer it belongs to; what is gathered together under ZeRO-3."""
    projector: bool = False
    """Whether it is in the optimiser's groups of the projector."""

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def stored_bytes(weight: Weight, *, double_quant: bool = True) -> int:
    """Bytes of a tensor as it is stored: trained ones in fp32, quantised ones with their scales and code tables."""
    count = weight.count
    if weight.trained:
        return 4 * count
    if weight.storage == "nf4":
        scales = -(-count // _NF4_BLOCK)
        if not double_quant:
            return -(-count // 2) + 4 * scales + _NF4_CODE
        return -(-count // 2) + scales + 4 * -(-scales // _SCALE_BLOCK) + _NF4_CODE + _SCALE_CODE + _SCALE_OFFSET
    if weight.storage == "int8":
        return count + 4 * weight.shape[0]
    return PLAIN_BYTES[weight.storage] * count


def frozen_bytes(weights: Mapping[str, Weight], *, double_quant: bool = True) -> int:
    """Bytes of everything that does not train."""
    return sum(stored_bytes(w, double_quant=double_quant) for w in weights.values() if not w.trained)


def trained_count(weights: Mapping[str, Weight]) -> int:
    """Numbers that train."""
    return sum(w.count for w in weights.values() if w.trained)


def held_gradients(weights: Mapping[str, Weight], nproc: int) -> int:
    """Numbers of the gradients that a rank keeps after reduction under ZeRO-1 and ZeRO-2, at most over ranks.

    A rank owns an equal slice of each flattened optimiser group; of a tensor that the cut goes through it keeps the
    whole gradient, of which its part is a view.
    """
    groups: dict[tuple[bool, bool], list[int]] = {}
    for weight in weights.values():
        if weight.trained:
            groups.setdefault((weight.projector, len(weight.shape) > 1), []).append(weight.count)
    held = [0] * nproc
    for counts in groups.values():
        size = -(-sum(counts) // nproc)
        start = 0
        for count in counts:
            for rank in range(start // size, min(nproc - 1, (start + count - 1) // size) + 1):
                held[rank] += count
            start += count
    return max(held)


def moment_bytes(counts: Iterable[int], kind: str) -> int:
    """Bytes of AdamW's state for tensors of so many numbers each; `kind` as in ``optim.kind``.

    Two fp32 moments are 8 bytes a number; two 8-bit moments 2 bytes and 8 more per block of 256.
    """
    if "8bit" not in kind:
        return sum(8 * n for n in counts)
    return sum(8 * n if n < _SMALLEST_8BIT else 2 * n + 8 * -(-n // _MOMENT_BLOCK) for n in counts)
