"""``mcit chat``: ask a stage of a run, or any model, about pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.cli.common import Lines, print_json
from mcit.core.errors import ConfigError, printable

if TYPE_CHECKING:
    from mcit.train.chat import Chat

_LIMIT = 128


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("chat", help="ask a stage of a run, or any model, about pictures")
    parser.add_argument("run", metavar="RUN", nargs="?", help="folder of a run")
    parser.add_argument("--stage", type=int, metavar="K", help="weights after stage K; 0 is the base (default: the last)")
    parser.add_argument("--model", metavar="FOLDER", help="a model in place of a run, such as an export")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="with --model: base.dtype=fp32")
    parser.add_argument("--image", action="append", default=[], metavar="X", help="a picture; repeatable, in order")
    parser.add_argument("--ask", action="append", default=[], metavar="TEXT", help="ask this and end; repeatable")
    parser.add_argument("--max-new-tokens", type=int, default=_LIMIT, metavar="N", help=f"default: {_LIMIT}")
    parser.add_argument("--json", action="store_true", help="print a JSON object per answer")
    parser.set_defaults(verb="chat")


def run(args: argparse.Namespace) -> int:
    """Load, then answer until the questions end."""
    if (args.run is None) == (args.model is None):
        raise ConfigError("say whom to ask, once", where="mcit chat", fix="give a RUN, or --model FOLDER")
    if args.model and args.stage is not None:
        raise ConfigError("goes with a RUN only", where="--stage", fix="leave it out")
    if args.set and not args.model:
        raise ConfigError("goes with --model only", where="--set", fix="a run has its settings")
    if args.max_new_tokens < 1:
        raise ConfigError("must be at least 1", where="--max-new-tokens", fix="leave it out")
    chat = _of_model(args) if args.model else _of_run(args)
    for question in args.ask or _typed():
        answer = chat.ask(question, max_new_tokens=args.max_new_tokens)
        if args.json:
            print_json({"question": question, **answer})
        else:
            print(printable(answer["text"]) + (" …" if answer["truncated"] else ""))
        sys.stdout.flush()
    return 0


def _typed() -> Iterator[str]:
    """Lines of standard input; a terminal is told how to end."""
    shown = sys.stdin.isatty()
    if shown:
        print("a line is a question; Ctrl-D ends", file=sys.stderr)
    while True:
        if shown:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _of_model(args: argparse.Namespace) -> Chat:
    from mcit.cli.common import start_torch

    start_torch()
    from mcit.models.quant import runs_bf16
    from mcit.train.chat import Chat
    from mcit.train.standalone import Standalone, model_config

    config, images = model_config(args.model, args.set), list(map(Path, args.image))
    one = Standalone(config, reporter=Lines())
    bf16 = runs_bf16(config.base.dtype, one.device)
    return Chat(one.model, one.encoder, device=one.device, images=images, bf16=bf16)


def _of_run(args: argparse.Namespace) -> Chat:
    from mcit.cli.common import config_of_run, plan_of_run, start_torch
    from mcit.runs.run import open_existing

    found = open_existing(Path(args.run))
    folders = found.stage_folders()
    committed = next((k for k, folder in enumerate(folders) if not found.is_committed(folder)), len(folders))
    stage = committed if args.stage is None else args.stage
    if not 0 <= stage <= committed:
        raise ConfigError(f"stage {stage} is not committed", where="--stage", fix=f"0 to {committed}")
    if any(own.adapter.carry == "pool" for own in config_of_run(found).stages[:stage]):
        fix = "give one adapter's export with --model, or mcit eval, which lets the router choose"
        raise ConfigError("the run keeps a pool of adapters, of which none is the model", where=args.run, fix=fix)
    start_torch()
    from mcit.models.quant import runs_bf16
    from mcit.train.chat import Chat
    from mcit.train.sequence import Session

    session, images = Session(plan_of_run(found), found, Lines()), list(map(Path, args.image))
    bf16 = runs_bf16(session.plan.config.base.dtype, session.device)
    return Chat(session.model_after(stage), session.encoder, device=session.device, images=images, bf16=bf16)
