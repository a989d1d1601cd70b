"""``mcit init FOLDER``: write recipes and a config for the rows of a folder, and name what was guessed."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    text = "write recipes and a config for a folder of JSON, JSONL or Parquet files, and name what was guessed"
    parser = verbs.add_parser("init", help=text, description=text)
    parser.add_argument(
        "folder", metavar="FOLDER", help="folder with the files; folders inside it are looked through too"
    )
    parser.add_argument("--out", metavar="DIR", help="where to write: FOLDER (default), or one above it")
    parser.add_argument("--model", metavar="PATH", default="", help="folder of the model to train")
    parser.add_argument("--json", action="store_true", help="print JSON: the files written and what was guessed")
    parser.set_defaults(verb="init")


def run(args: argparse.Namespace) -> int:
    """Write the files and say what they rest on; 4 for a folder without rows."""
    from mcit.data.start import write_start

    folder = Path(args.folder)
    out = Path(args.out) if args.out else folder
    written, lines = write_start(folder, out, model=args.model)
    if args.json:
        from mcit.core.files import canonical_json

        print(canonical_json({"written": [str(path) for path in written], "said": lines}))
        return 0
    for line in lines:
        print(line)
    then = f"mcit plan {shlex.quote(str(written[-1]))}"
    print(f"wrote {', '.join(map(str, written))}: check the guesses there, then: {then}")
    return 0
