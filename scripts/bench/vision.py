"""Steps and answers with the vision cache full, empty and off, in turns: what keeping the tower's features saves.

    python scripts/bench/vision.py [--base embedded] [--recipe demo/easyvqa] [--rows 40] [--steps 6] [--repeat 5] [--json FILE]

All sides have the same model, rows and tokens (rows are decoded and tokenised before anything is timed). `steps` are whole
optimiser steps of eight rows in packs with LoRA of rank 16 on every linear of the language model, `answers` are greedy
answers in batches of `eval.batch`. Token losses and answers of the sides are compared before anything is timed. A figure is
the median of processor time in milliseconds per step or answer, `times` the ratio to the side without a cache, round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.train import Case, Ours, spread

SIDES = ("off", "empty", "full")
LIMIT = 1 << 30


class Bench:
    """A stage of mcit whose tower can be given a cache and lose it."""

    def __init__(self, base: str, recipe: str, rows: int, steps: int, features: Path) -> None:
        from mcit.data.folder import DataFolder
        from mcit.models.units import outermost

        case = Case(base, 8, per_picture=1, embedded=base == "embedded")
        ours = Ours(case, {"family": base}, recipe, steps)
        self.engine, self.encoder, self.work = ours.work.engine, ours.encoder, ours.work
        (self.tower,) = outermost(self.engine.model, "tower")
        self.features = features
        self.batches = [self.work.streams.next_step() for _ in range(steps)]
        task = self.work.stage.tasks[0]
        self.rows = list(DataFolder.open(task.folder).rows("test"))[:rows]
        self.limit = task.max_new_tokens
        for row in self.rows:
            self.encoder.prompt(row)

    def side(self, name: str) -> None:
        """Take this side from here on."""
        from mcit.engine.vision import keep_features

        vars(self.tower).pop("forward", None)
        if name == "empty":
            shutil.rmtree(self.features, ignore_errors=True)
        if name != "off":
            keep_features(self.tower, LIMIT, told=sys.exit)

    def losses(self) -> list[Any]:
        """Token losses of the batches."""
        import torch

        with torch.no_grad(), self.engine.quiet():
            return [self.engine.forward(batch).nll_N for batches in self.batches for batch in batches]

    def steps(self) -> int:
        """One step per group of batches; how many."""
        for batches in self.batches:
            for batch in batches:
                out = self.engine.forward(batch)
                self.engine.backward(out.nll_N.mean(), batch)
            self.engine.step()
        return len(self.batches)

    def texts(self) -> list[str]:
        """An answer to every row."""
        from mcit.core.schema import EvalConfig
        from mcit.evals.generator import greedy, sharing
        from mcit.evals.predictions import batches

        settings = EvalConfig()
        texts = {}
        with (
            self.engine.answering() as (model, _),
            greedy(model, self.encoder, max_new_tokens=self.limit, **sharing(settings)) as answerer,
        ):
            for group in batches(self.rows, settings.batch):
                made = answerer.answer([self.rows[k] for k in group], device="cpu")
                texts |= {k: one["text"] for k, one in zip(group, made, strict=True)}
        return [texts[k] for k in range(len(self.rows))]

    def answers(self) -> int:
        """All answers; how many."""
        return len(self.texts())


def compared(bench: Bench) -> dict[str, Any]:
    """The largest difference of a token's loss, and how many answers are equal. Fills the cache."""
    bench.side("off")
    losses, texts = bench.losses(), bench.texts()
    bench.side("empty")
    filled, full = bench.losses(), bench.losses()
    if not all(bool((a == b).all()) for a, b in zip(filled, full, strict=True)):
        raise SystemExit("losses with a full cache are not those with an empty one")
    gap = max(float((a - b).abs().max()) for a, b in zip(losses, full, strict=True))
    equal = sum(a == b for a, b in zip(texts, bench.texts(), strict=True))
    return {"largest_loss_difference": gap, "asked": len(texts), "equal_answers": equal}


def measure(bench: Bench, repeat: int) -> dict[str, Any]:
    """Milliseconds per step and per answer of each side, sides in turns."""
    found: dict[str, Any] = {}
    for what in ("steps", "answers"):
        spent: dict[str, list[float]] = {side: [] for side in SIDES}
        bench.side("full")
        getattr(bench, what)()  # fills the cache, and makes what is made once
        for number in range(repeat):
            for side in SIDES[::-1] if number % 2 == 0 else SIDES:  # `full` finds what `empty` left
                bench.side(side)
                start = time.process_time()
                count = getattr(bench, what)()
                spent[side].append((time.process_time() - start) / count * 1e3)
        ratios = {side: [off / own for off, own in zip(spent["off"], spent[side], strict=True)] for side in SIDES[1:]}
        found[what] = {
            "ms": {side: spread(taken) for side, taken in spent.items()},
            "times": {side: spread(taken) for side, taken in ratios.items()},
        }
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded", choices=["embedded", "tiny"])
    parser.add_argument("--recipe", default="demo/easyvqa")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    import torch

    torch.set_num_threads(args.threads)
    from mcit.core.paths import cache_dir
    from mcit.engine import features

    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="bench-") as folder:
        features.FOLDER = str(Path(folder).relative_to(cache_dir()))  # what a user has kept stays as it is
        bench = Bench(args.base, args.recipe, args.rows, args.steps, Path(folder))
        found = {"base": args.base, "recipe": args.recipe, "repeat": args.repeat, **compared(bench)}
        found |= measure(bench, args.repeat)
        found["bytes"] = features.held_bytes()
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
