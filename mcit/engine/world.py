"""Rank and world size, from torch.distributed in this one place."""

from __future__ import annotations

import torch.distributed as dist


def rank() -> int:
    """This process's rank; 0 when nothing is distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    """Number of processes; 1 when nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
