"""Kill a run with SIGKILL at random moments, run the same command again until it ends, and compare every byte.

    python scripts/chaos.py CONFIG --kills 20 [--seed 0] [--runs-dir DIR] [--nproc 2 --engine ddp|zero2|zero3]

First an undisturbed run and export of the last stage. Then rounds of the same commands in fresh folders, killed during
training, at file operations (scripts/inject), during evaluation and during the
export. Prints one line per kill and the verdict last; exit 1 if any byte of adapter/, methods/, weights/,
predictions.jsonl or of the exported adapter differs. With --nproc each kill hits one rank, drawn at random; the command
then ends the other ranks by itself, and the bytes are those of the undisturbed run of the same engine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from mcit.engine.board import FOLDER, Board
from mcit.runs.run import Run, find_runs

COMPARED = {"adapter", "methods", "weights"}
PHASES = ("training", "operation", "evaluation", "operation")
"""Aims of successive kills of a run; every fifth kill goes to the export."""


class Broken(Exception):
    """A command failed although nobody killed it."""


@dataclass
class Timing:
    """What the undisturbed run took, for drawing moments."""

    run: float = 0.0
    export: float = 0.0
    phases: dict[str, list[float]] = field(default_factory=lambda: {"training": [], "evaluation": []})
    """Seconds of each stage's training, and of each evaluation."""
    operations: int = 0


@dataclass(frozen=True)
class Round:
    """One folder in which the commands are run until they end."""

    config: str
    home: Path
    rest: list[str]
    ranks: int = 1

    @property
    def board(self) -> Board:
        """Where the ranks of the present command sign in."""
        return Board(self.home / "board", 0)

    @property
    def runs(self) -> Path:
        """The runs directory."""
        return self.home / "runs"

    def run(self) -> list[str]:
        """The command that trains."""
        several = ["--nproc", str(self.ranks)] if self.ranks > 1 else []
        return ["run", self.config, "--runs-dir", str(self.runs), *self.rest, *several]

    def export(self) -> list[str]:
        """The command that exports the last stage."""
        found = self.found()
        last = len(found.stage_folders()) if found else 0
        root = str(found.layout.root) if found else ""
        return ["export", root, "--stage", str(last), "--as", "adapter", "--out", str(self.home / "exported")]

    def found(self) -> Run | None:
        """The run, once its folder is there."""
        runs = find_runs(self.runs)
        return runs[0] if runs else None

    def phase(self) -> str:
        """What the killed process was at, by what it left on disk."""
        if list(self.home.glob(".exported.*")):
            return "export"
        run = self.found()
        if run is None:
            return "start"
        folders = run.stage_folders()
        for folder in folders:
            draft = run.layout.draft(folder)
            if draft.is_dir() and not run.is_committed(folder):
                if (draft / "whole").is_dir():
                    return f"commit of {folder}"
                if list(draft.glob("live/.*")):
                    return f"checkpoint of {folder}, {run.live_step(folder)} steps saved"
                return f"training of {folder}, {run.live_step(folder)} steps saved"
        done = run.committed()
        return f"evaluation after {done[-1]}" if done else "evaluation of the base or before the first stage"


def main() -> int:
    """Undisturbed first, then rounds of kills; returns the exit code."""
    args = arguments()
    home = Path(args.runs_dir or tempfile.mkdtemp(prefix="mcit-chaos-")).absolute()
    if home.exists() and any(home.iterdir()):
        raise Broken(f"{home} is not empty")
    draw = random.Random(args.seed)
    kind = {"ddp": "plain"}.get(args.engine, args.engine)
    settings = [*args.set, *([f"engine.kind={kind}"] if kind else [])]
    rest = [part for item in settings for part in ("--set", item)]
    quiet = Round(args.config, home / "undisturbed", rest, args.nproc)
    timing = undisturbed(quiet)
    expected = digests(quiet)
    print(
        f"undisturbed: run {timing.run:.0f} s, export {timing.export:.0f} s, {len(expected)} files to compare",
        flush=True,
    )
    kills, differing, number = 0, 0, 0
    while kills < args.kills:
        number += 1
        this = Round(args.config, home / f"round-{number:02d}", rest, args.nproc)
        for_export = max(1, (args.kills - kills) // 5)
        kills = disturbed(this, timing, draw, kills, upto=args.kills - for_export, of=args.kills)
        kills = disturbed_export(this, timing, draw, kills, upto=min(args.kills, kills + for_export), of=args.kills)
        differing += compare(expected, digests(this), name=this.home.name)
    verdict = "every byte is equal" if not differing else f"{differing} files differ"
    print(f"{kills} kills in {number} rounds: {verdict} ({len(expected)} files per round)", flush=True)
    return 1 if differing else 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Kill a run at random moments; compare bytes with an undisturbed one.")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-dir", help="folder for all runs, must be empty (default: a temporary one)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to mcit run")
    parser.add_argument("--nproc", type=int, default=1, help="ranks; each kill hits one of them")
    parser.add_argument("--engine", choices=("ddp", "zero1", "zero2", "zero3"), help="engine of all runs")
    return parser.parse_args()


# ---- commands --------------------------------------------------------------------------------------------------------
def start(command: list[str], *, log: Path, fault_at: int | None = None) -> subprocess.Popen[bytes]:
    """Start one command in a process group of its own, output appended to `log`."""
    env = dict(os.environ)
    env[FOLDER] = str(log.parent / "board")
    Board(log.parent / "board", 0).clear()
    if fault_at is not None:
        env["FAULTPOINTS"] = json.dumps({"root": str(log.parent), "at": fault_at, "how": "before"})
        env["PYTHONPATH"] = str(Path(__file__).parent / "inject")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "mcit", *command], stdout=out, stderr=out, env=env, start_new_session=True
        )


def ended(process: subprocess.Popen[bytes], log: Path) -> bool:
    """True when the process ended by itself and well, False when it was killed; anything else is Broken."""
    code = process.wait()
    if code in (0, -signal.SIGKILL, 128 + signal.SIGKILL):
        return code == 0
    raise Broken(f"exit {code}, not killed; see {log}")


def undisturbed(this: Round) -> Timing:
    """Run and export once, noting how long each phase takes."""
    timing, log = Timing(), this.home / "log"
    begin = time.monotonic()
    marks: dict[tuple[str, str | None, int | None], float] = {}
    process = start(this.run(), log=log)
    while process.poll() is None:
        run = this.found()
        for line in run.ledger.events() if run else []:
            key = (line["event"], line.get("stage"), line.get("after"))
            marks.setdefault(key, time.monotonic() - begin)
        time.sleep(0.05)
    if not ended(process, log):
        raise Broken("the undisturbed run was killed")
    timing.run = time.monotonic() - begin
    begin = time.monotonic()
    if not ended(start(this.export(), log=log), log):
        raise Broken("the undisturbed export was killed")
    timing.export = time.monotonic() - begin
    for (event, stage, after), moment in marks.items():
        if event == "stage_committed":
            timing.phases["training"].append(moment - marks.get(("stage_started", stage, None), moment))
        if event == "eval" and after:
            before = [m for (e, _, _), m in marks.items() if e == "stage_committed" and m <= moment]
            timing.phases["evaluation"].append(moment - max(before, default=moment))
    run = this.found()
    checkpoints = len(run.ledger.events("checkpoint")) if run else 0
    timing.operations = 8 * len([p for p in this.runs.rglob("*") if p.is_file()]) + 20 * checkpoints
    return timing


# ---- killing ---------------------------------------------------------------------------------------------------------
def disturbed(this: Round, timing: Timing, draw: random.Random, kills: int, *, upto: int, of: int) -> int:
    """Run until it ends, killing it until `upto` kills are reached; returns the kills so far."""
    log = this.home / "log"
    stages = max(1, len(timing.phases["training"]))
    while True:
        if kills >= upto:
            if not ended(start(this.run(), log=log), log):
                raise Broken(f"killed by somebody else; see {log}")
            return kills
        aim = PHASES[kills % len(PHASES)]
        begin = time.monotonic()
        if aim == "operation":
            at = draw.randint(1, max(2, timing.operations // stages))
            process, how = start(this.run(), log=log, fault_at=at), f"operation {at}"
        else:
            process = start(this.run(), log=log)
            how = kill_in(this, process, aim, timing, draw)
        if ended(process, log):
            return kills
        kills += 1
        took = time.monotonic() - begin
        print(f"kill {kills}/{of} {this.home.name}: {how}, after {took:.1f} s, in {this.phase()}", flush=True)


def kill_in(this: Round, process: subprocess.Popen[bytes], aim: str, timing: Timing, draw: random.Random) -> str:
    """Wait until the run is in the wanted phase, then a random share of that phase's time, then kill."""
    run = this.found()
    before = len(run.ledger.events()) if run else 0
    began = time.time()
    while process.poll() is None and not in_phase(this, aim, before=before, began=began):
        time.sleep(0.005)
    longest = max(timing.phases[aim], default=1.0) or 1.0
    delay = draw.uniform(0.0, longest)
    if this.ranks == 1:
        kill_after(process, delay)
        return f"{aim} + {delay:.2f} s"
    rank = draw.randrange(this.ranks)
    kill_rank_after(this, process, rank, delay)
    return f"rank {rank}, {aim} + {delay:.2f} s"


def in_phase(this: Round, aim: str, *, before: int, began: float) -> bool:
    """Whether this process trains or evaluates: by the ledger lines it added, or by files of an evaluation it wrote."""
    run = this.found()
    events = run.ledger.events() if run else []
    if run is None or not events:
        return False
    last, added = events[-1]["event"], len(events) > before
    if aim == "training":
        return added and last in ("stage_started", "resumed", "checkpoint")
    written = any(path.stat().st_mtime > began for path in (run.layout.root / "evals").rglob("*") if path.is_dir())
    return last == "stage_committed" and (added or written)


def kill_after(process: subprocess.Popen[bytes], delay: float) -> None:
    """SIGKILL to the whole process group after a delay, if it still lives."""
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def kill_rank_after(this: Round, process: subprocess.Popen[bytes], rank: int, delay: float) -> None:
    """SIGKILL to one rank after a delay, if the command still runs then."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=delay)
    if process.poll() is None and rank in (pids := this.board.pids()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[rank], signal.SIGKILL)


def disturbed_export(this: Round, timing: Timing, draw: random.Random, kills: int, *, upto: int, of: int) -> int:
    """Export until it ends, killing it at random moments of its time; returns the kills so far."""
    log = this.home / "log"
    while kills < upto:
        process = start(this.export(), log=log)
        delay = draw.uniform(0.0, timing.export)
        kill_after(process, delay)
        if ended(process, log):
            break
        kills += 1
        print(f"kill {kills}/{of} {this.home.name}: export + {delay:.2f} s, in export", flush=True)
    if not ended(start(this.export(), log=log), log):
        raise Broken(f"killed by somebody else; see {log}")
    return kills


# ---- comparing -------------------------------------------------------------------------------------------------------
def digests(this: Round) -> dict[str, str]:
    """sha256 of every file whose bytes are promised, by path."""
    run = this.found()
    if run is None:
        return {}
    files = {}
    for path in sorted(run.layout.stages.glob("[0-9]*/**/*")):
        if path.is_file() and path.relative_to(run.layout.stages).parts[1] in COMPARED:
            files[str(path.relative_to(run.layout.root))] = path
    for path in sorted((run.layout.root / "evals").rglob("predictions.jsonl")):
        files[str(path.relative_to(run.layout.root))] = path
    for path in sorted((this.home / "exported").rglob("*")):
        if path.is_file():
            files[str(path.relative_to(this.home))] = path
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def compare(expected: dict[str, str], found: dict[str, str], *, name: str) -> int:
    """Print and count the files that differ or are on one side only."""
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    for key in wrong:
        print(f"differs in {name}: {key}", flush=True)
    return len(wrong)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Broken as error:
        print(f"broken: {error}", file=sys.stderr)
        sys.exit(1)
