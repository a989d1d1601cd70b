"""``mcit chat``: ask a stage of a run, or any model, about pictures, with a memory of earlier turns if wanted."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.cli.common import Lines, print_json
from mcit.core.errors import ConfigError, DataError, printable
from mcit.memory.prompt import BUDGET

if TYPE_CHECKING:
    import torch

    from mcit.data.encode import Encoder
    from mcit.evals.generator import Sharing
    from mcit.train.chat import Chat

_LIMIT = 128
_OF_MEMORY = ("encoder", "budget", "summary", "reembed")


@dataclass(frozen=True)
class _Asked:
    """Who answers; weights are loaded by `load`."""

    load: Callable[[], Any]
    encoder: Encoder
    device: torch.device
    bf16: bool
    digest: str
    """Of the weights."""
    sharing: Sharing


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("chat", help="ask a stage of a run, or any model, about pictures")
    parser.add_argument("run", metavar="RUN", nargs="?", help="folder of a run")
    parser.add_argument(
        "--stage", type=int, metavar="K", help="weights after stage K; 0 is the base (default: the last)"
    )
    parser.add_argument("--model", metavar="FOLDER", help="a model in place of a run, such as an export")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="with --model: base.dtype=fp32")
    parser.add_argument("--image", action="append", default=[], metavar="X", help="a picture; repeatable, in order")
    parser.add_argument("--ask", action="append", default=[], metavar="TEXT", help="ask this and end; repeatable")
    parser.add_argument("--max-new-tokens", type=int, default=_LIMIT, metavar="N", help=f"default: {_LIMIT}")
    parser.add_argument(
        "--memory", metavar="DIR", help="remember what is said in this folder, and what it holds already"
    )
    parser.add_argument(
        "--encoder", metavar="FOLDER", help="with --memory: a sentence encoder (default: the model itself)"
    )
    parser.add_argument(
        "--budget", type=int, metavar="N", help=f"with --memory: tokens of a prompt (default: {BUDGET})"
    )
    parser.add_argument("--summary", choices=("extract", "model"), help="with --memory: who sums up (default: extract)")
    parser.add_argument("--reembed", action="store_true", help="with --memory: take over one of another encoder")
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
    for name in _OF_MEMORY:
        if getattr(args, name) and not args.memory:
            raise ConfigError("goes with --memory only", where=f"--{name}", fix="add --memory DIR, or leave it out")
    if args.budget is not None and args.budget < 1:
        raise ConfigError("must be at least 1", where="--budget", fix=f"leave it out: {BUDGET} tokens")
    asked = _of_model(args) if args.model else _of_run(args)
    from mcit.cli.main import show_error
    from mcit.train.chat import check_pictures  # knows torch

    check_pictures([Path(image) for image in args.image])
    with contextlib.ExitStack() as stack:
        chat = _remembering(args, asked, stack) if args.memory else _chat(args, asked)
        for question in args.ask or _typed():
            try:
                answer = chat.ask(question, max_new_tokens=args.max_new_tokens)
            except DataError as error:
                if args.ask or not sys.stdin.isatty():
                    raise
                show_error(error, as_json=args.json)  # who types another line keeps the dialogue
                continue
            if args.json:
                print_json({"question": question, **answer})
            else:
                print(printable(answer["text"]) + (" …" if answer["truncated"] else ""))
            sys.stdout.flush()
    return 0


def _chat(args: argparse.Namespace, asked: _Asked, **given: Any) -> Chat:
    from mcit.train.chat import Chat

    given |= {"device": asked.device, "bf16": asked.bf16, "sharing": asked.sharing}
    return Chat(asked.load(), asked.encoder, images=list(map(Path, args.image)), **given)


def _remembering(args: argparse.Namespace, asked: _Asked, stack: contextlib.ExitStack) -> Chat:
    """A chat with the memory of a folder, which is open as long as the stack is."""
    import functools

    from mcit.memory.compact import extract
    from mcit.memory.embed import FolderEmbedder, ModelEmbedder, model_identity
    from mcit.memory.folder import MemoryFolder, require_encoder, require_folder
    from mcit.memory.memory import Embedder
    from mcit.train.chat import Chat
    from mcit.train.remembering import Remembering, by_model

    require_folder(args.memory)
    embed: Embedder
    if args.encoder:
        embed = FolderEmbedder(args.encoder, device=asked.device)
    identity = embed.identity if args.encoder else model_identity(asked.digest)
    if not args.reembed:
        require_encoder(args.memory, identity)
    given: dict[str, Any] = {"device": asked.device, "bf16": asked.bf16}
    model = asked.load()
    if not args.encoder:
        embed = ModelEmbedder(model, asked.encoder, digest=asked.digest, **given)
    alone = Chat(model, asked.encoder, sharing=asked.sharing, **given)
    summarise = by_model(functools.partial(alone.complete, max_new_tokens=_LIMIT))
    folder = MemoryFolder(args.memory, embed, summarise if args.summary == "model" else extract, reembed=args.reembed)
    opened = stack.enter_context(folder)
    if not opened.memory.vectors.few and opened.memory.vectors.exact:
        Lines().line("the memory is large and faiss is not installed: searches are slow; pip install 'mcit[memory]'")
    budget, answer = args.budget or BUDGET, args.max_new_tokens
    return _chat(args, asked, history=Remembering(opened, asked.encoder, budget=budget, answer=answer))


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


def _of_model(args: argparse.Namespace) -> _Asked:
    from mcit.cli.common import start_torch

    start_torch()
    from mcit.evals.generator import sharing
    from mcit.models.quant import runs_bf16
    from mcit.train.standalone import Standalone, model_config

    config = model_config(args.model, args.set)
    one = Standalone(config, reporter=Lines())
    bf16 = runs_bf16(config.base.dtype, one.device)
    digest = one.digest if args.memory else ""
    return _Asked(lambda: one.model, one.encoder, one.device, bf16, digest, sharing(config.eval))


def _of_run(args: argparse.Namespace) -> _Asked:
    from mcit.cli.common import config_of_run, plan_of_run, start_torch
    from mcit.core.files import sha256_tree
    from mcit.runs.gates import stage_choice
    from mcit.runs.run import open_existing

    found = open_existing(Path(args.run))
    stage = stage_choice(found, args.stage, where="--stage")
    if any(own.adapter.carry == "pool" for own in config_of_run(found).stages[:stage]):
        fix = "give one adapter's export with --model, or mcit eval, which lets the router choose"
        raise ConfigError("the run keeps a pool of adapters, of which none is the model", where=args.run, fix=fix)
    start_torch()
    from mcit.evals.generator import sharing
    from mcit.models.quant import runs_bf16
    from mcit.train.sequence import Session

    session = Session(plan_of_run(found), found, Lines())
    config = session.plan.config
    bf16, adapter = runs_bf16(config.base.dtype, session.device), config.base.adapter
    digest = session.lineage(stage).digest + (sha256_tree(adapter) if adapter else "")
    how = sharing(config.eval)
    return _Asked(lambda: session.model_after(stage), session.encoder, session.device, bf16, digest, how)
