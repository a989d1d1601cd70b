"""The command line: parse, call one function, print. Verbs import what they need when they run."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import mcit
from mcit.cli.common import print_json
from mcit.core import garbage
from mcit.core.errors import McitError, StateError, shown

VERBS = (
    "init",
    "plan",
    "run",
    "gold",
    "attack",
    "forget",
    "resume",
    "sweep",
    "rollback",
    "promote",
    "reject",
    "status",
    "audit",
    "watch",
    "eval",
    "chat",
    "export",
    "data",
    "report",
    "compare",
    "doctor",
)


class _Completion(argparse.Action):
    """Print what a shell needs to complete commands and options: ``eval "$(mcit --print-completion bash)"``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        import shtab

        print(shtab.complete(parser, str(values)))
        parser.exit(0)


def parser() -> argparse.ArgumentParser:
    """All verbs. Each lives in a file of its name with `add_parser(subparsers)` and `run(args) -> int`."""
    top = argparse.ArgumentParser(
        prog="mcit", description="Train a vision-language model on a sequence of tasks, stage after stage."
    )
    top.add_argument("--version", action="version", version=f"mcit {mcit.__version__}")
    top.add_argument("--print-completion", choices=("bash", "zsh", "tcsh"), action=_Completion, help="for this shell")
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for verb in VERBS:
        importlib.import_module(f"mcit.cli.{verb}").add_parser(verbs)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 2 config, 3 plan, 4 data, 5 state, 6 gate, 75 interrupted)."""
    given = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows ASCII alone must not end the command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(given)
    args.argv = given
    as_json = getattr(args, "json", False)
    if not {"RANK", "WORLD_SIZE"}.isdisjoint(os.environ):
        from mcit.engine.launch import launch_of

        try:
            launch_of(os.environ)
        except McitError as error:
            show_error(error, as_json=as_json)
            return error.exit_code
    try:
        return int(importlib.import_module(f"mcit.cli.{args.verb}").run(args))
    except McitError as error:
        code = _failed_rank(error, as_json=as_json)
        if code is not None:
            return code
        show_error(error, as_json=as_json)
        return error.exit_code
    except KeyboardInterrupt as stop:
        _failed_rank(stop, as_json=as_json)
        print("interrupted", file=sys.stderr)
        return 75
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        code = _failed_rank(error, as_json=as_json)
        if code is not None:
            return code
        refused = StateError(
            error.strerror or str(error),
            where=str(error.filename or ""),
            fix="see to that, then run the same command again",
        )
        show_error(refused, as_json=as_json)
        return refused.exit_code
    except Exception as error:
        code = _failed_rank(error, as_json=as_json)
        if code is None:
            raise
        return code


def _failed_rank(error: BaseException, *, as_json: bool) -> int | None:
    """What `mcit.cli.team` does with an error of one rank of several; None for a process alone."""
    if "RANK" not in os.environ:
        return None
    from mcit.cli.team import failed

    return failed(error, as_json=as_json)


def show_error(error: McitError, *, as_json: bool) -> None:
    """All problems of an error, grouped, on stderr; or one JSON object with each of them on stdout."""
    if as_json:
        found = [{"where": p.where, "what": p.what, "fix": p.fix} for p in error.problems]
        print_json({"error": type(error).__name__, "exit": error.exit_code, "problems": found})
        return
    for line in shown(error.problems):
        print(line, file=sys.stderr)


def entry() -> None:
    """Console script."""
    garbage.seldom()
    code = main()
    garbage.never()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        sys.exit(code)
    # A rank has said and written all it has to. Libraries with threads of their own (gloo, DeepSpeed) may abort while the
    # interpreter takes itself apart, and that would be taken for a failure of the command.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
