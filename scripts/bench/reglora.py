"""RegLoRA's penalty and gradient against the dense product with autograd: time and peak memory, in one run.

    python scripts/bench/reglora.py [--json FILE] [--size 4096] [--rank 128] [--share 0.02] [--threads N] [--rounds 15]

Both ways see the same fp32 matrices and keys and are timed in turn, round by round; figures are medians with the smallest and
largest round. Memory is what a fresh process's resident set grows by at its peak while one way runs (Linux only).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mcit.methods.formulas.lowrank import key_count, key_mean, pack_keys

Gradients = tuple[Tensor, ...]
# every tensor is mapped when made and unmapped when freed, so that none hides in memory freed before the measurement
UNCACHED = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def problem(size: int, *, rank: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """B, A and random keys of one square matrix."""
    draw = torch.Generator().manual_seed(0)
    B = torch.randn(size, rank, generator=draw).requires_grad_()
    A = torch.randn(rank, size, generator=draw).requires_grad_()
    chosen = torch.randint(size * size, (2 * key_count((size, size), share),), generator=draw).unique()
    thinned = chosen[torch.randperm(len(chosen), generator=draw)[: key_count((size, size), share)]].sort().values
    return B, A, pack_keys(thinned, shape=(size, size))


def dense(B: Tensor, A: Tensor, keys: Tensor) -> Gradients:
    """The product as a whole, left to autograd."""
    return torch.autograd.grad((B @ A).flatten()[keys.long()].abs().mean(), [B, A])


def tiled(B: Tensor, A: Tensor, keys: Tensor) -> Gradients:
    """mcit's way."""
    return torch.autograd.grad(key_mean(B, A, keys), [B, A])


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Gradients]] = {"dense": dense, "tiled": tiled}


def status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def peak_bytes(way: str, args: argparse.Namespace) -> int:
    """Growth of this process's resident set while `way` runs once; libraries are loaded by a small case before."""
    WAYS[way](*problem(2048, rank=8, share=args.share))
    inputs = problem(args.size, rank=args.rank, share=args.share)
    with contextlib.suppress(OSError):  # else the peak counts from the start of the process, which is no smaller
        Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    WAYS[way](*inputs)
    return status("VmHWM") - before


def times(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per call of each way, `rounds` times in turn after one round of warm-up."""
    inputs = problem(args.size, rank=args.rank, share=args.share)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_ in range(args.rounds + 1):
        for way, call in WAYS.items():
            start = time.perf_counter()
            call(*inputs)
            if round_:
                seconds[way].append(time.perf_counter() - start)
    return seconds


def difference(args: argparse.Namespace) -> float:
    """Largest relative difference between the two ways' gradients."""
    inputs = problem(args.size, rank=args.rank, share=args.share)
    pairs = zip(dense(*inputs), tiled(*inputs), strict=True)
    return max(float((x - y).norm() / x.norm()) for x, y in pairs)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(x for x in lines if x.startswith("model name")).partition(":")[2].strip()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every figure of the run."""
    seconds = times(args)
    memory = {}
    for way in WAYS:
        command = [sys.executable, __file__, *args.argv, "--peak", way]
        memory[way] = int(subprocess.run(command, check=True, capture_output=True, text=True, env=UNCACHED).stdout)
    middle = {way: statistics.median(x) for way, x in seconds.items()}
    rounds = [d / t for d, t in zip(seconds["dense"], seconds["tiled"], strict=True)]
    return {
        "case": {"size": args.size, "rank": args.rank, "share": args.share, "rounds": args.rounds},
        "seconds": {w: {"median": middle[w], "min": min(x), "max": max(x)} for w, x in seconds.items()},
        "times_faster": {
            "of_medians": middle["dense"] / middle["tiled"],
            "of_fastest": min(seconds["dense"]) / min(seconds["tiled"]),
            "min": min(rounds),
            "max": max(rounds),
        },
        "peak_bytes": memory,
        "memory_share": memory["tiled"] / memory["dense"],
        "gradient_difference": difference(args),
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.argv = [f"--{x}={getattr(args, x)}" for x in ("size", "rank", "share", "threads")]
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak_bytes(args.peak, args))
        return
    found = measure(args)
    seconds, faster, memory = found["seconds"], found["times_faster"], found["peak_bytes"]
    print(
        f"{args.size} x {args.size}, rank {args.rank}, keys {args.share:.1%}; penalty and gradient, {args.rounds} rounds"
    )
    for way in WAYS:
        s = seconds[way]
        print(f"  {way:<6} {s['median'] * 1e3:8.1f} ms ({s['min'] * 1e3:.1f} to {s['max'] * 1e3:.1f})", end="")
        print(f"  peak {memory[way] / 2**20:6.1f} MiB")
    print(f"  {faster['of_medians']:.1f} times faster ({faster['min']:.1f} to {faster['max']:.1f} by round,", end="")
    print(f" fastest rounds {faster['of_fastest']:.1f})", end="")
    print(f", {found['memory_share']:.1%} of the memory; gradients differ by {found['gradient_difference']:.1e}")
    print(f"  {found['machine']}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
