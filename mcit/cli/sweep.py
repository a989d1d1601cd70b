"""``mcit sweep``: orders of the stages times seeds, each a run of its own, with one report of all.

Every run is a process of its own (``mcit run``), so that nothing of one is left in the next, on any number of ranks.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from mcit.cli.common import config_arguments
from mcit.cli.team import nproc_argument
from mcit.core.types import JsonDict


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("sweep", help="train a config in several orders and with several seeds; one report")
    config_arguments(parser)
    parser.add_argument(
        "--orders",
        nargs="+",
        default=[],
        metavar="A,B,…",
        help="orders of all stages, by number or name (default: as it is)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="seeds (default: the config's)")
    parser.add_argument("--runs-dir", default="runs", help="folder of run directories (default: runs)")
    nproc_argument(parser)
    parser.set_defaults(verb="sweep")


def run(args: argparse.Namespace) -> int:
    """Write the configs, train what is not done yet, report. Returns the exit code of the first run that fails."""
    import yaml

    from mcit.core.files import write_text
    from mcit.core.stored import write_sealed
    from mcit.plan.plan import read_config
    from mcit.plan.sweep import read_orders, shared_with, stage_labels, sweep_name, variations
    from mcit.report.sweep import write_sweep
    from mcit.runs.layout import SWEEP

    config, _ = read_config(args.config, args.set)
    orders, seeds = read_orders(config, args.orders), args.seeds or [config.seed]
    made, runs_dir = variations(config, orders, seeds), Path(args.runs_dir)
    folder = runs_dir / sweep_name(config, orders, seeds)
    names = stage_labels(config)

    def record() -> JsonDict:
        runs = [
            {
                "order": [names[k - 1] for k in one.order],
                "seed": one.config.seed,
                "run": one.run(runs_dir).layout.root.name,
            }
            for one in made
        ]
        return {"name": config.name, "runs": runs}

    write_sealed(folder / SWEEP, record())
    for number, one in enumerate(made, start=1):
        file = folder / "configs" / f"{one.config.name}.yaml"
        write_text(file, yaml.safe_dump(one.resolved, sort_keys=True, allow_unicode=True))
        command = ["run", str(file), "--runs-dir", str(runs_dir), *(["--nproc", str(args.nproc)] if args.nproc else [])]
        shared = shared_with(made, number - 1)
        if shared is not None:
            command += ["--from", str(shared[0].run(runs_dir).layout.root), "--stage", str(shared[1])]
        else:
            command += ["--new"]
        print(f"run {number} of {len(made)}: {one.config.name}", file=sys.stderr, flush=True)
        code = _child(command)
        if code:
            return code
    paths = write_sweep(folder)
    show(folder, paths, as_json=args.json)
    return 0


def show(folder: Path, paths: dict[str, Path], *, as_json: bool, mode: str | None = None) -> None:
    """The report and where it is."""
    from mcit.report.sweep import markdown, read_sweep

    report = read_sweep(folder, mode=mode)
    if as_json:
        files = {kind: str(path) for kind, path in paths.items()}
        print(json.dumps({"sweep": str(folder), "report": files, **report}, ensure_ascii=False))
        return
    print(markdown(report))
    for kind, path in paths.items():
        print(f"{kind}: {path}")


def _child(command: list[str]) -> int:
    """One run to its end; signals that come here are handed on once each, so it checkpoints and ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mcit", *command], stdout=subprocess.DEVNULL, start_new_session=True
    )

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
