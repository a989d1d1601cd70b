"""``mcit doctor``: versions, devices, cache, disk and write speed; ``--selftest`` runs the engine contract here, ``--bench``
measures training and answers."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.cli.common import print_json
from mcit.core.errors import ConfigError, Interrupted, McitError, Problem, StateError
from mcit.core.types import JsonDict

if TYPE_CHECKING:
    from mcit.core.schema import RunConfig
    from mcit.selftest.selftest import Item, Outcome

FAILED = 3
"""Exit code when a check of the self-test did not pass."""
LIMIT_S = 300.0
_COLLECTIVE_S = 60.0


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    from mcit.cli.team import nproc_argument

    parser = verbs.add_parser("doctor", help="versions, devices, disk and write speed; --selftest tries the engines")
    parser.add_argument("--runs-dir", default="runs", help="folder whose disk is measured (default: runs)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--selftest", action="store_true", help="run the engine contract on the devices that are here")
    engines = ("plain", "zero1", "zero2", "zero3", "all")
    parser.add_argument("--engine", choices=engines, help="of the self-test (default: plain; with several ranks: all)")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, metavar="SECONDS", help="of self-test or benchmark (default: 300)"
    )
    parser.add_argument(
        "--bench",
        nargs="?",
        const="",
        metavar="MODEL",
        help="measure training and answers of a model (a folder, tiny or embedded), or of LLaVA's shape with random weights",
    )
    parser.add_argument("--size", choices=("tiny", "7b", "13b"), help="of that shape (default: by the GPU's memory)")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of a step of the benchmark (default: 5)")
    parser.add_argument("--questions", type=int, metavar="N", help="rows of each of its pictures (default: 5)")
    nproc_argument(parser)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(verb="doctor")


def run(args: argparse.Namespace) -> int:
    """Collect and print; exit 5 when the folder cannot be written, 3 when self-test or benchmark failed a check."""
    refuse_mixed(args)
    if args.bench is not None:
        return bench(args)
    if not args.selftest:
        report = collected(args)
        print_json(report) if args.json else show(report)
        return 0
    from mcit.cli import common, team
    from mcit.core.schema import EngineConfig
    from mcit.engine import launch

    place = launch.launch_of(os.environ)
    team.refuse(plan_for(place.size if place else args.nproc or 1), nproc=args.nproc)
    if place is not None and place.size > 1:
        stop = common.StopFlag(quiet=team.started_by_mcit())
        stop.install()
        with team.joined(EngineConfig(timeout=_COLLECTIVE_S)) as ranks:
            first = ranks.rank() == 0
            if args.job:
                work(args.job, stop=stop)
                return 0
            made = tempfile.mkdtemp(prefix=".mcit-selftest-", dir=existing(args.runs_dir)) if ranks.rank() == 0 else ""
            folder = Path(ranks.broadcast_object(made))
            begin(folder, everything(args, ranks.size()), limit=args.limit)
            work(folder, stop=stop)
            ranks.barrier()
            outcomes = finished(args, folder, everything(args, ranks.size()), ranks=ranks.size())
            ranks.barrier()
        if first:
            shutil.rmtree(folder, ignore_errors=True)
            return told(args, collected(args), outcomes)
        return 0 if all(o.passed for o in outcomes) else FAILED
    report = collected(args)
    if not args.json:
        show(report)
    with scratch(args.runs_dir) as folder:
        return told(args, report, on_ranks(args, folder) if (args.nproc or 1) > 1 else alone(args, folder))


# ---- the benchmark ---------------------------------------------------------------------------------------------------
def refuse_mixed(args: argparse.Namespace) -> None:
    """Raises ConfigError for settings of the benchmark that are wrong or have nothing to act on."""
    given = [name for name in ("size", "rows", "questions") if getattr(args, name) is not None]
    problems = []
    if args.bench is None:
        problems += [Problem(f"--{name}", "belongs to --bench", "add --bench, or leave it out") for name in given]
    elif args.selftest:
        problems.append(Problem("--bench", "goes without --selftest", "give them in two commands"))
    elif (args.nproc or 1) > 1:
        problems.append(Problem("--nproc", "--bench measures one device", "leave --nproc out"))
    if args.bench and args.size:
        problems.append(Problem("--size", "belongs to the shape with random weights", "leave it or MODEL out"))
    problems += [
        Problem(f"--{name}", f"is {getattr(args, name)}", "give 1 or more")
        for name in ("rows", "questions")
        if getattr(args, name) is not None and getattr(args, name) < 1
    ]
    if not args.limit > 0:
        problems.append(Problem("--limit", f"is {args.limit:g} seconds", "give more than 0"))
    if problems:
        raise ConfigError.of(problems)


def bench(args: argparse.Namespace) -> int:
    """Measure and print; exit 3 when the sides' losses differ."""
    from mcit.cli import common

    common.start_torch()
    import torch

    from mcit.selftest import bench, workload

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, questions = args.rows or 5, args.questions or 5

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say("model")
    if args.bench:
        base = workload.base_of(args.bench)
        work = workload.of_base(base, device=device, rows=rows, questions=questions)
    else:
        size = args.size or workload.size_for(device)
        work = workload.of_shape(size, device=device, rows=rows, questions=questions)
    found: JsonDict = {
        **common.environment(),
        "model": work.name,
        "device": bench.device_name(device),
        "dtype": workload.dtype_for(device),
        "rows": rows,
        "questions": questions,
        **bench.measure(work, device=device, limit=args.limit, say=say),
    }
    alike = found["loss_difference"] <= found["loss_allowed"]
    if args.json:
        print_json({**found, "alike": alike})
    else:
        bench_table(found)
        for note in found["notes"]:
            print(f"note: {note}")
        print(bench.line(found))
        if not alike:
            print(
                f"FAILED: first losses differ by {found['loss_difference']:.1e}, {found['loss_allowed']:g} is allowed"
            )
    return 0 if alike else FAILED


def bench_table(found: JsonDict) -> None:
    """A line per side."""
    from rich.console import Console
    from rich.table import Table

    shown = Table()
    for title in ("side", "tokens/s", "rows/s", "s a step", "MFU", "peak GB"):
        shown.add_column(title)
    names = {"packs": "mcit", "padded": "mcit, packs off", "plain": "transformers + peft"}
    for name, side in found["sides"].items():
        seconds, used = side["step_s"], side["utilisation"]
        shown.add_row(
            names[name],
            f"{side['tokens_per_s']:.0f}",
            f"{side['rows_per_s']:.2f}",
            f"{seconds['median']:.4g} ({seconds['min']:.4g} to {seconds['max']:.4g}, {seconds['steps']} steps)",
            ", ".join(f"{share:.2f} of {kind}" for kind, share in used.items()),
            "–" if side["peak_gb"] is None else f"{side['peak_gb']:.1f}",
        )
    Console().print(shown)


# ---- the machine -----------------------------------------------------------------------------------------------------
def collected(args: argparse.Namespace) -> JsonDict:
    """Versions, devices, folders, disk."""
    from mcit.cli.common import environment
    from mcit.core.paths import cache_dir, shipped

    folder = existing(args.runs_dir)
    return {
        **environment(),
        "cache": str(cache_dir()),
        "configs": str(shipped("configs")),
        "cores": os.cpu_count(),
        "free_gb": round(shutil.disk_usage(folder).free / 1e9, 1),
        "write_mb_s": write_speed(folder),
    }


def show(report: JsonDict) -> None:
    """One line per finding."""
    from rich.console import Console

    console = Console()
    for key, value in report.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                console.print(f"{key}.{name}: {inner or 'not installed'}", highlight=False)
        else:
            console.print(f"{key}: {value}", highlight=False)


def existing(runs_dir: str) -> Path:
    """The folder itself or the nearest one above it that exists."""
    return next(p for p in [Path(runs_dir), *Path(runs_dir).absolute().parents] if p.exists())


def write_speed(folder: Path, *, mb: int = 64) -> float:
    """Megabytes per second of one flushed write. Raises StateError when the folder is not writable."""
    block = os.urandom(1 << 20)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".mcit-doctor-") as file:
            start = time.monotonic()
            for _ in range(mb):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return round(mb / (time.monotonic() - start), 1)
    except OSError as error:
        raise StateError(
            f"cannot be written ({error.strerror})", where=str(folder), fix="choose another --runs-dir"
        ) from None


# ---- the self-test ---------------------------------------------------------------------------------------------------
def plan_for(ranks: int) -> RunConfig:
    """A config for the checks of launcher and number of ranks that ``mcit run`` makes."""
    from mcit.core.schema import RunConfig

    stage = {"recipe": "tiny/letter", "optim": {"batch": 2 * max(1, ranks)}}
    return RunConfig.model_validate(
        {"name": "selftest", "base": {"family": "tiny", "dtype": "fp32"}, "stages": [stage]}
    )


@contextlib.contextmanager
def scratch(runs_dir: str) -> Iterator[Path]:
    """A folder on the disk of the runs, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=".mcit-selftest-", dir=existing(runs_dir)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def everything(args: argparse.Namespace, ranks: int) -> list[Item]:
    """All checks that were asked for."""
    from mcit.selftest.selftest import items_for

    return items_for(args.engine, ranks=ranks)


def begin(folder: Path, items: Sequence[Item], *, limit: float, deadline: float | None = None) -> None:
    """Write down what the ranks are to do."""
    from mcit.core.files import write_json

    end = time.time() + limit if deadline is None else deadline
    write_json(folder / "work.json", {"items": [[i.engine, i.check] for i in items], "deadline": end, "limit": limit})


def work(folder: Path, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Run what ``work.json`` lists, on this process or as one of several ranks."""
    from mcit.cli import common
    from mcit.core.files import read_json

    warnings.simplefilter("ignore", FutureWarning)
    common.start_torch()
    from mcit.core.schema import EngineConfig
    from mcit.export.export import export_stage
    from mcit.selftest.selftest import CHECK_S, Item, run_items

    listed = read_json(folder / "work.json")
    run_items(
        [Item(*pair) for pair in listed["items"]],
        folder,
        deadline=listed["deadline"],
        check_s=max(CHECK_S, listed["limit"] / 4),
        config=EngineConfig(timeout=_COLLECTIVE_S),
        stop=stop,
        say=lambda line: print(line, file=sys.stderr, flush=True),
        environment=common.environment(),
        export=export_stage,
    )


def alone(args: argparse.Namespace, folder: Path) -> list[Outcome]:
    """On this process."""
    items = everything(args, 1)
    begin(folder, items, limit=args.limit)
    work(folder)
    return finished(args, folder, items, ranks=1)


def on_ranks(args: argparse.Namespace, folder: Path) -> list[Outcome]:
    """On `--nproc` ranks; when they die in a check, that check failed and new ranks go on with the next.

    Raises Interrupted after a signal.
    """
    from mcit.engine import launch
    from mcit.selftest.selftest import died, outcome_of

    items, lost, ranks = everything(args, args.nproc), dict[Any, Any](), args.nproc
    left, deadline = items, time.time() + args.limit
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's advice on speed means nothing here
    while left and time.time() < deadline:
        begin(folder, left, limit=args.limit, deadline=deadline)
        ended = launch.start_ranks(
            [*args.argv, "--job", str(folder)], ranks, says="stopping after this check; a second signal stops at once"
        )
        if ended.code == Interrupted.exit_code:
            fix = "run it again: it begins anew"
            raise ended.error or Interrupted("stopped by a signal", where="self-test", fix=fix)
        left = [item for item in items if item not in lost and outcome_of(item, folder, ranks=ranks) is None]
        if ended.code == 0:
            break
        error = reason(ended.error) or f"the ranks ended with code {ended.code}"
        at = left.pop(0) if left else items[-1]  # ranks that die after the last check fail in it
        lost[at] = died(at, folder, error=error)
    return finished(args, folder, items, ranks=ranks, lost=lost)


def reason(error: McitError | None) -> str:
    """What ended the ranks, in one line; the cure of `mcit run`, to run it again, is none here."""
    problems = error.problems if error else ()
    logs = [f" ({p.fix})" if p.fix.startswith("traceback") else "" for p in problems]
    return "; ".join(f"{p.where}: {p.what}{log}" for p, log in zip(problems, logs, strict=True))


def finished(
    args: argparse.Namespace, folder: Path, items: Sequence[Item], *, ranks: int, lost: dict[Any, Any] | None = None
) -> list[Outcome]:
    """One outcome per check."""
    from mcit.selftest.selftest import not_run, outcome_of

    out = []
    for item in items:
        found = (lost or {}).get(item) or outcome_of(item, folder, ranks=ranks)
        out.append(found or not_run(item, limit=args.limit))
    return out


def told(args: argparse.Namespace, report: JsonDict, outcomes: Sequence[Outcome]) -> int:
    """Print everything; returns the exit code."""
    from mcit.selftest.selftest import summary

    found = summary(outcomes)
    if args.json:
        print_json({**report, "selftest": found})
    else:
        table(outcomes)
        took = ", ".join(f"{kind} {seconds:g} s" for kind, seconds in found["seconds"].items())
        failed = sum(not o.passed for o in outcomes)
        print(f"self-test {'passed' if found['passed'] else f'FAILED: {failed} of {len(outcomes)} checks'} ({took})")
    return 0 if found["passed"] else FAILED


def table(outcomes: Sequence[Outcome]) -> None:
    """A line per check."""
    from rich.console import Console
    from rich.table import Table

    from mcit.selftest.selftest import result_of

    shown = Table()
    for title in ("engine", "check", "result", "number", "s", "what"):
        shown.add_column(title, overflow="fold", no_wrap=title in ("engine", "check", "result", "number"))
    for o in outcomes:
        number = "–" if o.number is None else f"{o.number:.1e}"
        result = f"[{'green' if o.passed else 'red'}]{result_of(o)}[/]"
        shown.add_row(o.engine, o.check, result, number, f"{o.seconds:.1f}", o.what.replace("[", r"\["))
    Console().print(shown)
