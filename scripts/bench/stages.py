"""What a stage costs beyond its steps, and whether memory stays flat over a long stream of stages.

    python scripts/bench/stages.py [--config scole-tiny] [--stages 200] [--set KEY=VALUE …] [--census] [--json FILE]

The run is made in this process. Per stage: seconds of training and commit without those of the steps (`fixed`), of scoring,
of everything else (report page, looking for what is done), and resident memory at its end. `--census` shows what grew
between a quarter of the stream and its end: Python objects by type, bytes that malloc has handed out and not got back, and
the lines of code that hold the most new memory (tracemalloc; slow).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


class Mallinfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


def handed_out() -> dict[str, float]:
    """MB that malloc has handed out (heap and mappings), and that lie free in its heap."""
    call = ctypes.CDLL(None).mallinfo2
    call.restype = Mallinfo
    info = call()
    return {"used": (info.uordblks + info.hblkhd) / 1e6, "free": info.fordblks / 1e6}


def resident() -> float:
    """MB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Watch:
    """Times the parts of each stage from outside."""

    def __init__(self, stages: int, census: bool) -> None:
        self.stages, self.census = stages, census
        self.lines: list[dict[str, Any]] = []
        self._spent = {"train": 0.0, "score": 0.0}
        self._last = time.perf_counter()
        self._before: tuple[Counter[str], dict[str, float], tracemalloc.Snapshot] | None = None

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its seconds added to `name`."""

        def wrapped(*args: Any, **given: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **given)
            finally:
                self._spent[name] += time.perf_counter() - start

        return wrapped

    def after_stage(self, refresh: Callable[[], None]) -> Callable[[], None]:
        """What the run does after a stage's scores, and a line about the stage."""

        def wrapped() -> None:
            refresh()
            now = time.perf_counter()
            self.lines.append(
                {"seconds": now - self._last, **self._spent, "resident": resident(), "malloc": handed_out()}
            )
            self._spent = dict.fromkeys(self._spent, 0.0)
            if self.census and len(self.lines) in (self.stages // 4, self.stages):
                self._count()
            self._last = time.perf_counter()

        return wrapped

    def _count(self) -> None:
        gc.collect()
        found = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
        memory = handed_out()
        if self._before is None:
            tracemalloc.start()
            self._before = found, memory, tracemalloc.take_snapshot()
            return
        before, then, old = self._before
        print(f"malloc: {then} -> {memory}")
        for name, count in (found - before).most_common(20):
            print(f"  {count:>8} more {name}")
        for line in tracemalloc.take_snapshot().compare_to(old, "lineno")[:20]:
            print(f"  {line}")


def steps_seconds(run: Path) -> list[float]:
    """Seconds of the steps of each stage, by its metrics."""
    out = []
    for folder in sorted((run / "stages").iterdir(), key=lambda path: path.name):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        out.append(sum(line["seconds"] for line in lines))
    return out


def main() -> int:
    """Run, watch, print."""
    parser = argparse.ArgumentParser(description="fixed cost and memory of the stages of a long stream")
    parser.add_argument("--config", default="scole-tiny")
    parser.add_argument("--stages", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--census", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from mcit.cli import run as verb
    from mcit.cli.main import main as mcit
    from mcit.train import sequence

    watch = Watch(args.stages, args.census)
    sequence.train = watch.timed("train", sequence.train)
    sequence.score = watch.timed("score", sequence.score)
    page = verb.Page.__init__

    def opened(self: Any, *given: Any, **more: Any) -> None:
        page(self, *given, **more)
        self.refresh = watch.after_stage(self.refresh)

    verb.Page.__init__ = opened  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as home:
        sets = [f"stages.stages={args.stages}", *args.set]
        code = mcit(["run", args.config, "--runs-dir", home, *(part for one in sets for part in ("--set", one))])
        if code:
            return int(code)
        (run,) = [path for path in Path(home).iterdir() if (path / "stages").is_dir()]
        steps = steps_seconds(run)
    for line, seconds in zip(watch.lines, steps, strict=True):
        line["fixed"] = line["train"] - seconds
        line["rest"] = line["seconds"] - line["train"] - line["score"]
    part = max(1, args.stages // 4)
    ends = (watch.lines[:part], watch.lines[-part:])
    result: dict[str, Any] = {"stages": args.stages, "config": args.config, "load": os.getloadavg()[0]}
    for name in ("fixed", "score", "rest", "resident"):
        result[name] = [statistics.median(line[name] for line in end) for end in ends]
        print(f"{name:<9} median of the first {part} stages {result[name][0]:.3f}, of the last {result[name][1]:.3f}")
    grown = statistics.mean(x["resident"] for x in ends[1]) / statistics.mean(x["resident"] for x in ends[0]) - 1
    result["grown"] = grown
    print(f"mean resident memory of the last {part} stages is {100 * grown:+.2f} % of that of the first {part}")
    if args.json:
        args.json.write_text(json.dumps({**result, "lines": watch.lines}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
