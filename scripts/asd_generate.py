"""Answers of other styles that need a model, and LLaVA files of diversified rows. See docs/asd.md.

    python scripts/asd_generate.py plan RECIPE
    python scripts/asd_generate.py generate RECIPE --backend hf --model FOLDER [--out FILE]
    python scripts/asd_generate.py generate RECIPE --backend openai --base-url URL --model NAME [--out FILE]
    python scripts/asd_generate.py export RECIPE --out train_x20.json

Interrupted, the same `generate` command continues. Nothing is sent anywhere unless an address is given.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcit.core.errors import ConfigError, McitError
from mcit.core.types import Row, Turn
from mcit.data.asd.writing.client import OpenAiBackend
from mcit.data.asd.writing.export import export_llava
from mcit.data.asd.writing.prompts import Prompt, prompt_for, shape_of
from mcit.data.asd.writing.run import ATTEMPTS, Backend, Tally, asd_choice, to_write, write_answers
from mcit.data.build import build
from mcit.data.collect import collect
from mcit.data.folder import DataFolder
from mcit.data.recipe import Recipe, find_recipe, load_recipe
from mcit.data.transforms.asd import asd_of
from mcit.evals.normalise import normalise


class HfBackend:
    """A local vision-language model in HF layout, greedy, through the project's own loader and chat template."""

    name = "hf"

    def __init__(
        self, folder: Path, *, batch: int, max_tokens: int, seed: int, device: str, dtype: str, pad: bool
    ) -> None:
        """Raises ConfigError when the folder holds no image-text-to-text model."""
        from mcit.data.encode import Encoder
        from mcit.models.basefiles import base_digest
        from mcit.models.load import load_base, load_processor

        if not folder.is_dir():
            raise ConfigError("is not a folder", where=str(folder), fix="give the folder of a model in HF layout")
        self.batch, self.seed = batch, seed
        self.model = f"{folder.resolve().name}@{base_digest(folder)[:12]}"
        self._device, self._max = device, max_tokens
        self._encoder = Encoder(load_processor(folder), pad_images=pad)
        self._net = load_base(folder, dtype=dtype, device=device)

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """A reply per prompt."""
        from mcit.evals.generator import greedy

        rows = [_row(prompt, number) for number, prompt in enumerate(prompts)]
        with greedy(self._net, self._encoder, max_new_tokens=self._max) as generator:
            return [answer["text"] for answer in generator.answer(rows, device=self._device)]


def _row(prompt: Prompt, number: int) -> Row:
    root = Path(prompt.images[0]).resolve().anchor if prompt.images else ""
    images = tuple(str(Path(image).resolve().relative_to(root)) for image in prompt.images)
    text = "<image>\n" * len(images) + f"{prompt.system}\n\n{prompt.text}"
    turns = (Turn("user", text), Turn("assistant", "-"))
    return Row(f"prompt-{number}", images, turns, task="asd", source="prompt", root=root)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = top.add_subparsers(dest="action", required=True)
    plan = actions.add_parser("plan", help="count what a model has to write, and print one prompt; asks nobody")
    make = actions.add_parser("generate", help="ask a model")
    export = actions.add_parser("export", help="write the training rows of the built recipe as a LLaVA file")
    for action in (plan, make, export):
        action.add_argument("recipe", help="a recipe with an asd transform")
    make.add_argument("--backend", required=True, choices=("hf", "openai"))
    make.add_argument("--model", required=True, help="folder (hf), or the server's name of the model (openai)")
    make.add_argument("--base-url", help="openai: address up to /v1")
    make.add_argument("--key-env", default="OPENAI_API_KEY", help="openai: environment variable with the key")
    make.add_argument("--out", type=Path, help="file of answers (default: the one named in the recipe)")
    make.add_argument("--attempts", type=_positive, default=ATTEMPTS, help="replies per row before it stays native")
    make.add_argument("--concurrency", type=_positive, default=4, help="openai: requests at a time")
    make.add_argument("--batch", type=_positive, default=8, help="hf: prompts at a time")
    make.add_argument("--max-tokens", type=_positive, default=512)
    make.add_argument("--timeout", type=float, default=120, help="openai: seconds to wait for a reply")
    make.add_argument("--limit", type=_positive, help="ask for this many rows at most")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--device", default="cpu", help="hf: cpu or cuda")
    make.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="hf")
    export.add_argument("--out", type=Path, help="default: train_xX.json in this folder, X from the recipe")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        recipe = load_recipe(find_recipe(args.recipe))
        return {"plan": _plan, "generate": _generate, "export": _export}[args.action](recipe, args)
    except McitError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _plan(recipe: Recipe, args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="mcit-asd-") as pictures:
        step, choice = asd_choice(recipe, collect(recipe, Path(pictures)))
        jobs = to_write(choice)
        print(f"native style {choice.native}, {choice.quota} per foreign style, cells {choice.cells}")
        for style in sorted({job.style for job in choice.jobs}):
            rules = sum(job.style == style and job.content is not None for job in choice.jobs)
            print(f"{style}: {rules} by rule, {sum(job.style == style for job in jobs)} by a model")
        if jobs:
            prompt = prompt_for(jobs[0], shape_of(jobs[0], choice.cells), limits=step.config.limits)
            print(f"\nfirst prompt (row {jobs[0].row.id}, {jobs[0].style}):\n{prompt.system}\n\n{prompt.text}")
    return 0


def _generate(recipe: Recipe, args: argparse.Namespace) -> int:
    step = asd_of(recipe.transforms)
    out = args.out or (step.answers_path() if step else None)
    if out is None:
        raise ConfigError(
            "no file for the answers is named", where="--out", fix="give --out, or 'answers' in the recipe"
        )
    if args.backend == "openai" and not args.base_url:
        raise ConfigError("is required for this backend", where="--base-url", fix="give http://host:port/v1")
    with tempfile.TemporaryDirectory(prefix="mcit-asd-") as pictures:
        step, choice = asd_choice(recipe, collect(recipe, Path(pictures)))
        tally = write_answers(
            to_write(choice)[: args.limit],
            choice.cells,
            _backend(recipe, args),
            out=out,
            normalise=normalise,
            limits=step.config.limits,
            attempts=args.attempts,
            concurrency=args.concurrency if args.backend == "openai" else 1,
            announce=lambda line: print(line, file=sys.stderr, flush=True),
        )
    print(summary(tally, out))
    return 0


def _backend(recipe: Recipe, args: argparse.Namespace) -> Backend:
    if args.backend == "hf":
        settings: dict[str, Any] = {
            key: getattr(args, key) for key in ("batch", "max_tokens", "seed", "device", "dtype")
        }
        return HfBackend(Path(args.model), pad=recipe.config.image.pad, **settings)
    return OpenAiBackend(
        base_url=args.base_url,
        model=args.model,
        key=os.environ.get(args.key_env, ""),
        seed=args.seed,
        max_tokens=args.max_tokens,
        timeout=args.timeout,
    )


def _export(recipe: Recipe, args: argparse.Namespace) -> int:
    step = asd_of(recipe.transforms)
    out = args.out or Path(f"train_x{step.config.percent:g}.json" if step else "train.json")
    folder = DataFolder.open(build(recipe, announce=lambda line: print(line, file=sys.stderr)))
    rows = folder.rows("train")
    root = export_llava(recipe, rows, out)
    print(f"{len(rows)} rows in {out}" + (f"; image paths start from {root}" if root else ""))
    return 0


def summary(tally: Tally, out: Path) -> str:
    lines = [
        f"{tally.jobs} row(s) for a model, {tally.before} finished before; {tally.requests} reply(s), "
        f"{tally.accepted} accepted, {tally.given_up} row(s) stay native"
    ]
    lines += [f"refused: {reason}: {count}" for reason, count in sorted(tally.refused.items())]
    return "\n".join([*lines, str(out)])


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
