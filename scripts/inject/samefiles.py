"""Whether two folders hold the same runs, data sets and exports: every file byte for byte, but for what `DIFFERENT` lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DIFFERENT = {
    "ledger.jsonl": "times, and what happened: kills leave no line, restarts add some",
    "train.log": "times, and what was shown",
    "lock": "empty; it may be there or not",
    "profile.json": "with `--profile` alone: times, and a start for each command",
    "stages/*/progress.json": "`seconds` and `peak_bytes`",
    "stages/*/metrics.jsonl": "`seconds` of each step",
    "stages/*/probes.jsonl": "`seconds` of each measurement, and which ones were left out to keep to a `share` of time",
    "stages/*/manifest.json": "size and checksum of these three, and its own",
    "aside/*/*/progress.json": "of a stage set aside, or in `candidates/`: as of a committed one, its other files too",
    "gates/*.json": "when it was decided, checksums of manifests, and its own",
    "certificates/stages/*.json": "the run's id, times and `seconds`, checksums of manifests, and its own",
    "certificates/statement.json": "the run's id, its ledger's lines and certificates, and its own checksum",
    "certificates/statement.sig": "the signature over that",
    "report/report.json": "`seconds`, `peak_bytes`, shares of time, what probes left out, the profile; as in `gates/`",
    "report/report.md": "the same",
    "report/report.html": "the same, and their sum in words",
}
"""What two runs of the same config on the same machine and number of processes may differ in."""
_TIMES = ("seconds", "share of step time", "peak memory, MiB")
"""Columns of a report that may."""


def compared(expected: Path, found: Path) -> list[str]:
    """Files that differ, are missing or are left over."""
    here, there = contents(expected), contents(found)
    out = [f"missing: {name}" for name in here.keys() - there.keys()]
    out += [f"left over: {name}" for name in there.keys() - here.keys()]
    return sorted(out + [f"differs: {name}" for name in here.keys() & there.keys() if here[name] != there[name]])


def contents(root: Path) -> dict[str, bytes]:
    """Content of every file by path, without what may differ; empty folders that are hidden count too."""
    out: dict[str, bytes] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        inside = name.split("/", 2)[2] if name.startswith("runs/") and name.count("/") > 1 else ""
        if path.is_dir():
            if path.name.startswith("."):
                out[f"{name}/"] = b""
        elif inside not in ("lock", "ledger.jsonl", "train.log", "profile.json") and path.suffix != ".lock":
            out[name] = comparable(inside, path.read_bytes())
    return out


def comparable(name: str, data: bytes) -> bytes:
    """Bytes of a file without seconds and what follows from them; `name` is relative to the run."""
    name = re.sub(r"^(candidates|aside)/([^/]+)/\2/", r"stages/\2/", name)
    if name.startswith("stages/") and name.endswith("/progress.json"):
        return plain({**json.loads(data), "seconds": 0, "peak_bytes": 0})
    if name.startswith("stages/") and name.endswith(("/metrics.jsonl", "/probes.jsonl")):
        return b"\n".join(plain({**json.loads(line), "seconds": 0}) for line in data.splitlines())
    if re.fullmatch(r"stages/[^/]+/manifest\.json", name):
        files = json.loads(data)["files"]
        return plain(
            {k: v if k not in ("progress.json", "metrics.jsonl", "probes.jsonl") else None for k, v in files.items()}
        )
    if name.startswith(("certificates/stages/", "gates/")):
        return plain(without_times(json.loads(data)))
    if name == "certificates/statement.json":
        return plain(sorted(json.loads(data)["certificates"]))
    if name == "certificates/statement.sig":
        return b""
    if name == "report/report.json":
        found = json.loads(data)
        gates = [without_times(gate) for gate in found.get("gates", [])]
        return plain(timeless({**found, "gates": gates, "profile": None}))
    if name == "report/report.md":
        text = re.sub(r"## Where time went\n.*?(?=^## )", "", dateless(data), flags=re.DOTALL | re.MULTILINE)
        return "\n".join(timeless_rows(text.split("\n"))).encode()
    if name == "report/report.html":
        text = re.sub(r'<td data-sort="[\d.]+">[^<]* (s|min|h|MiB)</td>', "<td>S</td>", dateless(data))
        text = re.sub(r'"seconds": ?[\d.e-]+', '"seconds":0', text)  # the chart of times
        text = re.sub(
            r'<h2 class="section">(Where time went|What probes took)</h2>.*?(?=<h2)', "", text, flags=re.DOTALL
        )
        text = re.sub(r", at most [\d,]+ MiB of memory", "", text)
        return re.sub(r"Training took [^:<]+:", "Training took S:", text).encode()
    return data


def without_times(value: Any) -> Any:
    """A certificate without what is another one in each run."""
    gone = {"run", "issued", "time", "seal", "manifest_sha256", "manifests_sha256", "stage_sha256", "before_sha256"}
    return {k: without_times(v) for k, v in value.items() if k not in gone} if isinstance(value, dict) else value


def dateless(data: bytes) -> str:
    """A report without when somebody decided on a gate."""
    return re.sub(r" at \d{4}-\d\d-\d\dT[\d:.]+\+00:00", " at T", data.decode())


def timeless(value: Any) -> Any:
    """Without seconds, and without shares that stand beside them."""
    if isinstance(value, dict):
        gone = {"seconds", "share", "peak_bytes"} if "seconds" in value else set()
        return {k: 0 if k in gone else timeless(v) for k, v in value.items()}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def timeless_rows(lines: Sequence[str]) -> Iterator[str]:
    """Lines of Markdown whose tables have no content in columns of `_TIMES`."""
    hidden: set[int] = set()
    for before, line in zip(["", *lines], lines, strict=False):
        cells = line.split(" | ")
        if not before.startswith("|"):
            hidden = {k for k, cell in enumerate(cells) if cell.strip("| ") in _TIMES}
            yield line
        else:
            yield " | ".join("" if k in hidden else cell for k, cell in enumerate(cells))


def plain(value: Any) -> bytes:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True).encode()
