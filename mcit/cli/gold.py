"""``mcit gold``: plan and run a config's sequence without the rows that its stages forget."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mcit.cli import team
from mcit.cli.common import config_arguments, trust_argument
from mcit.cli.run import go
from mcit.cli.team import nproc_argument


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    text = "train the sequence of a config without the rows that it forgets, to compare a forgetful model with"
    parser = verbs.add_parser("gold", help=text)
    config_arguments(parser)
    what = "leave out the rows of this recipe; repeatable (default: all that stages forget)"
    parser.add_argument("--without", action="append", default=[], metavar="RECIPE", help=what)
    parser.add_argument("--plan", action="store_true", help="print the config of the gold run and do nothing")
    parser.add_argument("--runs-dir", default="runs", help="folder of run directories (default: runs)")
    nproc_argument(parser)
    trust_argument(parser)
    parser.set_defaults(verb="gold")


def run(args: argparse.Namespace) -> int:
    """Derive the config, then do with it what ``mcit run`` does with one; continues the run where it stopped."""
    import yaml

    from mcit.plan.gold import gold_config
    from mcit.plan.plan import make_plan, read_config

    config = gold_config(read_config(args.config, args.set)[0], args.without)
    text = yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
    if args.plan:
        print(text, end="")
        return 0
    code = team.started(args, config)
    if code is not None:
        return code

    def planned(out: Any) -> Any:
        return make_plan(config, announce=out.line, runs_dir=Path(args.runs_dir))

    def opened(plan: Any, start: dict[str, Any]) -> Any:
        from mcit.runs.run import open_run

        return open_run(plan, runs_dir=Path(args.runs_dir), new=True, **start)

    return go(planned, opened, engine=config.engine, config_text=text, as_json=args.json, trust_mtime=args.trust_mtime)
