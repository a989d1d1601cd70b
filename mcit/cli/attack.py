"""``mcit attack``: try to have back what a stage forgot, on a copy that never becomes part of the run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mcit.cli.common import print_json
from mcit.core.errors import ConfigError


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("attack", help="try to have back what a stage forgot, on a copy of its model")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--stage", type=int, required=True, metavar="K", help="number of the forget stage")
    kinds = ("unload", "relearn", "neighbour", "benign")
    parser.add_argument("--kind", choices=kinds, default="relearn", help="see docs/forgetting.md (default: relearn)")
    parser.add_argument("--rows", default="20,40,60", metavar="N,…", help="rows to train on (default: 20,40,60)")
    parser.add_argument("--rank", type=int, default=64, help="of the attack's own adapter (default: 64)")
    parser.add_argument("--lr", type=float, default=1e-4, help="learning rate (default: 1e-4)")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the rows (default: 1)")
    text = "attack a model that never saw the rows too: a gold run, or 'base' (default), or 'none'"
    parser.add_argument("--control", default="base", metavar="RUN", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="attack")


def run(args: argparse.Namespace) -> int:
    """Attack, rewrite the report, print what came of it."""
    from mcit.cli.common import Lines, StopFlag, config_of_run, plan_as_begun, start_torch
    from mcit.cli.run import finish
    from mcit.runs.run import open_existing

    rows = _numbers(args)
    found = open_existing(Path(args.run))
    config_of_run(found)
    stop = StopFlag()
    stop.install()
    start_torch()
    from mcit.plan.gold import check_gold
    from mcit.train.attack import Attack, Subject, attack, attack_problems
    from mcit.train.kit import gold_reached
    from mcit.train.sequence import Session

    out = Lines()
    with found.locked():
        plan = plan_as_begun(found)
        committed = {s.index: s for s in plan.stages if found.is_committed(s.folder)}
        if args.stage not in committed:
            fix = f"one of {', '.join(map(str, committed))}" if committed else "train a stage first"
            raise ConfigError(f"stage {args.stage} is not committed", where="--stage", fix=fix)
        stage = committed[args.stage]
        attack_problems(plan, stage)
        session = Session(plan, found, out)
        controls = []
        if args.control == "base":
            controls = [Subject(session, 0, "base")]
        elif args.control != "none":
            other = open_existing(Path(args.control))
            check_gold(plan, config_of_run(other), where=args.control)
            gold = Session(plan_as_begun(other), other, out)
            controls = [Subject(gold, gold_reached(plan, gold, stage), "gold")]
        what = Attack(args.kind, rows, args.rank, args.lr, args.epochs)
        record = attack(session, stage, what, controls=controls, reporter=out, stop=stop)
        finish(found.layout.root)
    if args.json:
        print_json(record)
    else:
        _show(record)
    return 0


def _numbers(args: argparse.Namespace) -> tuple[int, ...]:
    """Checked numbers of the command line. Raises ConfigError."""
    try:
        rows = tuple(int(part) for part in args.rows.split(","))
    except ValueError:
        raise ConfigError(f"'{args.rows}' is no list of numbers", where="--rows", fix="write 20,40,60") from None
    for name, values in (("rows", rows), ("rank", (args.rank,)), ("lr", (args.lr,)), ("epochs", (args.epochs,))):
        if not all(0 < value < float("inf") for value in values):
            raise ConfigError("is not above 0", where=f"--{name}", fix="give positive numbers")
    return rows


def _show(record: dict[str, Any]) -> None:
    from mcit.report.attacks import attack_lines

    for line in attack_lines([record]):
        print(line)
