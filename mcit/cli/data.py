"""``mcit data build|check|show RECIPE``: build a recipe, report every bad row, print rows with their label mask."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from mcit.cli.common import print_json, trust_argument
from mcit.core.errors import ConfigError, DataError, Problem, printable, shown
from mcit.core.hashes import reading_all

if TYPE_CHECKING:
    from mcit.data.build import CheckReport
    from mcit.data.encode import Encoder
    from mcit.data.measure import Measured
    from mcit.data.recipe import Recipe
    from mcit.data.show import ShownRow


def add_parser(verbs: Any) -> None:
    """Register the verb and its three actions."""
    parser = verbs.add_parser("data", help="build, check or show a data recipe")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    texts = {
        "build": "build the data folder of a recipe and print its path",
        "check": "read every row and picture of a recipe and report all problems",
        "show": "print rows with the supervised text marked",
    }
    for name, text in texts.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a shipped recipe: tiny/letter")
        action.add_argument("--json", action="store_true", help="print one JSON object")
        if name != "check":
            action.add_argument("--data-dir", help="folder of built data (default: the cache)")
        if name == "build":
            trust_argument(action)
        if name == "show":
            action.add_argument("--rows", type=_count, default=3, metavar="N", help="how many rows (default: 3)")
            action.add_argument("--split", default="train", choices=("train", "validation", "test"))
            action.add_argument("--model", metavar="MODEL", help="model folder or family: mark what it supervises")
        if name == "check":
            action.add_argument(
                "--model", metavar="MODEL", help="model folder or family: what the rows are to it, in tokens"
            )
            action.add_argument("--batch", type=_count, default=16, metavar="N", help="rows a step (default: 16)")
    parser.set_defaults(verb="data")


def run(args: argparse.Namespace) -> int:
    """Do what was asked; `check` returns 4 when a build would refuse the recipe."""
    from mcit.data.recipe import find_recipe, load_recipe

    recipe = load_recipe(find_recipe(args.recipe))
    return {"build": _build, "check": _check, "show": _show}[args.action](recipe, args)


def _build(recipe: Recipe, args: argparse.Namespace) -> int:
    from mcit.data.build import build
    from mcit.data.folder import DataFolder

    with reading_all(not args.trust_mtime):
        folder = DataFolder.open(build(recipe, data_dir=args.data_dir, announce=_announce))
    dropped = folder.manifest["dropped"]
    if args.json:
        found = {"path": str(folder.path), "digest": folder.digest, "counts": folder.counts, "dropped": dropped}
        print_json({**found, "styles": folder.manifest["styles"], "warnings": folder.manifest["warnings"]})
        return 0
    for kind, items in (("warning", folder.manifest["warnings"]), ("dropped", dropped)):
        for line in shown([Problem(item["where"], item["what"], level="note") for item in items]):
            print(line if line.startswith(" ") else f"{kind}: {line}")
    print(", ".join(f"{split} {count}" for split, count in folder.counts.items()))
    print(folder.path)
    return 0


def _check(recipe: Recipe, args: argparse.Namespace) -> int:
    from mcit.data.build import check
    from mcit.evals.known import unknown_scorer, unknown_style

    report, scored = check(recipe), recipe.config.eval
    named = [*unknown_scorer(scored.scorer, recipe.name), *unknown_style(scored.style, recipe.name)]
    measured = _measured(recipe, args) if args.model and report.ok else {}
    refused = any(found.problems for found in measured.values())
    if args.json:
        print_json(
            {
                "recipe": report.name,
                "ok": report.ok and not named,
                "eval": [_problem(p) for p in named],
                "counts": report.counts,
                "styles": report.styles,
                "sources": list(report.sources),
                "fatal": [_problem(p) for p in report.fatal],
                "bad": [_problem(p) for p in report.bad],
                "summary": [_problem(p) for p in report.summary],
                "model": {split: _measured_json(found) for split, found in measured.items()},
                "allow_bad": report.allowed,
                "warnings": [_problem(p) for p in report.warnings],
            }
        )
    else:
        for line in shown(named):
            print(line)
        _print_report(report, style=scored.style)
        _print_measured(measured, report.counts["train"], args.batch)
    return 0 if report.ok and not refused and not named else DataError.exit_code


def _measured(recipe: Recipe, args: argparse.Namespace) -> dict[str, Measured]:
    from mcit.data.build import build
    from mcit.data.folder import DataFolder
    from mcit.data.measure import measure

    folder = DataFolder.open(build(recipe, announce=_announce))
    encoder = _encoder(args.model, pad=folder.pad_images)
    return {split: measure(folder.rows(split), encoder) for split, count in folder.counts.items() if count}


def _measured_json(found: Measured) -> dict[str, Any]:
    problems = [_problem(p) for p in found.problems]
    return {"rows": found.rows, "longest": found.longest, "supervised_tokens": found.supervised, "refused": problems}


def _print_measured(measured: dict[str, Measured], train: int, batch: int) -> None:
    for split, found in measured.items():
        for line in shown(found.problems):
            print(line)
        means = ", ".join(f"{style or 'no style'} {mean:.1f}" for style, mean in found.supervised.items())
        print(f"{split}, {found.rows} rows encoded: longest {found.longest} positions; mean supervised tokens: {means}")
    if measured:
        print(f"{-(-train // batch)} steps an epoch at {batch} rows a step")


def _print_report(report: CheckReport, *, style: str) -> None:
    for line in (*shown(report.summary), *shown(report.fatal), *shown(report.bad)):
        print(line)
    for line in shown(report.warnings):
        print(line if line.startswith(" ") else f"warning: {line}")
    for split, count in report.counts.items():
        named = {name or f"{style or 'text'} as the task": number for name, number in report.styles[split].items()}
        styles = ", ".join(f"{name} {number}" for name, number in named.items())
        print(f"{split}: {count} rows" + (f" ({styles})" if styles else ""))
    if report.fatal:
        print(f"{len(report.fatal)} source(s) cannot be used")
    verdict = "would be dropped" if report.ok else f"and the recipe allows {report.allowed}: a build would refuse it"
    print(f"{len(report.bad)} bad row(s) {verdict}" if report.bad or not report.ok else "no problems found")


def _show(recipe: Recipe, args: argparse.Namespace) -> int:
    from mcit.data.build import build
    from mcit.data.folder import DataFolder
    from mcit.data.show import show_rows

    folder = DataFolder.open(build(recipe, data_dir=args.data_dir, announce=_announce))
    encoder = _encoder(args.model, pad=folder.pad_images) if args.model else None
    shown = show_rows(folder.rows(args.split)[: args.rows], encoder=encoder)
    if args.json:
        print_json({"recipe": recipe.name, "split": args.split, "rows": [_shown_json(item) for item in shown]})
    else:
        _print_rows(shown)
    return 0


def _print_rows(shown: list[ShownRow]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for item in shown:
        count = "" if item.tokens is None else f", {item.supervised_tokens} of {item.tokens} tokens supervised"
        head = f"{item.row.where}  style {item.row.style or '-'}, {len(item.row.images)} image(s){count}"
        console.print(Text(printable(head), style="dim"))
        text = Text()
        for piece in item.pieces:
            # the brackets carry the mark where there is no colour: a file, a pipe, a plain terminal
            said = printable(piece.text)
            text.append(f"⟦{said}⟧" if piece.supervised else said, "bold green" if piece.supervised else "")
        console.print(text, end="\n\n", soft_wrap=True)


def _encoder(model: str, *, pad: bool) -> Encoder:
    """An encoder from the processor of a model folder, or of a family that builds its own model, as a run would have it.

    Raises DataError when there is none.
    """
    from pathlib import Path

    from mcit.cli.common import start_torch

    start_torch()
    from mcit.core.config import suggestion
    from mcit.core.schema import BaseConfig
    from mcit.data.encode import Encoder
    from mcit.models.load import load_processor, materialize

    own = ("embedded", "tiny")
    if model not in own and not Path(model).is_dir():
        fix = (
            f"give the folder of a model with its processor, or a family that builds its own; {suggestion(model, own)}"
        )
        raise DataError("is neither a folder nor such a family", where=f"--model {model}", fix=fix)
    try:
        folder = materialize(BaseConfig(family=model)) if model in own else Path(model)
        return Encoder(load_processor(folder), pad_images=pad)
    except ConfigError as error:
        raise DataError(error.what, where=error.where, fix=error.fix) from None


def _shown_json(item: ShownRow) -> dict[str, Any]:
    return {
        "where": item.row.where,
        "style": item.row.style,
        "images": list(item.row.images),
        "tokens": item.tokens,
        "supervised_tokens": item.supervised_tokens,
        "pieces": [{"text": piece.text, "supervised": piece.supervised} for piece in item.pieces],
    }


def _problem(problem: Problem) -> dict[str, str]:
    return {"where": problem.where, "what": problem.what, "fix": problem.fix}


def _announce(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    from argparse import ArgumentTypeError

    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a number of rows")
    return int(text)
