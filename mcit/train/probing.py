"""Probes inside a stage: who measures when, within which share of step time, and what is on record."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from mcit.core import lookup
from mcit.core.errors import TrainingError
from mcit.core.files import canonical_json
from mcit.core.schema import EvalConfig
from mcit.core.types import JsonDict, ProbeSpec, Row
from mcit.engine import world
from mcit.evals.generator import sharing
from mcit.methods.compose import MethodSet
from mcit.probes.base import Probe
from mcit.train.context import Context
from mcit.train.probeview import ProbeView


class Record(Protocol):
    """Where measurements go: the stage's draft."""

    def probe(self, line: JsonDict) -> None:
        """One line of probes.jsonl."""

    def probed(self) -> list[JsonDict]:
        """The lines so far."""


@dataclass
class _Running:
    name: str
    probe: Probe
    rows: Mapping[str, Sequence[Row]]
    lines: list[JsonDict] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Of each measurement so far."""
        return [line["seconds"] for line in self.lines if "seconds" in line]

    def last(self, part: str) -> float:
        """Seconds that a part of a measurement took when it was last made; of the rest for ``""``."""
        for line in reversed(self.lines):
            taken = {name: entry["seconds"] for name, entry in line.get("parts", {}).items() if "seconds" in entry}
            if part in taken:
                return float(taken[part])
            if not part and "seconds" in line:
                return float(line["seconds"] - sum(taken.values()))
        return 0.0


class Probing:
    """The probes of a stage, after their rows are drawn."""

    def __init__(
        self, specs: Sequence[ProbeSpec], ctx: Context, methods: MethodSet, *, config: EvalConfig, watched: bool = False
    ) -> None:
        """Where ``stability`` is `watched` no measurement of it is left out: when a stage ends is no matter of the clock."""
        self._ctx, self._methods, self._config = ctx, methods, config
        self._always = {"stability"} if watched else set()
        running = []
        for spec in specs:
            probe = make(spec)
            running.append(_Running(spec.name, probe, probe.rows(ctx.data)))
        self._running = [each for each in running if any(len(rows) for rows in each.rows.values())]

    def resume(self, record: Record) -> None:
        """Take in what was measured before a restart."""
        lines = record.probed() if self._running else []
        for each in self._running:
            each.lines = [line for line in lines if line["probe"] == each.name]

    def lines(self, name: str) -> list[JsonDict]:
        """What a probe has on record in this stage."""
        return next((each.lines for each in self._running if each.name == name), [])

    def due(self, step: int, total: int) -> bool:
        """Whether any probe asks to measure after `step` updates."""
        return any(each.probe.due(step, total) for each in self._running)

    def at(self, step: int, total: int, record: Record, *, trained: float) -> float:
        """Measure what is due after `step` updates, which took `trained` seconds; returns the seconds it took.

        `total` are the updates of the stage, those done where it ends early. A probe with a line of this step is passed over.
        """
        started = time.monotonic()
        for each in self._running:
            if any(line["step"] == step for line in each.lines) or not each.probe.due(step, total):
                continue
            share = Share(each, trained, last=step == total)
            always = step in (0, total) or each.name in self._always
            why = "" if always else share.refused("")
            content = {"left_out": why} if why else self._measured(each, step, total, share)
            line = {"step": step, "probe": each.name, **content}
            each.lines.append(line)
            record.probe(line)
        return time.monotonic() - started

    def _measured(self, each: _Running, step: int, total: int, share: Share) -> JsonDict:
        ctx, before, started = self._ctx, _random_state(), time.monotonic()
        watch, ctx.watch = ctx.watch, lambda done, total: None
        where = f"stage {ctx.stage.name}, step {step}"
        earlier = tuple(each.lines)
        how: dict[str, Any] = {"mode": self._config.mode, "sharing": sharing(self._config), "allowance": share}
        view = ProbeView(ctx, self._methods, step=step, total=total, earlier=earlier, **how)
        try:
            values = each.probe.measure(each.rows, view)
        finally:
            ctx.watch = watch
        if _random_state() != before:
            fix = "draw from random.Random or a torch.Generator of its own, seeded by ctx.seed"
            raise TrainingError(f"probe {each.name} draws from a global random generator", where=where, fix=fix)
        try:
            canonical_json(values)
        except (TypeError, ValueError) as error:
            fix = "return numbers, strings and lists by name"
            raise TrainingError(f"what probe {each.name} measures is no JSON ({error})", where=where, fix=fix) from None
        parts = {"parts": view.parts} if view.parts else {}
        return {"seconds": round(time.monotonic() - started, 4), "values": values, **parts}


class Share:
    """A probe's share of step time in a stage, by rank 0's clock; the `last` measurement has its part kept for it."""

    def __init__(self, each: _Running, trained: float, *, last: bool) -> None:
        self._each, self._trained, self._start = each, trained, time.monotonic()
        self._reserved = 0.0 if last else each.last("")

    def refused(self, part: str) -> str:
        """Why a measurement (``""``) or a part of the present one would take too much time; empty if it does not."""
        share = self._each.probe.config.share
        if share is None:
            return ""
        spent = sum(self._each.seconds) + (time.monotonic() - self._start if part else 0.0)
        spent += self._each.last(part) + self._reserved
        over = bool(world.gather_objects(spent > share * self._trained)[0])
        return f"{spent:.2f} s would pass {share:.0%} of {self._trained:.2f} s" if over else ""


def make(spec: ProbeSpec) -> Probe:
    """A probe with its settings."""
    probe: Probe = lookup.class_of("probes", spec.name, base=Probe)(spec.config)
    return probe


def _random_state() -> tuple[object, ...]:
    """Of every global generator: Python's, numpy's, torch's on CPU and device."""
    device = torch.cuda.get_rng_state().numpy().tobytes() if torch.cuda.is_available() else b""
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().numpy().tobytes(), device
