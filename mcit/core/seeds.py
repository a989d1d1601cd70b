"""One derived seed per use; no shared global random stream."""

from __future__ import annotations

import hashlib


def seed_for(run: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on the run's seed and on what it is used for, and on nothing else."""
    text = "/".join([str(run), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
