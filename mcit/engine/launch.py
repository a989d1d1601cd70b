"""Starting a command on several processes: what the environment says, what contradicts it, and starting them here.

``mcit … --nproc N`` starts N ranks of itself on this machine under torch's elastic agent, the one behind ``torchrun``.
Started by ``torchrun`` or ``accelerate launch`` the command is a rank already (RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR, MASTER_PORT). torch is imported by the functions that need it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcit.core.errors import McitError, PlanError, Problem, TrainingError
from mcit.core.files import NOT_JSON
from mcit.core.ranks import error_from
from mcit.core.schema import EngineConfig, RunConfig
from mcit.core.types import JsonDict
from mcit.engine.board import FOLDER, PARENT, Board

Env = Mapping[str, str]
_SHUTDOWN_S = 10


@dataclass(frozen=True)
class Launch:
    """This process's place among the ranks, by its environment."""

    rank: int
    size: int
    local_rank: int


def launch_of(env: Env) -> Launch | None:
    """The place that a launcher gave this process; None when it was started by itself.

    Raises PlanError for values that are no places.
    """
    if "RANK" not in env or "WORLD_SIZE" not in env:
        return None
    numbers = {}
    for name, default in (("RANK", ""), ("WORLD_SIZE", ""), ("LOCAL_RANK", "0")):
        text = env.get(name, default)
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            what = f"is {text!r}, not a number of processes or a place among them"
            raise PlanError(what, where=name, fix=f"start with torchrun or mcit --nproc, or unset {name}")
        numbers[name] = int(text)
    if numbers["RANK"] >= numbers["WORLD_SIZE"]:
        what = f"is {numbers['RANK']}, but WORLD_SIZE is {numbers['WORLD_SIZE']}: ranks count from 0"
        raise PlanError(what, where="RANK", fix="start with torchrun or mcit --nproc, or unset both")
    return Launch(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"])


# ---- what is refused -------------------------------------------------------------------------------------------------
def problems(config: RunConfig, *, nproc: int | None, env: Env, here: bool = True) -> list[Problem]:
    """Everything about number of processes, launcher and engine that cannot work; nothing is started or loaded yet.

    Without `here` this machine's devices are not asked: the plan is for another one.
    """
    inside = launch_of(env)
    size = inside.size if inside else nproc or 1
    found = _launcher_problems(nproc, inside, env)
    if not inside and here:
        found += device_problems(config.engine, nproc=nproc or 1)
    if found:
        return found
    return [
        *engine_problems(config.engine, here=here),
        *batch_problems(config, size),
        *accelerate_problems(config, env),
    ]


def _launcher_problems(nproc: int | None, inside: Launch | None, env: Env) -> list[Problem]:
    if nproc is not None and nproc < 1:
        return [Problem("--nproc", f"is {nproc}", "give the number of processes, 1 or more")]
    if inside is None:
        half = [name for name in ("RANK", "WORLD_SIZE") if name in env]
        if half:
            other = "WORLD_SIZE" if half == ["RANK"] else "RANK"
            fix = f"start with torchrun or mcit --nproc, or unset {half[0]}"
            return [Problem(half[0], f"is set and {other} is not, so the launcher's settings are incomplete", fix)]
        if "ACCELERATE_MIXED_PRECISION" in env and "MASTER_ADDR" in env:
            what = (
                "accelerate launch was asked for several processes and started one: it sets MASTER_ADDR for several, but "
                "without GPUs (--cpu, or none found) it starts a single process that knows no WORLD_SIZE"
            )
            fix = "use mcit --nproc N or torchrun --nproc-per-node N; for one process unset MASTER_ADDR"
            return [Problem("WORLD_SIZE", what, fix)]
        return []
    if nproc is not None and nproc != inside.size:
        what = f"is {nproc}, but the launcher started {inside.size} processes (WORLD_SIZE)"
        return [Problem("--nproc", what, "leave --nproc out under a launcher, or give both the same number")]
    return []


def devices(engine: EngineConfig) -> tuple[str, int]:
    """What one process each can have on this machine: GPUs, or CPU cores where there are none or device is cpu."""
    if engine.device != "cpu":
        import torch

        if torch.cuda.is_available():
            return "GPUs", torch.cuda.device_count()
    return "CPU cores", cpu_cores()


def cpu_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_problems(engine: EngineConfig, *, nproc: int) -> list[Problem]:
    """More processes than devices of this machine."""
    if nproc == 1:
        return []
    kind, count = devices(engine)
    if nproc <= count:
        return []
    what = f"{nproc} processes were asked for, this machine has {count} {kind}"
    return [
        Problem("--nproc", what, f"use --nproc {count} or less; several machines need torchrun or accelerate launch")
    ]


def engine_problems(engine: EngineConfig, *, here: bool = True) -> list[Problem]:
    """Engine settings that exclude each other, or a device that is not there."""
    out = []
    if engine.device == "cuda" and here and devices(engine)[0] != "GPUs":
        what = "is cuda, but torch finds no GPU here"
        out.append(
            Problem("engine.device", what, "set engine.device: auto, or install a torch with CUDA and its driver")
        )
    if engine.offload != "none" and engine.kind == "plain":
        out.append(
            Problem(
                "engine.offload",
                f"is {engine.offload}, but engine.kind is plain",
                "set engine.kind to zero1, zero2 or zero3, or engine.offload to none",
            )
        )
    elif engine.offload == "parameters" and engine.kind != "zero3":
        out.append(
            Problem(
                "engine.offload",
                f"is parameters, but engine.kind is {engine.kind}, which keeps whole parameters on every device",
                "set engine.kind: zero3, or engine.offload: optimizer",
            )
        )
    if engine.kind == "zero3" and engine.vision_cache != "off":
        what = "keeps features that a rank computes by itself, but with engine.kind: zero3 no rank has the whole tower"
        out.append(Problem("engine.vision_cache", what, "set it to off, or engine.kind to plain, zero1 or zero2"))
    return out


def batch_problems(config: RunConfig, size: int) -> list[Problem]:
    """Steps with fewer rows than ranks, or with rows that do not divide among them."""
    out = []
    for i, stage in enumerate(config.stages):
        where, batch = f"stages[{i}].optim.batch", stage.optim.batch
        if batch < size:
            what = f"is {batch} rows, fewer than the {size} ranks that share a step"
            out.append(Problem(where, what, f"set it to {size} or more, or start at most {batch} processes"))
        elif batch % size:
            what = f"is {batch} rows, which {size} ranks cannot share evenly"
            out.append(Problem(where, what, f"use {batch - batch % size} or {batch + size - batch % size}"))
    return out


# ---- accelerate's own config -----------------------------------------------------------------------------------------
def accelerate_problems(config: RunConfig, env: Env) -> list[Problem]:
    """Settings of ``accelerate launch`` or its config file that say something else than the run config.

    Its mixed precision ``no`` is what it sets when nobody said anything, so that one contradicts nothing.
    """
    if "ACCELERATE_MIXED_PRECISION" not in env:
        return []
    engine, base = config.engine, config.base
    pairs: list[tuple[str, str, str, str]] = []
    precision = env["ACCELERATE_MIXED_PRECISION"].lower()
    if precision not in ("no", "fp32") and not (precision == "bf16" and base.dtype != "fp32"):
        pairs.append(("mixed_precision", precision, "base.dtype", base.dtype))
    if _true(env, "ACCELERATE_USE_CPU") and (engine.device == "cuda" or devices(engine)[0] == "GPUs"):
        pairs.append(("use_cpu", "true", "engine.device", engine.device))
    for kind in ("FSDP", "MEGATRON_LM"):
        if _true(env, f"ACCELERATE_USE_{kind}"):
            pairs.append((f"use_{kind.lower()}", "true", "engine.kind", engine.kind))
    if env.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper() != "NO":
        pairs.append(("dynamo_backend", env["ACCELERATE_DYNAMO_BACKEND"], "engine.kind", engine.kind))
    if _true(env, "ACCELERATE_USE_DEEPSPEED"):
        pairs += _deepspeed_pairs(config, env)
    fix = "make the two equal, or start with torchrun or mcit --nproc, which have no settings of their own"
    return [
        Problem(f"accelerate {theirs}", f"is {value}, but {ours} of the run config is {mine}", fix)
        for theirs, value, ours, mine in pairs
    ]


def _deepspeed_pairs(config: RunConfig, env: Env) -> list[tuple[str, str, str, str]]:
    engine = config.engine
    if engine.kind == "plain":
        return [("use_deepspeed", "true", "engine.kind", "plain")]
    file = _deepspeed_file(env)
    zero = file.get("zero_optimization", {})
    pairs: list[tuple[str, str, str, str]] = []
    stage = str(zero.get("stage", env.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")))
    if stage and stage != engine.kind.removeprefix("zero"):
        pairs.append(("zero_stage", stage, "engine.kind", engine.kind))
    wanted = {"optimizer": engine.offload != "none", "param": engine.offload == "parameters"}
    for what, ours in wanted.items():
        name = f"ACCELERATE_DEEPSPEED_OFFLOAD_{what.upper()}_DEVICE"
        device = str(zero.get(f"offload_{what}", {}).get("device", env.get(name, "")) or "")
        if device and (device != "none") != ours:
            pairs.append((f"offload_{what}_device", device, "engine.offload", engine.offload))
    clip = str(file.get("gradient_clipping", env.get("ACCELERATE_GRADIENT_CLIPPING", "")))
    for i, one in enumerate(config.stages):
        with contextlib.suppress(ValueError):
            if clip and float(clip) != one.optim.clip:
                pairs.append(("gradient_clipping", clip, f"stages[{i}].optim.clip", str(one.optim.clip)))
    return pairs


def _deepspeed_file(env: Env) -> dict[str, Any]:
    name = env.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if not name or name == "none" or not Path(name).is_file():
        return {}
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON):
        return {}
    return found if isinstance(found, dict) else {}


def _true(env: Env, name: str) -> bool:
    return env.get(name, "").lower() in ("true", "1", "yes")


# ---- starting ranks here ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Outcome:
    """How the ranks ended."""

    code: int
    error: McitError | None = None


def start_ranks(argv: Sequence[str], nproc: int, *, says: str = "stopping") -> Outcome:
    """Run ``mcit ARGV`` on `nproc` ranks of this machine and wait for them.

    SIGTERM and SIGINT are passed on to rank 0, which stops all ranks after a step, and `says` is printed; a second one
    ends them at once.
    """
    given = os.environ.get(FOLDER)
    folder = Path(given) if given else Path(tempfile.mkdtemp(prefix="mcit-"))
    board = Board(folder, rank=0)
    folder.mkdir(parents=True, exist_ok=True)
    board.clear()
    changed = {FOLDER: str(folder), PARENT: str(os.getpid())}
    if "OMP_NUM_THREADS" not in os.environ:
        changed["OMP_NUM_THREADS"] = str(max(1, cpu_cores() // nproc))
    relay = Relay(board, says=says)
    with _environment(changed), relay.installed():
        outcome = _run_agent(argv, nproc, board, relay)
    if given is None and not _needed(board):
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


@contextlib.contextmanager
def _environment(changed: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _needed(board: Board) -> bool:
    """Whether the only traceback of a failure is in the board's own folder."""
    first = board.first()
    return bool(first and first.get("unforeseen") and str(board.folder) in json.dumps(first["problems"]))


class Relay:
    """Passes a first signal to rank 0 as soon as it can take it, and kills all ranks on a second one."""

    def __init__(self, board: Board, *, says: str) -> None:
        self._board, self._says = board, says
        self.signals = 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Take over SIGTERM and SIGINT for a block."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self.signals += 1
        if self.signals == 1:
            print(self._says, file=sys.stderr, flush=True)
            threading.Thread(target=self._pass_on, name="relay", daemon=True).start()
            return
        pids = self._board.pids()
        for pid in pids.values():
            _send(pid, signal.SIGKILL)
        if not pids:
            raise KeyboardInterrupt  # nobody has signed in yet: the agent ends what it has started

    def _pass_on(self) -> None:
        while 0 not in (pids := self._board.pids()):
            time.sleep(0.1)
        _send(pids[0], signal.SIGTERM)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _run_agent(argv: Sequence[str], nproc: int, board: Board, relay: Relay) -> Outcome:
    from torch.distributed import run as agent
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed", "torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # or its own account of a failure stands beside ours
    options = ["--standalone", "--nproc-per-node", str(nproc), "--shutdown-timeout", str(_SHUTDOWN_S)]
    options += ["--signals-to-handle", "SIGQUIT", "--monitor-interval", "0.1"]
    asked = agent.get_args_parser().parse_args([*options, "-m", "mcit"])
    asked.training_script_args = list(argv)  # not parsed: torch would take --nproc for its own
    try:
        agent.run(asked)
    except ChildFailedError as failed:
        codes = {rank: int(failure.exitcode) for rank, failure in failed.failures.items()}
        return outcome_of(codes, board, forced=relay.signals > 1)
    return Outcome(0)


def outcome_of(codes: Mapping[int, int], board: Board, *, forced: bool = False) -> Outcome:
    """From the exit codes of the ranks that ended first and the board to what the user is told.

    An error that a rank posted is the cause, unless it is only the echo of a lost peer: then a rank that a signal killed
    is, and the command's code is 128 + signal.
    """
    if forced:
        return Outcome(75, None)
    killed = {rank: -code for rank, code in sorted(codes.items()) if code < 0}
    if any(code != -signal.SIGTERM for code in codes.values()):  # the agent sends SIGTERM to the rest of the ranks
        killed = {rank: number for rank, number in killed.items() if number != signal.SIGTERM}
    record = board.wait_for_first(0.2 if killed else 1.0)
    if killed and (record is None or record.get("kind") == "echo"):
        rank, number = next(iter(killed.items()))
        who = "by hand, by the machine's out-of-memory guard, or by a crash"
        if number == signal.SIGABRT:
            who = "by a crash, or by NCCL after engine.timeout: then another rank hung"
        what = f"was killed by {signal.Signals(number).name} ({who}); the other ranks were ended"
        fix = "run the same command again to continue from the last checkpoint"
        return Outcome(128 + number, TrainingError(what, where=f"rank {rank}", fix=fix))
    if record is None:
        rank, code = next((rank, code) for rank, code in sorted(codes.items()) if code > 0)
        what, fix = (
            f"ended with code {code} and no message",
            "look into logs/ of the run, then run the same command again",
        )
        return Outcome(code, TrainingError(what, where=f"rank {rank}", fix=fix))
    if record.get("kind") == "timeout":
        record = _naming_silent_ranks(record, board)
    return Outcome(int(record["exit"]), error_from(record))


def _naming_silent_ranks(record: JsonDict, board: Board) -> JsonDict:
    """After a time-out: the ranks that neither timed out nor failed are the ones that hang."""
    time.sleep(0.5)
    silent = sorted(board.pids().keys() - {posted["rank"] for posted in board.posted()})
    if not silent:
        return record
    problem = dict(record["problems"][0])
    problem["what"] += f"; no sign of rank {', '.join(map(str, silent))}"
    return {**record, "problems": [problem, *record["problems"][1:]]}
