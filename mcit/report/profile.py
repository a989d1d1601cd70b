"""Where the time of a run's profiled commands went: sums of ``profile.json``, for the report and for ``mcit status``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mcit.core.profile import EVERY, PARTS, STEP
from mcit.core.types import JsonDict
from mcit.runs.layout import RunLayout
from mcit.runs.profile import read_profile


def profile_of(run: Path) -> JsonDict | None:
    """Sums over all profiled commands, whole and by stage; None where none was. Raises StateError for a damaged file.

    Seconds by part; tokens a second and utilisation are of optimiser steps, the latter a share of `matmul_flops`.
    """
    starts = read_profile(RunLayout(run))
    if not starts:
        return None
    entries = [(start, stage) for start in starts for stage in start["stages"]]
    names = list(dict.fromkeys(stage["name"] for _, stage in entries))
    stages = [{"stage": name, **_summed(e for e in entries if e[1]["name"] == name)} for name in names]
    last = starts[-1]
    about = {key: last[key] for key in ("device", "dtype", "threads", "processes", "matmul_flops")}
    return {"commands": len(starts), **about, **_summed(entries), "stages": stages}


def _summed(entries: Iterable[tuple[JsonDict, JsonDict]]) -> JsonDict:
    given = list(entries)
    parts = {part: sum(stage["seconds"].get(part, 0.0) for _, stage in given) for part in PARTS}
    steps, tokens = (sum(stage[key] for _, stage in given) for key in ("steps", "tokens"))
    stepping = sum(parts[part] for part in STEP)
    work, best = (sum(values) for values in zip(*(_work(*entry) for entry in given), strict=True))
    peaks = [stage["peak_bytes"] for _, stage in given if stage["peak_bytes"] is not None]
    return {
        "seconds": sum(parts.values()),
        "parts": parts,
        "steps": steps,
        "tokens": tokens,
        "tokens_per_second": tokens / stepping if tokens else None,
        "utilisation": work / best if work else None,
        "peak_bytes": max(peaks, default=None),
    }


def _work(start: JsonDict, stage: JsonDict) -> tuple[float, float]:
    """FLOPs of steps, and what the machine could have done in their time; of steps that were not counted, if there are some."""
    tokens, seconds = stage["counted_tokens"], stage["counted_seconds"]
    if not tokens:
        return 0.0, 0.0
    others = stage["tokens"] - tokens
    work = stage["flops"] / tokens * others if others else stage["flops"]
    if others:
        seconds = sum(stage["seconds"].get(part, 0.0) for part in STEP) - seconds
    return work, seconds * start["matmul_flops"]


def about_text(profile: JsonDict) -> str:
    """What was measured and how FLOPs are counted, in sentences."""
    where = f"{profile['device']}, {profile['threads']} threads" if profile["device"] == "cpu" else profile["device"]
    return (
        f"Of {_commands(profile['commands'])}; a moment belongs to one part only. Tokens a second: over optimiser steps, "
        "padding not counted. Utilisation: FLOPs of matrix products, convolutions and attention, forward and backward, "
        f"counted in one step of {EVERY} and taken to the others by their tokens, over the time of the steps; as a share of "
        f"the rate of one large {profile['dtype']} matrix product, {profile['matmul_flops'] / 1e9:,.1f} GFLOP/s ({where}). "
        "What is computed again under gradient checkpointing, and padding, count as work. Peak memory: of one process while "
        "a stage trains."
    )


def _commands(count: int) -> str:
    return "one command" if count == 1 else f"{count} commands"


HEAD = ("stage", "seconds", "steps", "tokens", "tokens a second", "utilisation", "peak memory, MiB")
"""Titles of the columns of `stage_rows`."""


def part_rows(profile: JsonDict) -> list[list[str]]:
    """Part, seconds and percent of all time; parts that took none are left out."""
    whole = profile["seconds"] or 1.0
    return [
        [part, f"{seconds:.2f}", f"{100 * seconds / whole:.1f}"]
        for part, seconds in profile["parts"].items()
        if seconds > 0
    ]


def stage_rows(profile: JsonDict) -> list[list[str]]:
    """A row per stage, and one for all."""
    entries = [*profile["stages"], {"stage": "all", **profile}]
    return [[str(entry["stage"]), *_numbers(entry)] for entry in entries]


def _numbers(entry: JsonDict) -> Sequence[str]:
    def shown(value: Any, digits: int = 0) -> str:
        return "–" if value is None else f"{value:,.{digits}f}"

    peak = entry["peak_bytes"]
    return [
        shown(entry["seconds"], 2),
        shown(entry["steps"]),
        shown(entry["tokens"]),
        shown(entry["tokens_per_second"]),
        shown(entry["utilisation"], 2),
        shown(None if peak is None else peak / 2**20),
    ]


def line(profile: JsonDict) -> str:
    """All of it in a line: time, parts above a twentieth of it, speed."""
    whole = profile["seconds"] or 1.0
    large = sorted(((s / whole, part) for part, s in profile["parts"].items() if s >= whole / 20), reverse=True)
    parts = ", ".join(f"{part} {100 * share:.0f} %" for share, part in large)
    speed = profile["tokens_per_second"]
    tokens = "" if speed is None else f"; {speed:,.0f} tokens/s in steps"
    used = "" if profile["utilisation"] is None else f", utilisation {profile['utilisation']:.2f}"
    return f"{profile['seconds']:,.0f} s of {_commands(profile['commands'])}: {parts}{tokens}{used}"
