"""``mcit data build|check|show RECIPE``: build a recipe, report every bad row, print rows with their label mask."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from mcit.cli.common import trust_argument
from mcit.core.errors import ConfigError, DataError, Problem
from mcit.core.hashes import reading_all

if TYPE_CHECKING:
    from mcit.data.build import CheckReport
    from mcit.data.encode import Encoder
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
            action.add_argument("--model", metavar="PATH", help="model folder: mark what its processor supervises")
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
        _print_json({**found, "styles": folder.manifest["styles"], "warnings": folder.manifest["warnings"]})
        return 0
    for warning in folder.manifest["warnings"]:
        print(f"warning: {warning['where']}: {warning['what']}")
    for item in dropped:
        print(f"dropped: {item['where']}: {item['what']}")
    print(", ".join(f"{split} {count}" for split, count in folder.counts.items()))
    print(folder.path)
    return 0


def _check(recipe: Recipe, args: argparse.Namespace) -> int:
    from mcit.data.build import check

    report = check(recipe)
    if args.json:
        _print_json(
            {
                "recipe": report.name,
                "ok": report.ok,
                "counts": report.counts,
                "styles": report.styles,
                "fatal": [_problem(p) for p in report.fatal],
                "bad": [_problem(p) for p in report.bad],
                "allow_bad": report.allowed,
                "warnings": [_problem(p) for p in report.warnings],
            }
        )
    else:
        _print_report(report)
    return 0 if report.ok else DataError.exit_code


def _print_report(report: CheckReport) -> None:
    for problem in (*report.fatal, *report.bad):
        print(problem)
    for warning in report.warnings:
        print(f"warning: {warning}")
    for split, count in report.counts.items():
        styles = ", ".join(f"{name or 'no style'} {number}" for name, number in report.styles[split].items())
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
        _print_json({"recipe": recipe.name, "split": args.split, "rows": [_shown_json(item) for item in shown]})
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
        console.print(Text(head, style="dim"))
        text = Text()
        for piece in item.pieces:
            # the brackets carry the mark where there is no colour: a file, a pipe, a plain terminal
            text.append(f"⟦{piece.text}⟧" if piece.supervised else piece.text, "bold green" if piece.supervised else "")
        console.print(text, end="\n\n", soft_wrap=True)


def _encoder(model: str, *, pad: bool) -> Encoder:
    """An encoder from a model folder's own processor, as a run would have it. Raises DataError when there is none."""
    from pathlib import Path

    from mcit.cli.common import start_torch

    start_torch()
    from mcit.data.encode import Encoder
    from mcit.models.load import load_processor

    if not Path(model).is_dir():
        raise DataError("is not a folder", where=model, fix="give the folder of a model with its processor")
    try:
        processor = load_processor(model)
    except ConfigError as error:
        raise DataError(error.what, where=error.where, fix=error.fix) from None
    return Encoder(processor, pad_images=pad)


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


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, ensure_ascii=False))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
