"""Amounts of memory as people write them; units are powers of 1024."""

from __future__ import annotations


def size_text(count: int) -> str:
    """``13.2 GiB``, or MiB below a tenth of one."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 // 10 else f"{count / 2**20:.1f} MiB"


def parse_size(text: str) -> int:
    """Bytes of ``24G``, ``512M``, ``1.5T`` or a plain number; units are powers of 1024. Raises ValueError otherwise."""
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    shift = units.get(number[-1:], 0)
    value = float(number[:-1] if shift else number) * (1 << shift)
    if not 0 < value < float("inf"):
        raise ValueError(f"'{text}' is no amount of memory")
    return int(value)
