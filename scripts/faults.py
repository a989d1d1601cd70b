"""Kill mcit at its file operations, or make them fail, run the same command again, and compare every file.

    python scripts/faults.py [CONFIG …] [--all | --rounds N] [--seed S] [--commands run eval …] [--ranks 2] [--json FILE]

For each config: run, eval, export, audit --sign and rollback once undisturbed, where it has analytic heads a request to forget
rows, and one data build, with every file operation noted.
Operations that do the same to the same file of another stage, task or step are one place. A round takes a place and what
happens there: a kill before, inside (half of a write is on disk) or after the operation, or ENOSPC, EIO or EFBIG from it. Then
`mcit status` must answer, the same command must finish, and the files must be those of the undisturbed command: byte for byte,
but for what `DIFFERENT` lists, with none missing and none left over. A traceback is a failure, whoever prints it.

``--all`` plays every place with a kill and an error, writes with every kill; else ``--rounds`` of these are drawn. Which
operation stands for a place, which kill, which error, and the order are drawn by the seed; ``--minutes`` stops earlier. With
``--ranks 2`` the run is on two processes, and every round hits one of them, each in turn: rank 0 has nearly all operations.
Exit 1 if anything failed. Commands on one process run in forks of this one, which has imported everything but done nothing.

On one process a command is started once for all its faults (`inject/states.py`): a kill leaves what is on disk at its moment,
so the folder is copied there; for an error, or half a write, the process forks there. Where two faults leave equal folders,
byte for byte, the command runs again on one of them. ``--separate`` starts a process for each fault and sends SIGKILL; so does
a system that gives this user no mounts of its own.

``--json`` appends a line per round. The same call goes on where an earlier one was stopped: rounds that the file holds for the
same state of the code are not played again, but counted. ``--part 1/2`` and ``--part 2/2`` share the rounds between two calls.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.inject.faultpoints import ERRORS, KILLS, Fault, Look
from scripts.inject.forked import call, call_ranks, prepare
from scripts.inject.samefiles import compared
from scripts.inject.states import States, can_move

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("tiny", "tiny-forget", "tiny-methods", "tiny-pool")
SMALL = ("defaults.max_steps=3", "checkpoint.every=2", "eval.rows=4", "eval.batch=2", "engine.workers=0")
"""Settings that make a run of these configs short."""
OWN = {
    "tiny-forget": ("stages.1.methods.0.alpha_epoch=0.1",),
    "scole-tiny": ("stages.stages=4",),
    "tiny-pool": (
        "router={use: analytic}",
        "defaults.methods=[]",
        "stages=[{recipe: tiny/word-forget}, {recipe: tiny/yesno}]",
    ),
}
"""What a config needs besides, to be as short; the pool's router has the heads that rows are taken out of."""
FORGETTING = "tiny-pool"
FORGOTTEN = ("word-0", "word-12", "word-17")
TASK = {"tiny-forget": "letter", "tiny-pool": "yesno"}
"""The task that is scored after the first stage; ``word`` otherwise."""
COMMANDS = ("run", "eval", "export", "audit", "forget", "rollback", "data build")


@dataclass
class Round:
    """One fault, and what came of it."""

    config: str
    command: str
    place: str
    at: int
    how: str
    rank: int | None = None
    outcome: str = ""
    """How the disturbed command ended: killed, told (an error message), absorbed (it finished), or not reached."""
    wrong: list[str] = field(default_factory=list)
    after: tuple[str, ...] = ()
    """Of these what was wrong after the fault."""
    like: str = ""
    """The round that left an equal folder, which was played."""
    seconds: float = 0
    code: str = ""
    """State of the code: what git calls it."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells one round of a config from another."""
        return self.config, self.command, self.at, self.how, self.rank, self.code


@dataclass(frozen=True)
class Scene:
    """A command in a folder of its own: what is there before, and how it is called."""

    config: str
    command: str
    before: Path
    after: Path
    note: Path
    ranks: int = 1
    settings: tuple[str, ...] = ()

    @property
    def given(self) -> Path:
        """Folder of what commands are given, beside those that are compared."""
        return self.note.parent

    def argv(self, home: Path) -> list[str]:
        """The command line in a folder."""
        several = ["--nproc", str(self.ranks)] if self.ranks > 1 else []
        if self.command == "run":
            settings = [
                part for item in (*SMALL, *OWN.get(self.config, ()), *self.settings) for part in ("--set", item)
            ]
            return ["run", self.config, "--runs-dir", str(home / "runs"), *settings, *several]
        if self.command == "data build":
            return ["data", "build", "tiny/letter-asd20", "--data-dir", str(home / "data")]
        root = str(next((home / "runs").glob("[!.]*")))
        return {
            "eval": ["eval", root, "--after", "1", "--task", TASK.get(self.config, "word")],
            "export": ["export", root, "--stage", "2", *(["--as", "pool"] if self.config == FORGETTING else [])],
            "audit": ["audit", root, "--sign", str(self.given / "key.pem")],
            "forget": ["forget", root, "--rows", str(self.given / "rows.json")],
            "rollback": ["rollback", root, "--to-stage", "1", "--yes"],
        }[self.command]


def main() -> int:
    """Undisturbed commands, then rounds; returns the exit code."""
    args = arguments()
    base = Path(args.home or tempfile.mkdtemp(prefix="mcit-faults-")).absolute()
    base.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MCIT_CACHE", str(base / "cache"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    prepare()
    code, draw, rounds = state_of_code(), random.Random(args.seed), list[tuple[Scene, Round]]()
    for config in args.configs or CONFIGS:
        for scene in scenes(config, base / config, args.commands, ranks=args.ranks, settings=tuple(args.set)):
            found = [(scene, one) for one in planned(scene, draw)]
            places = len({one.place for _, one in found})
            print(
                f"{config} {scene.command}: {len(operations(scene.note))} file operations at {places} places",
                flush=True,
            )
            rounds += found
        args.commands = [command for command in args.commands if command != "data build"]
    rounds = drawn([(scene, one) for scene, one in rounds if one.how in KILLS or not args.kills], draw)
    chosen = rounds if args.all else rounds[: args.rounds]
    for _, one in chosen:
        one.code = code
    before = {one.key: one for one in written_rounds(args.json)}
    done = [before[one.key] for _, one in chosen if one.key in before]
    part, parts = map(int, args.part.split("/"))
    left = [(scene, one) for scene, one in chosen[part - 1 :: parts] if one.key not in before]
    begin, states = time.monotonic(), dict[Scene, States | None]()
    for scene, one in left:
        if args.minutes and time.monotonic() - begin > 60 * args.minutes:
            break
        if scene not in states:
            faults = [Fault(r.at, r.how) for of, r in left if of is scene]
            together = scene.ranks == 1 and not args.separate and can_move()
            states[scene] = taken(scene, faults, base) if together else None
        kept = states[scene]
        play(scene, one, base / "round", kept if kept and kept.holds(Fault(one.at, one.how)) else None)
        done.append(one)
        where = f"{one.config} {one.command}: {one.how} {one.at}{'' if one.rank is None else f' of rank {one.rank}'}"
        print(
            f"{len(done):>4} {where} ({one.place}): {one.outcome}, {'; '.join(one.wrong) or 'same files'}", flush=True
        )
        if args.json:
            with open(args.json, "a") as file:
                file.write(json.dumps(asdict(one)) + "\n")
    print(f"{len(done)} of {len(chosen)} rounds (seed {args.seed}, code {code})")
    return summary(done)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Kills and errors at file operations; compare with an undisturbed command."
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help=f"default: {' '.join(CONFIGS)}")
    parser.add_argument("--all", action="store_true", help="every place with a kill and an error")
    parser.add_argument("--kills", action="store_true", help="kills alone, no errors")
    parser.add_argument("--rounds", type=int, default=20, help="how many are drawn without --all (default: 20)")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many, however many rounds are left")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=COMMANDS)
    parser.add_argument("--ranks", type=int, default=1, help="processes of the run; one of them is hit")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for the run: engine.kind=zero2"
    )
    parser.add_argument("--home", help="folder for everything (default: a temporary one)")
    parser.add_argument("--separate", action="store_true", help="start a process for each fault, and send it SIGKILL")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="play every N-th round, from the K-th on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add a line per round; those it holds are done")
    return parser.parse_args()


def state_of_code() -> str:
    """What git calls the package's folder, ``-dirty`` if files differ from it; empty outside a git checkout."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short=10", "HEAD:mcit") + ("-dirty" if git("status", "--porcelain", "mcit") else "")


def written_rounds(path: Path | None) -> list[Round]:
    """Rounds that an earlier call wrote; a last line cut off by a kill is dropped from the file."""
    if not path or not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        path.write_text("".join(lines := lines[:-1]))
    return [Round(**json.loads(line)) for line in lines]


def scenes(
    config: str, base: Path, commands: Sequence[str], *, ranks: int, settings: tuple[str, ...]
) -> Iterator[Scene]:
    """Each command once undisturbed, in the order in which one needs what the other made."""
    base.mkdir(parents=True, exist_ok=True)
    (base / "rows.json").write_text(json.dumps(FORGOTTEN))
    (base / "key.pem").write_bytes(private_key())
    if ranks > 1:
        commands = ["run"]
    last = nothing = base / "nothing"
    nothing.mkdir(exist_ok=True)
    for command in COMMANDS:
        if command not in commands and command != "run" or command == "forget" and config != FORGETTING:
            continue
        before = nothing if command == "data build" else last
        scene = Scene(config, command, before, base / f"{command}-after", base / f"{command}.txt", ranks, settings)
        if not scene.after.is_dir():
            undisturbed(scene, base / "now", base / f"{command}.log")
        last = scene.after
        if command in commands:
            yield scene


def private_key() -> bytes:
    """A key to sign with, the same each time (PEM)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def undisturbed(scene: Scene, home: Path, log: Path) -> None:
    """Make what a scene's command leaves."""
    fresh(scene.before, home)
    for old in (log, *scene.note.parent.glob(f"{scene.note.name}*")):
        old.unlink(missing_ok=True)
    code = started(scene, home, log, note=scene.note)
    if code != 0 or "Traceback" in log.read_text():
        raise SystemExit(f"the undisturbed command failed with {code}: see {log}")
    home.rename(scene.after)


def fresh(source: Path, home: Path) -> None:
    """Make a folder a copy of another."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(source, home, symlinks=True)


def started(
    scene: Scene,
    home: Path,
    log: Path,
    *,
    note: Path | None = None,
    fault: Fault | None = None,
    look: Look | None = None,
    rank: Any = None,
) -> int:
    """One call of a scene's command in a folder."""
    argv = scene.argv(home)
    if scene.ranks == 1:
        return call(argv, log, root=home, fault=fault, note=note, look=look)
    return call_ranks(argv, log, root=home, fault=fault, note=note, rank="any" if note else rank)


# ---- rounds ----------------------------------------------------------------------------------------------------------
def operations(note: Path) -> list[str]:
    """Operations noted, in order; on several processes those of rank 0."""
    return (note if note.is_file() else Path(f"{note}.0")).read_text().splitlines()


def place_of(operation: str) -> str:
    """An operation without the names of stages, tasks, steps and temporary files."""
    kind, _, path = operation.partition(" ")
    path = re.sub(r"\.[a-z0-9_]{8}\.tmp\b", ".*.tmp", path)
    path = re.sub(r"runs/[^/]+", "RUN", path)
    path = re.sub(r"\b\d\d-[a-z0-9-]+", "STAGE", path)
    path = re.sub(r"evals/[^/]+/[^/]+", "evals/AFTER/TASK", path)
    path = re.sub(r"(data/\.?)[a-z0-9-]+", r"\1SET", path)
    path = re.sub(r"images/\d+/[^ ]+", "images/FILE", path)
    if kind not in ("write", "rename"):  # what is done to one file of a folder is done to each in the same way
        path = re.sub(r"[^/]+\.(json|jsonl|safetensors|npy|yaml|csv|md)(\.\*\.tmp)?$", r"FILE\2", path)
    return f"{kind} {re.sub(r'[0-9]+', 'N', path)}"


def planned(scene: Scene, draw: random.Random) -> Iterator[Round]:
    """Every place with a kill and an error; every kind of kill where something is written."""
    for rank in [None] if scene.ranks == 1 else range(scene.ranks):
        note = scene.note if rank is None else Path(f"{scene.note}.{rank}")
        places: dict[str, list[int]] = {}
        for number, operation in enumerate(note.read_text().splitlines(), start=1):
            places.setdefault(place_of(operation), []).append(number)
        for place, numbers in places.items():
            kills = KILLS if place.startswith("write") else [draw.choice(("before", "after"))]
            for how in (*kills, draw.choice(ERRORS)):
                yield Round(scene.config, scene.command, place, draw.choice(numbers), how, rank)


def drawn(rounds: Sequence[tuple[Scene, Round]], draw: random.Random) -> list[tuple[Scene, Round]]:
    """Rounds in an order by the generator, the ranks in turn until one of them has no more."""
    of_rank: dict[int | None, list[tuple[Scene, Round]]] = {}
    for scene, one in draw.sample(rounds, len(rounds)):
        of_rank.setdefault(one.rank, []).append((scene, one))
    turns = itertools.zip_longest(*(of_rank[rank] for rank in sorted(of_rank, key=lambda rank: rank or 0)))
    return [pair for turn in turns for pair in turn if pair]


def taken(scene: Scene, faults: Sequence[Fault], base: Path) -> States:
    """What faults leave, from one call of the scene's command."""
    home = base / "round"
    fresh(scene.before, home)
    folder = base / "states" / f"{scene.config} {scene.command}"
    return States(folder, home, faults, lambda log, note, look: started(scene, home, log, note=note, look=look))


_OUTCOMES: dict[tuple[Scene, str], Round] = {}
"""Rounds by the folder that their fault left."""


def play(scene: Scene, one: Round, home: Path, states: States | None = None) -> None:
    """Disturb, look, run again, compare; what is wrong is noted in the round. `states` hold what faults leave."""
    begin, fault = time.monotonic(), Fault(one.at, one.how)
    log, note = home.with_suffix(".log"), home.with_suffix(".txt")
    if states:
        (code, text), note = states.ended(fault), states.note
    else:
        code = alone(scene, one, home, log, note)
        text = log.read_text()
    if one.how in KILLS:
        one.outcome = "killed" if code == -signal.SIGKILL or scene.ranks > 1 and code else f"exit {code}"
        if code == 0:
            one.outcome = "not reached" if scene.ranks == 1 else "finished"
    else:
        one.outcome = "absorbed" if code == 0 else "told" if code in (1, 4, 5) else f"exit {code}"
    if "Traceback" in text:
        one.wrong.append("traceback of the disturbed command")
    if one.outcome.startswith("exit") or one.outcome == "not reached":
        one.wrong.append(one.outcome)
    elif scene.ranks == 1:
        done = operations(note)[: one.at]  # what is written by the clock moves the numbers between calls
        one.place = place_of(done[-1]) if done else one.place
    key = (scene, states.digest(fault)) if states else None
    before = _OUTCOMES.get(key) if key else None
    if before:
        one.like = f"{before.how} {before.at}"
        one.after = before.after
    else:
        if states:
            fresh(states.at(fault), home)
        one.after = tuple(again(scene, home, log))
    if key:
        _OUTCOMES.setdefault(key, one)
    one.wrong += one.after
    one.seconds = round(time.monotonic() - begin, 2)


def alone(scene: Scene, one: Round, home: Path, log: Path, note: Path) -> int:
    """A round's fault in a process of its own; what is written by the clock may leave it fewer operations: then the last."""
    at = one.at
    while True:
        log.write_text("")
        note.unlink(missing_ok=True)
        fresh(scene.before, home)
        fault = Fault(at, one.how)
        code = started(scene, home, log, note=None if scene.ranks > 1 else note, fault=fault, rank=one.rank)
        if scene.ranks > 1 or (count := len(operations(note))) >= at or not count:
            return code
        at = count


def again(scene: Scene, home: Path, log: Path) -> Iterator[str]:
    """Ask for the status of what a fault left, run the command again, compare; gives what is wrong."""
    log.write_text("")
    if call(["status", "--runs-dir", str(home / "runs")], log, root=home) != 0 or "damaged" in log.read_text():
        yield "mcit status does not answer"
    code = started(scene, home, log)
    if code != 0:
        yield f"run again it ends with {code}: {log.read_text().strip()[-300:]}"
    if "Traceback" in log.read_text():
        yield "traceback of the command that ran again"
    yield from compared(scene.after, home)


def summary(done: Sequence[Round]) -> int:
    """Print counts by config, command and fault, and every round that went wrong; returns the exit code."""
    counts = Counter((r.config, r.command, "kill" if r.how in KILLS else "error", r.outcome) for r in done)
    for (config, command, kind, outcome), count in sorted(counts.items()):
        print(f"{config:<14}{command:<12}{kind:<6}{outcome:<12}{count:>5}")
    bad = [r for r in done if r.wrong]
    for one in bad:
        print(f"WRONG {one.config} {one.command} {one.how} {one.at} ({one.place}): {'; '.join(one.wrong)}")
    kills, places = sum(r.how in KILLS for r in done), {(r.config, r.command, r.place) for r in done}
    print(
        f"{len(done)} rounds ({kills} kills, {len(done) - kills} errors) at {len(places)} places in "
        f"{sum(r.seconds for r in done):.0f} s ({sum(bool(r.like) for r in done)} left the same as another): "
        f"{len(bad)} went wrong"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
