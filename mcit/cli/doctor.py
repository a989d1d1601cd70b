"""``mcit doctor``: versions, devices, cache, disk and write speed."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from mcit.core.errors import StateError


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("doctor", help="versions, devices, disk and write speed")
    parser.add_argument("--runs-dir", default="runs", help="folder whose disk is measured (default: runs)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="doctor")


def run(args: argparse.Namespace) -> int:
    """Collect and print; exit 5 when the folder cannot be written."""
    from mcit.cli.common import environment
    from mcit.core.paths import cache_dir, shipped

    folder = next(p for p in [Path(args.runs_dir), *Path(args.runs_dir).absolute().parents] if p.exists())
    report = {
        **environment(),
        "cache": str(cache_dir()),
        "configs": str(shipped("configs")),
        "cores": os.cpu_count(),
        "free_gb": round(shutil.disk_usage(folder).free / 1e9, 1),
        "write_mb_s": write_speed(folder),
    }
    if args.json:
        print(json.dumps(report))
        return 0
    from rich.console import Console

    console = Console()
    for key, value in report.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                console.print(f"{key}.{name}: {inner or 'not installed'}", highlight=False)
        else:
            console.print(f"{key}: {value}", highlight=False)
    return 0


def write_speed(folder: Path, *, mb: int = 64) -> float:
    """Megabytes per second of one flushed write. Raises StateError when the folder is not writable."""
    block = os.urandom(1 << 20)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".mcit-doctor-") as file:
            start = time.monotonic()
            for _ in range(mb):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return round(mb / (time.monotonic() - start), 1)
    except OSError as error:
        raise StateError(
            f"cannot be written ({error.strerror})", where=str(folder), fix="choose another --runs-dir"
        ) from None
