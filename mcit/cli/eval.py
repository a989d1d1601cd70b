"""``mcit eval``: score stages of a run, any model on recipes, or stored predictions again."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.cli.common import combine_arguments, print_json
from mcit.cli.team import nproc_argument
from mcit.core.config import suggestion
from mcit.core.doing import doing, told_to
from mcit.core.errors import ConfigError
from mcit.core.interfaces import Reporter
from mcit.core.ranks import agreed, on_first
from mcit.core.types import JsonDict

if TYPE_CHECKING:
    from mcit.core.schema import KitConfig
    from mcit.core.types import Plan
    from mcit.models.combine import Combination
    from mcit.runs.run import Run


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("eval", help="score a run's stages, or its stored predictions again")
    parser.add_argument("run", metavar="RUN", nargs="?", help="folder of the run")
    parser.add_argument("--model", metavar="FOLDER", help="score this model in place of a run, on each --recipe")
    parser.add_argument("--recipe", action="append", default=[], metavar="R", help="with --model; repeatable")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="with --model: base.dtype=fp32, eval.rows=100"
    )
    parser.add_argument("--out", metavar="DIR", help="with --model: folder of answers and scores (default: evals/…)")
    parser.add_argument(
        "--after", type=int, metavar="K", help="only after stage K; 0 is the base (default: every stage)"
    )
    parser.add_argument(
        "--task", action="append", default=[], metavar="T", help="only this task, seen or not; repeatable"
    )
    parser.add_argument("--rescore", action="store_true", help="score stored predictions; needs no model")
    parser.add_argument(
        "--predictions", metavar="FILE", help="score answers made elsewhere (JSON or JSONL) to the rows of one --task"
    )
    parser.add_argument(
        "--kit",
        nargs="*",
        metavar="KEY=VALUE",
        help="measure forget stages with the forgetting kit (eval.kit's settings)",
    )
    parser.add_argument(
        "--gold", metavar="RUN", help="a run of mcit gold: measure the forget stages under its model too"
    )
    combine_arguments(parser, "--combined")
    nproc_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="eval")


def run(args: argparse.Namespace) -> int:
    """Score and rewrite the report."""
    from mcit.runs.run import open_existing

    if args.model or args.run is None:
        return _model(args)
    for name in ("recipe", "set", "out"):
        if getattr(args, name):
            raise ConfigError("goes with --model only", where=f"--{name}", fix="leave it out, or the RUN")
    found = open_existing(Path(args.run))
    if args.combine and (args.predictions or args.rescore or args.after is not None):
        what = "goes with none of --after, --rescore and --predictions"
        raise ConfigError(what, where="--combined", fix="choose the stages with --stages")
    if (args.kit is not None or args.gold) and (args.predictions or args.rescore or args.combine):
        what = "goes with none of --predictions, --rescore and --combined"
        raise ConfigError(what, where="--kit", fix="measure stages of the run with it")
    if args.predictions:
        return _elsewhere(args, found)
    from mcit.cli.run import finish, show

    if args.rescore:
        from mcit.evals.evaluate import rescore

        with found.locked():
            rescore(found.layout.root)
            paths = finish(found.layout.root)
        show(found.layout.root, paths, as_json=args.json)
        return 0
    from mcit.cli import team
    from mcit.cli.common import StopFlag, combination_of, config_of_run, start_torch
    from mcit.cli.common import reporter as make_reporter
    from mcit.cli.log import Logged

    config = config_of_run(found)
    code = team.started(args, config)
    if code is not None:
        return code
    stop = StopFlag(quiet=team.started_by_mcit())
    stop.install()
    combination = combination_of(args, found)
    out = Logged(make_reporter())
    with contextlib.closing(out), told_to(out.doing):
        doing("loading torch and transformers")
        start_torch()
        with team.joined(config.engine) as ranks:
            team.same_run(ranks, lambda: found)
            found.share(ranks)
            out.watch(found.layout.root)
            with found.locked():
                asked = {"combination": combination, "kit": args.kit, "gold": args.gold}
                generate(found, after=args.after, tasks=args.task, reporter=out, stop=stop, **asked)
                paths = on_first(ranks, lambda: finish(found.layout.root))
    if ranks.rank() == 0:
        show(found.layout.root, paths, as_json=args.json)
    return 0


def _model(args: argparse.Namespace) -> int:
    """Score a model by itself and print its scores."""
    if args.run is not None or not args.model or not args.recipe:
        fix = "give a RUN, or --model FOLDER and --recipe R"
        raise ConfigError("say what to score, once, and on what", where="mcit eval", fix=fix)
    given = ("after", "task", "rescore", "predictions", "combine", "nproc")
    if extra := [name for name in given if getattr(args, name)]:
        raise ConfigError("goes with a RUN only", where=f"--{extra[0]}", fix="leave it out")
    from mcit.cli.common import Lines, StopFlag, start_torch

    stop = StopFlag()
    stop.install()
    start_torch()
    from mcit.train.standalone import Standalone, model_config

    one = Standalone(model_config(args.model, args.set), recipes=args.recipe, reporter=Lines())
    name = f"{one.plan.model_path.name}-{one.digest[:8]}"
    out = Path(args.out) if args.out else Path("evals") / name
    scores = one.score(out, stop=stop)
    if args.json:
        print_json({"model": str(one.plan.model_path), "out": str(out), "scores": scores})
        return 0
    for score in scores:
        print(_score_line(score))
    print(f"out: {out}")
    return 0


def _score_line(score: JsonDict) -> str:
    return (
        f"{score['task']}: strict {score['strict']['accuracy']:.2f} %, fixed {score['fixed']['accuracy']:.2f} %, "
        f"format-valid {score['format_validity']:.2f} % of {score['n']} rows"
    )


def _elsewhere(args: argparse.Namespace, found: Any) -> int:
    """Score a file of answers and print the score; the matrix holds the run's own answers alone."""
    from mcit.cli.common import config_of_run
    from mcit.evals.elsewhere import score_elsewhere

    if len(args.task) > 1 or args.rescore or args.after is not None:
        what = "goes with at most one --task, and with neither --after nor --rescore"
        raise ConfigError(what, where="--predictions", fix="give one file per task")
    task, limit = next(iter(args.task), None), config_of_run(found).eval.rows
    with found.locked():
        folder, score = score_elsewhere(found.layout.root, Path(args.predictions), task=task, limit=limit)
        found.ledger.append("eval", elsewhere=str(folder.relative_to(found.layout.root)))
    if args.json:
        print_json({"folder": str(folder), **score})
    else:
        print(f"{_score_line(score)}\n{folder / 'score.json'}")
    return 0


def generate(
    found: Run,
    *,
    after: int | None,
    tasks: Sequence[str],
    reporter: Reporter,
    stop: Callable[[], bool],
    combination: Combination | None = None,
    kit: Sequence[str] | None = None,
    gold: str | None = None,
) -> None:
    """Score stages of a run that is locked: one or all, tasks that are due or those named; or a combination of stages.

    With settings of the forgetting `kit` (``KEY=VALUE``) forget stages are measured with it too, with `gold` under that run's
    model as well.

    Raises ConfigError for a stage that is not committed or a task that the run does not have.
    """
    from mcit.cli.common import config_of_run, plan_as_begun
    from mcit.cli.team import same_plan
    from mcit.plan.gold import check_gold
    from mcit.runs.gates import done_stages, stage_choice
    from mcit.runs.run import open_existing
    from mcit.train.kit import measure_gold, measure_kit
    from mcit.train.sequence import Session, due, score, score_combined

    plan = same_plan(found.ranks, lambda: plan_as_begun(found))
    if after is not None:
        on_first(found.ranks, lambda: stage_choice(found, after, where="--after"))
    by_name = {t.name: t for t in (*plan.tasks, *plan.forget_tasks) if not t.gone}
    for name in tasks:
        if name not in by_name:
            raise agreed(ConfigError(f"no task '{name}' in this run", where="--task", fix=suggestion(name, by_name)))
    session, wanted = Session(plan, found, reporter), tuple(by_name[n] for n in tasks)
    plan = session.plan  # without stages that were rejected
    if combination is not None:
        due_then = wanted or due(plan, max(combination.stages))
        score_combined(session, combination, reporter=reporter, tasks=due_then, stop=stop)
        return
    measured = _kit(plan, kit, gold)
    if measured is not None:
        measure_kit(session, 0, measured, reporter=reporter, stop=stop)
    for stage in [after] if after is not None else on_first(found.ranks, lambda: done_stages(found)):
        score(session, stage, reporter=reporter, tasks=wanted or due(plan, stage), stop=stop)
        if measured is not None:
            measure_kit(session, stage, measured, reporter=reporter, stop=stop)
    if measured is not None and gold:
        other = open_existing(Path(gold))
        check_gold(plan, config_of_run(other), where=gold)
        under = Session(same_plan(found.ranks, lambda: plan_as_begun(other)), other, reporter)
        measure_gold(session, under, measured, reporter=reporter, stop=stop)


def _kit(plan: Plan, given: Sequence[str] | None, gold: str | None) -> KitConfig | None:
    """Settings of the kit: the run's, with those given; None where it is not asked for."""
    from mcit.core.config import apply_overrides, parse
    from mcit.core.errors import PlanError
    from mcit.core.schema import KitConfig
    from mcit.plan.forgetting import kit_problems

    if given is None and not gold:
        return None
    own = plan.config.eval.kit or KitConfig()
    kit, problems = parse(KitConfig, apply_overrides(own.model_dump(mode="json"), list(given or [])), where="--kit")
    if kit is None:
        raise agreed(ConfigError.of(problems))
    problems = kit_problems(plan, kit)
    if problems:
        raise agreed(PlanError.of(problems))
    return kit
