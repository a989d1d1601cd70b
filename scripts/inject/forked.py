"""Commands of mcit whose file operations are wrapped: in a fork that has nothing to import, or on several processes."""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import pkgutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.inject.faultpoints import Fault, Look, Operations

LIMIT_S = 900
"""A command that takes longer is killed."""


def prepare() -> None:
    """Import what commands import and leave it to no garbage collection, so that each fork starts at once."""
    import peft.tuners.lora  # noqa: F401
    import torch
    import transformers.models.clip.modeling_clip
    import transformers.models.llama.modeling_llama
    import transformers.models.llava.modeling_llava  # noqa: F401
    from PIL import Image
    from rich import box, padding, table  # noqa: F401

    import mcit.cli
    import mcit.export.export
    import mcit.plan.plan
    import mcit.report.page.html
    import mcit.train.sequence

    for module in pkgutil.iter_modules(mcit.cli.__path__):
        importlib.import_module(f"mcit.cli.{module.name}")
    Image.init()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def call(
    argv: Sequence[str],
    log: Path,
    *,
    root: Path,
    fault: Fault | None = None,
    note: Path | None = None,
    look: Look | None = None,
) -> int:
    """Run one command in a fork, its operations below `root` wrapped; returns its exit code, negative for a signal."""
    child = os.fork()
    if child:
        return waited(child)
    code = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        from mcit.cli.log import Logged
        from mcit.cli.main import main as mcit
        from mcit.cli.run import Page

        Page.SHARE = 1e-9  # after the first stage and at the end, not by the clock: operations keep their numbers
        Logged.EVERY_S = math.inf

        with Operations(root, fault, note=note, look=look):
            code = mcit(argv)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def waited(child: int) -> int:
    """Exit code of a process, which is killed after `LIMIT_S` seconds."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def call_ranks(
    argv: Sequence[str],
    log: Path,
    *,
    root: Path,
    rank: Any = None,
    fault: Fault | None = None,
    note: Path | None = None,
) -> int:
    """The same on several processes, of which `rank` is wrapped (``any``: each, to note its operations)."""
    env = {k: v for k, v in os.environ.items() if k != "FAULTPOINTS"}
    if rank is not None:
        setting = {"root": str(root), "rank": rank, "note": str(note) if note else None}
        env["FAULTPOINTS"] = json.dumps({**setting, **(asdict(fault) if fault else {})})
        env["PYTHONPATH"] = str(Path(__file__).parent)
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mcit", *argv], stdout=out, stderr=out, env=env, start_new_session=True
        )
        try:
            return process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return 124
