"""Kill mcit at its file operations, or make them fail, run the same command again, and compare every file.

    python scripts/faults.py [CONFIG …] [--all | --rounds N] [--seed S] [--commands run eval …] [--ranks 2] [--json FILE]

For each config: run, eval, export and rollback once undisturbed, and one data build, with every file operation noted.
Operations that do the same to the same file of another stage, task or step are one place. A round takes a place and what
happens there: a kill before, inside (half of a write is on disk) or after the operation, or ENOSPC, EIO or EFBIG from it. Then
`mcit status` must answer, the same command must finish, and the files must be those of the undisturbed command: byte for byte,
but for what `DIFFERENT` lists, with none missing and none left over. A traceback is a failure, whoever prints it.

``--all`` plays every place with a kill and an error, writes with every kill; else ``--rounds`` of these are drawn. Which
operation stands for a place, which kill, which error, and the order are drawn by the seed; ``--minutes`` stops earlier. With
``--ranks 2`` the run is on two processes, and every round hits one of them. Exit 1 if anything failed. Commands on one process
run in forks of this one, which has imported everything but done nothing.
"""

from __future__ import annotations

import argparse
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
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "inject"))

from faultpoints import ERRORS, KILLS, Fault, Operations

CONFIGS = ("tiny", "tiny-forget", "tiny-methods")
SMALL = ("defaults.max_steps=3", "checkpoint.every=2", "eval.rows=4", "eval.batch=2", "engine.workers=0")
"""Settings that make a run of these configs short."""
OWN = {"tiny-forget": ("stages.1.methods.0.alpha_epoch=0.1",)}
"""What a config needs besides, to be as short."""
COMMANDS = ("run", "eval", "export", "rollback", "data build")
DIFFERENT = {
    "ledger.jsonl": "times, and what happened: kills leave no line, restarts add some",
    "train.log": "times, and what was shown",
    "lock": "empty; it may be there or not",
    "stages/*/progress.json": "`seconds`",
    "stages/*/metrics.jsonl": "`seconds` of each step",
    "stages/*/manifest.json": "size and checksum of these two, and its own",
    "report/report.json": "`seconds` of each stage",
    "report/report.md": "the same",
    "report/report.html": "the same, and their sum in words",
}
"""What two runs of the same config on the same machine and number of processes may differ in."""
LIMIT_S = 900


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
            "eval": ["eval", root, "--after", "1", "--task", "letter" if self.config == "tiny-forget" else "word"],
            "export": ["export", root, "--stage", "2"],
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
    draw, rounds = random.Random(args.seed), list[tuple[Scene, Round]]()
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
    draw.shuffle(rounds)
    planned_rounds = rounds if args.all else rounds[: args.rounds]
    begin, done = time.monotonic(), list[Round]()
    for scene, one in planned_rounds:
        if args.minutes and time.monotonic() - begin > 60 * args.minutes:
            break
        play(scene, one, base / "round")
        done.append(one)
        where = f"{one.config} {one.command}: {one.how} {one.at}{'' if one.rank is None else f' of rank {one.rank}'}"
        print(
            f"{len(done):>4} {where} ({one.place}): {one.outcome}, {'; '.join(one.wrong) or 'same files'}", flush=True
        )
        if args.json:
            args.json.write_text(json.dumps([asdict(r) for r in done], indent=1))
    print(f"{len(done)} of {len(planned_rounds)} rounds (seed {args.seed})")
    return summary(done, seconds=time.monotonic() - begin)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Kills and errors at file operations; compare with an undisturbed command."
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help=f"default: {' '.join(CONFIGS)}")
    parser.add_argument("--all", action="store_true", help="every place with a kill and an error")
    parser.add_argument("--rounds", type=int, default=20, help="how many are drawn without --all (default: 20)")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many, however many rounds are left")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=COMMANDS)
    parser.add_argument("--ranks", type=int, default=1, help="processes of the run; one of them is hit")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for the run: engine.kind=zero2"
    )
    parser.add_argument("--home", help="folder for everything (default: a temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round")
    return parser.parse_args()


def prepare() -> None:
    """Import what commands import, so that each fork starts at once."""
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from rich.console import Console  # noqa: F401

    import mcit.cli.main
    import mcit.export.export
    import mcit.train.sequence  # noqa: F401

    torch.set_num_threads(1)


# ---- commands --------------------------------------------------------------------------------------------------------
def call(argv: Sequence[str], log: Path, *, root: Path, fault: Fault | None = None, note: Path | None = None) -> int:
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
        from mcit.cli.main import main as mcit

        with Operations(root, fault, note=note):
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
        env["PYTHONPATH"] = str(Path(__file__).parent / "inject")
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mcit", *argv], stdout=out, stderr=out, env=env, start_new_session=True
        )
        try:
            return process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return 124


def scenes(
    config: str, base: Path, commands: Sequence[str], *, ranks: int, settings: tuple[str, ...]
) -> Iterator[Scene]:
    """Each command once undisturbed, in the order in which one needs what the other made."""
    base.mkdir(parents=True, exist_ok=True)
    if ranks > 1:
        commands = ["run"]
    now = base / "now"
    now.mkdir()
    for command in COMMANDS:
        if command not in commands and (command == "data build" or command != "run"):
            continue
        before, after = base / f"{command}-before", base / f"{command}-after"
        shutil.copytree(now, before)
        scene = Scene(config, command, before, after, base / f"{command}.txt", ranks, settings)
        log = base / f"{command}.log"
        code = started(scene, now, log, note=scene.note)
        if code != 0 or "Traceback" in log.read_text():
            raise SystemExit(f"the undisturbed command failed with {code}: see {log}")
        shutil.copytree(now, after)
        if command in commands:
            yield scene
        if command == "rollback":
            shutil.rmtree(now)
            now.mkdir()


def started(
    scene: Scene, home: Path, log: Path, *, note: Path | None = None, fault: Fault | None = None, rank: Any = None
) -> int:
    """One call of a scene's command in a folder."""
    argv = scene.argv(home)
    if scene.ranks == 1:
        return call(argv, log, root=home, fault=fault, note=note)
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


def play(scene: Scene, one: Round, home: Path) -> None:
    """Disturb, look, run again, compare; what is wrong is noted in the round."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(scene.before, home)
    log = home.with_suffix(".log")
    log.unlink(missing_ok=True)
    code = started(scene, home, log, fault=Fault(one.at, one.how), rank=one.rank)
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
    size = len(text)
    if call(["status", "--runs-dir", str(home / "runs")], log, root=home) != 0 or "damaged" in log.read_text()[size:]:
        one.wrong.append("mcit status does not answer")
    code = started(scene, home, log)
    if code != 0:
        one.wrong.append(f"run again it ends with {code}: {log.read_text()[size:].strip()[-300:]}")
    if "Traceback" in log.read_text()[size:]:
        one.wrong.append("traceback of the command that ran again")
    one.wrong += compared(scene.after, home)


# ---- comparing -------------------------------------------------------------------------------------------------------
def compared(expected: Path, found: Path) -> list[str]:
    """Files that differ, are missing or are left over."""
    here, there = contents(expected), contents(found)
    out = [f"missing: {name}" for name in here.keys() - there.keys()]
    out += [f"left over: {name}" for name in there.keys() - here.keys()]
    return sorted(out + [f"differs: {name}" for name in here.keys() & there.keys() if here[name] != there[name]])


def contents(root: Path) -> dict[str, bytes]:
    """Content of every file by path, without what may differ; empty folders that are hidden count too."""
    out: dict[str, bytes] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        inside = name.split("/", 2)[2] if name.startswith("runs/") and name.count("/") > 1 else ""
        if path.is_dir():
            if path.name.startswith("."):
                out[f"{name}/"] = b""
        elif inside not in ("lock", "ledger.jsonl", "train.log") and path.suffix != ".lock":
            out[name] = comparable(inside, path.read_bytes())
    return out


def comparable(name: str, data: bytes) -> bytes:
    """Bytes of a file without seconds and what follows from them; `name` is relative to the run."""
    if name.startswith("stages/") and name.endswith("/progress.json"):
        return plain({**json.loads(data), "seconds": 0})
    if name.startswith("stages/") and name.endswith("/metrics.jsonl"):
        return b"\n".join(plain({**json.loads(line), "seconds": 0}) for line in data.splitlines())
    if re.fullmatch(r"stages/[^/]+/manifest\.json", name):
        files = json.loads(data)["files"]
        return plain({k: v if k not in ("progress.json", "metrics.jsonl") else None for k, v in files.items()})
    if name == "report/report.json":
        report = json.loads(data)
        return plain({**report, "costs": [{**cost, "seconds": 0} for cost in report["costs"]]})
    if name == "report/report.md":
        head, _, costs = data.decode().partition("\n| stage | steps | ")
        return (head + re.sub(r"\d+\.\d\d \|", "S |", costs)).encode()
    if name == "report/report.html":
        text = re.sub(r'<td data-sort="[\d.]+">[^<]* (s|min|h)</td>', "<td>S</td>", data.decode())
        return re.sub(r"Training took [^:<]+:", "Training took S:", text).encode()
    return data


def plain(value: Any) -> bytes:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True).encode()


def summary(done: Sequence[Round], *, seconds: float) -> int:
    """Print counts by config, command and fault, and every round that went wrong; returns the exit code."""
    counts = Counter((r.config, r.command, "kill" if r.how in KILLS else "error", r.outcome) for r in done)
    for (config, command, kind, outcome), count in sorted(counts.items()):
        print(f"{config:<14}{command:<12}{kind:<6}{outcome:<12}{count:>5}")
    bad = [r for r in done if r.wrong]
    for one in bad:
        print(f"WRONG {one.config} {one.command} {one.how} {one.at} ({one.place}): {'; '.join(one.wrong)}")
    kills, places = sum(r.how in KILLS for r in done), {(r.config, r.command, r.place) for r in done}
    print(
        f"{len(done)} rounds ({kills} kills, {len(done) - kills} errors) at {len(places)} places in {seconds:.0f} s: "
        f"{len(bad)} went wrong"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
