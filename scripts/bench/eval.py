"""Answers per second against a loop of transformers' ``generate`` over single rows.

    python scripts/bench/eval.py [--json FILE] [--only short-5 …] [--repeat 5] [--rows 80] [--threads 2] [--clock cpu]
    python scripts/bench/eval.py --json FILE --docs docs/performance.md

Both sides read pictures, decode, tokenise and answer the same rows greedily with the same model and end tokens, all inside
what is timed; nothing is kept from round to round. Token ids are compared before anything is timed: an answer that differs ends
the run, unless two of its best scores lie within 1e-4 no later than where it differs; those are listed. Then the sides take
turns, `repeat` times all rows each; a figure is the median, with the smallest and the largest. Batches are those of `eval`'s
defaults. Cases:

  short-5, short-1   answers of 4 tokens, five questions per picture or one, 64 picture tokens, a LLaVA of 16 M parameters
  long-5, long-1     the same with 32 tokens
  short-576          answers of 4 tokens, five questions per picture, 576 picture tokens
  embedded           test rows of demo/easyvqa-ten (ten questions per picture), the embedded model, the recipe's limit

The LLaVA has random weights and would go on past any limit; where it says its end token it stops, on both sides.
With ``--docs`` nothing is measured: the file's table is written into a page.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.train import Case, made_rows, small_llava, spread
from scripts.pages import write_between

CASES = {
    "short-5": (Case("short-5", 0, per_picture=5, tokens=64), 4, 4.5),
    "short-1": (Case("short-1", 0, per_picture=1, tokens=64), 4, 2.8),
    "long-5": (Case("long-5", 0, per_picture=5, tokens=64), 32, 8.0),
    "long-1": (Case("long-1", 0, per_picture=1, tokens=64), 32, 5.5),
    "short-576": (Case("short-576", 0, per_picture=5, tokens=576), 4, 3.5),
    "embedded": (Case("embedded", 0, per_picture=10, embedded=True), None, None),
}
"""Rows, most new tokens (None: the recipe's) and the ratio that is aimed at."""
MARKS = ("<!-- evaluation: written by scripts/bench/eval.py -->", "<!-- evaluation: end -->")


class Asked:
    """The model and rows of a case, and what both sides make of them."""

    def __init__(self, name: str, count: int, home: Path) -> None:
        from mcit.core.schema import BaseConfig
        from mcit.data.build import build
        from mcit.data.encode import Encoder
        from mcit.data.folder import DataFolder
        from mcit.data.memo import Memo
        from mcit.data.recipe import find_recipe, load_recipe
        from mcit.evals.generator import end_tokens
        from mcit.models.load import load_base, load_processor, materialize

        case, limit, _ = CASES[name]
        if case.embedded:
            self.path, split = materialize(BaseConfig(family="embedded")), "test"
            recipe = load_recipe(find_recipe("demo/easyvqa-ten"))
        else:
            self.path, split = small_llava(home / "model", case.tokens), "train"
            recipe = load_recipe(made_rows(case, count, home / "rows"))
        data = None if case.embedded else home / "data"
        self.rows = list(DataFolder.open(build(recipe, data_dir=data)).rows(split))[:count]
        self.limit = limit or recipe.config.eval.max_new_tokens
        self.model, self.processor = load_base(self.path, dtype="fp32").eval(), load_processor(self.path)
        self.memo = Memo()
        self.encoder = Encoder(load_processor(self.path), memo=self.memo)
        self.ends, self.pad_id = end_tokens(self.model.generation_config, self.encoder), self.encoder.pad_id
        template = self.encoder._template
        self.texts = [(one := template.render(row)).text[: one.prompts[-1]] for row in self.rows]

    def ours(self) -> list[dict[str, Any]]:
        """As an evaluation of a run makes them."""
        from mcit.core.schema import EvalConfig
        from mcit.evals.generator import greedy, sharing
        from mcit.evals.predictions import batches

        settings, out, told = EvalConfig(), dict[int, dict[str, Any]](), list[str]()
        given: dict[str, Any] = {"max_new_tokens": self.limit, **sharing(settings), "told": told.append}
        self.memo.store.clear()
        with greedy(self.model, self.encoder, **given) as generator:
            for group in batches(self.rows, settings.batch):
                made = generator.answer([self.rows[k] for k in group], device="cpu")
                out |= dict(zip(group, made, strict=True))
        if told:
            raise SystemExit(told[0])
        return [out[k] for k in range(len(self.rows))]

    def theirs(self) -> list[str]:
        """The loop of a model card: the processor on one row, ``generate``, decode."""
        import torch
        from PIL import Image

        out = []
        for row, text in zip(self.rows, self.texts, strict=True):
            images = [Image.open(Path(row.root) / name).convert("RGB") for name in row.images]
            inputs = self.processor(images=images, text=text, return_tensors="pt", add_special_tokens=False)
            with torch.no_grad():
                made = self.model.generate(
                    **inputs,
                    do_sample=False,
                    max_new_tokens=self.limit,
                    eos_token_id=self.ends,
                    pad_token_id=self.pad_id,
                )
            new = made[0, inputs["input_ids"].shape[1] :]
            out.append(self.processor.tokenizer.decode(new, skip_special_tokens=True).strip())
        return out

    @contextlib.contextmanager
    def as_numbers(self) -> Iterator[None]:
        """Answers are the numbers of their tokens, up to an end token: many of a random model stand for no text."""
        ends = set(self.ends)

        def decode(ids: Any, **_: Any) -> str:
            known = [int(i) for i in ids]
            return " ".join(str(i) for i in known if i not in ends)

        tokenizers = [self.processor.tokenizer, self.encoder.processor.tokenizer]
        for tokenizer in tokenizers:
            tokenizer.decode = decode
        try:
            yield
        finally:
            for tokenizer in tokenizers:
                del tokenizer.decode


def compared(ours: Sequence[dict[str, Any]], theirs: Sequence[str]) -> dict[str, Any]:
    """How many answers are equal and which differ at a near tie. Raises SystemExit for one that differs elsewhere."""
    differing = []
    for k, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        one, two = mine["text"].split(), other.split()
        if one == two:
            continue
        at = next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
        if mine["near_tie"] is None or mine["near_tie"] > at:
            raise SystemExit(f"row {k} is answered {mine['text']!r}, by itself {other!r}")
        differing.append({"row": k, "near_tie": mine["near_tie"], "differs_at": at})
    tied = sum(one["near_tie"] is not None for one in ours)
    return {"answers": len(ours), "equal": len(ours) - len(differing), "near_ties": tied, "differing": differing}


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Answers per second of each side, and the ratio round by round."""
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory(prefix="mcit-bench-") as home:
        asked = Asked(name, args.rows, Path(home))
        with asked.as_numbers():
            made = asked.ours()
            answers = compared(made, asked.theirs())
        sides: dict[str, Callable[[], Any]] = {"mcit": asked.ours, "loop": asked.theirs}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(args.repeat):
            for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
                start = clock()
                sides[side]()
                seconds[side].append(clock() - start)
    rows = len(asked.rows)
    return {
        "case": name,
        **answers,
        "tokens_per_answer": sum(one["tokens"] for one in made) / rows,
        "rows_per_second": {side: spread([rows / s for s in taken]) for side, taken in seconds.items()},
        "times": spread([loop / mine for loop, mine in zip(seconds["loop"], seconds["mcit"], strict=True)]),
        "aim": CASES[name][2],
        "repeats": args.repeat,
    }


def show(one: dict[str, Any]) -> None:
    """A case in a few lines."""
    times = one["times"]
    print(
        f"{one['case']}: {one['equal']} of {one['answers']} answers equal, {one['near_ties']} with a near tie, "
        f"{one['tokens_per_answer']:.1f} tokens each"
    )
    for side, rate in one["rows_per_second"].items():
        print(f"  {side:<5} {rate['median']:8.2f} rows/s ({rate['min']:.2f} to {rate['max']:.2f})")
    aim = f", aim {one['aim']}" if one["aim"] else ""
    print(f"  {times['median']:.2f} times as fast ({times['min']:.2f} to {times['max']:.2f}){aim}", flush=True)


def table(kept: dict[str, Any]) -> str:
    """What a page shows of a file."""
    machine = kept["machine"]
    repeats = sorted({one["repeats"] for one in kept["cases"]})
    lines = [
        f"{machine['cpus']}-core CPU machine, {machine['threads']} thread(s), torch {machine['torch']}, transformers "
        f"{machine['transformers']}, {'processor' if machine['clock'] == 'cpu' else 'wall'} time; medians of "
        f"{' or '.join(map(str, repeats))} rounds (smallest to largest).",
        "",
        "| case | answers equal | near ties | tokens each | loop, rows/s | mcit, rows/s | times as fast | aim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in kept["cases"]:
        rates, times = one["rows_per_second"], one["times"]
        lines.append(
            f"| `{one['case']}` | {one['equal']} of {one['answers']} | {one['near_ties']} | {one['tokens_per_answer']:.1f} "
            f"| {rates['loop']['median']:.1f} | {rates['mcit']['median']:.1f} "
            f"| {times['median']:.2f} ({times['min']:.2f} to {times['max']:.2f}) | {one['aim'] or '-'} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", type=Path, help="results; those of other cases in it stay, if the machine is the same"
    )
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="measure nothing, write the file's table into a page")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, on a busy machine"
    )
    args = parser.parse_args()
    if args.docs:
        write_between(args.docs, MARKS, table(json.loads(args.json.read_text())))
        return 0
    import torch
    import transformers

    from mcit.cli.common import start_torch

    start_torch()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    machine = {
        "machine": platform.platform(), "cpus": os.cpu_count(), "threads": args.threads, "clock": args.clock,
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    kept = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {}
    results = {one["case"]: one for one in kept.get("cases", []) if kept["machine"] == machine}
    for name in args.only:
        with contextlib.redirect_stderr(io.StringIO()):
            results[name] = measure(name, args)
        results[name]["load"] = round(os.getloadavg()[0], 1)
        show(results[name])
        if args.json:
            cases = [results[case] for case in CASES if case in results]
            args.json.write_text(json.dumps({"machine": machine, "cases": cases}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
