"""Answers chosen among the options of a row (``eval.options: forward``) against greedy answers to the same rows.

    python scripts/bench/options.py [--recipes demo/edible …] [--run RUN --stage K] [--rows 40] [--repeat 3] [--threads 1]
        [--clock cpu] [--json FILE]

The model is the embedded one or, with ``--run``, that of a run after stage K (0 is its base). Test rows whose recipe's scorer
lets options be chosen are answered both ways, in the batches of `eval`'s defaults: encoding, forward passes and reading of
answers are inside what is timed, and nothing is kept from round to round. Per recipe it prints in how many rows the answers are
the same text, how many greedy answers are one of the options, and the ratio of times: both sides take turns, `repeat` times,
median with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.train import spread

RECIPES = ("demo/kind", "demo/edible", "demo/easyvqa")


def agreement(written: Sequence[str], chosen: Sequence[str], options: Sequence[Sequence[str]]) -> dict[str, int]:
    """In how many rows both answers are the same text, and how many written ones are one of the options."""
    pairs = list(zip(written, chosen, options, strict=True))
    return {
        "rows": len(pairs),
        "equal": sum(one == other for one, other, _ in pairs),
        "greedy_is_option": sum(one in own for one, _, own in pairs),
    }


def answers(model: Any, encoder: Any, rows: Sequence[Any], *, limit: int, options: Any = None) -> list[dict[str, Any]]:
    """Answers as an evaluation makes them, written or chosen."""
    from mcit.core.schema import EvalConfig
    from mcit.evals.choosing import Choosing
    from mcit.evals.generator import greedy, sharing
    from mcit.evals.predictions import batches

    settings, out = EvalConfig(), dict[int, dict[str, Any]]()
    device = next(model.parameters()).device
    with greedy(model, encoder, max_new_tokens=limit, **sharing(settings)) as generator:
        answering = generator if options is None else Choosing(generator, model, encoder, options)
        for group in batches(rows, settings.batch):
            made = answering.answer([rows[k] for k in group], device=device)
            out |= dict(zip(group, made, strict=True))
    return [out[k] for k in range(len(rows))]


def measure(model: Any, encoder: Any, recipe: str, args: argparse.Namespace) -> dict[str, Any]:
    """Agreement and ratio of times on the rows of a recipe that have options."""
    from mcit.data.build import build
    from mcit.data.folder import DataFolder
    from mcit.data.recipe import find_recipe, load_recipe
    from mcit.evals.options import chooser
    from mcit.evals.score import load_scorer

    folder = DataFolder.open(build(load_recipe(find_recipe(recipe))))
    options = chooser({"scorer_chooses": load_scorer(folder.eval.scorer).chooses, "style": folder.eval.style})
    rows = [row for row in folder.rows("test") if options(row)][: args.rows]
    if not rows:
        raise SystemExit(f"{recipe}: no test row has options that its scorer lets choose among")
    sides: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "generate": lambda: answers(model, encoder, rows, limit=folder.eval.max_new_tokens),
        "forward": lambda: answers(model, encoder, rows, limit=folder.eval.max_new_tokens, options=options),
    }
    made = {side: [one["text"] for one in work()] for side, work in sides.items()}
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(args.repeat):
        for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            encoder.forget()
            start = clock()
            sides[side]()
            seconds[side].append(clock() - start)
    ratios = [slow / fast for slow, fast in zip(seconds["generate"], seconds["forward"], strict=True)]
    found = agreement(made["generate"], made["forward"], [options(row) for row in rows])
    return {"recipe": recipe, **found, "times": spread(ratios), "repeats": args.repeat}


def shown(one: dict[str, Any]) -> str:
    """A recipe in a line."""
    times = one["times"]
    return (
        f"{one['recipe']}: {one['equal']} of {one['rows']} answers equal ({100 * one['equal'] / one['rows']:.1f} %), "
        f"{one['greedy_is_option']} greedy answers are an option; "
        f"{times['median']:.2f} times as fast ({times['min']:.2f} to {times['max']:.2f})"
    )


def model_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its encoder, whose ``forget`` empties what it kept."""
    from mcit.data.memo import Memo

    if args.run:
        from mcit.cli.common import plan_of_run
        from mcit.core.interfaces import Silent
        from mcit.runs.run import open_existing
        from mcit.train.sequence import Session

        opened = open_existing(args.run)
        session = Session(plan_of_run(opened), opened, Silent())
        model, processor = session.model_after(args.stage), session.encoder.processor
    else:
        from mcit.core.schema import BaseConfig
        from mcit.models.load import load_base, load_processor, materialize

        path = materialize(BaseConfig(family="embedded"))
        model, processor = load_base(path, dtype="fp32").eval(), load_processor(path)
    return model, forgetting(processor, Memo())


def forgetting(processor: Any, memo: Any) -> Any:
    """An encoder with a memo that can be emptied."""
    from mcit.data.encode import Encoder

    class Forgetting(Encoder):
        def forget(self) -> None:
            memo.store.clear()

    return Forgetting(processor, memo=memo)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--run", type=Path, help="a run; else the embedded model as it is")
    parser.add_argument("--stage", type=int, default=0, help="committed stage of the run, 0 is its base")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, on a busy machine"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import torch
    import transformers

    from mcit.cli.common import start_torch

    start_torch()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model, encoder = model_of(args)
    found = []
    for recipe in args.recipes:
        found.append(measure(model, encoder, recipe, args))
        print(shown(found[-1]), flush=True)
    if args.json:
        machine = {"machine": platform.platform(), "cpus": os.cpu_count(), "threads": args.threads, "clock": args.clock}
        args.json.write_text(json.dumps({"machine": machine, "recipes": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
