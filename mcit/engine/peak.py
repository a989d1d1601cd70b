"""Most memory that this process has had since a moment: on its CUDA device, or in host memory where it has none."""

from __future__ import annotations

import contextlib
import re
import resource
from pathlib import Path

import torch

_SELF = Path("/proc/self")


def begin_peak(device: torch.device) -> None:
    """Forget peaks before this moment; where the system cannot (no Linux, a closed /proc), host peaks are of all time."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        (_SELF / "clear_refs").write_text("5")  # resets VmHWM, see proc(5)


def peak_bytes(device: torch.device) -> int:
    """Bytes of tensors on a CUDA device, else of the whole process in host memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", (_SELF / "status").read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
