"""``mcit watch``: the report of a run in a browser of this machine, kept up to date."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from mcit.cli.common import print_json

PORT = 8642


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("watch", help="serve the report of a run on 127.0.0.1 and keep it up to date")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one (default: {PORT})")
    parser.add_argument("--json", action="store_true", help="print the address as a JSON object")
    parser.set_defaults(verb="watch")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from mcit.report.page.serve import server
    from mcit.runs.run import open_existing

    found = open_existing(Path(args.run))
    with server(found.layout.root, args.port) as serving, contextlib.suppress(KeyboardInterrupt):
        url = f"http://127.0.0.1:{serving.server_address[1]}/"
        if args.json:
            print_json({"url": url})
        else:
            print(f"{found.layout.root}: {url} (Ctrl-C ends it)")
        sys.stdout.flush()
        serving.serve_forever()
    return 0
