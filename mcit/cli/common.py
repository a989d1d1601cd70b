"""What several verbs share: arguments, live display, opening a run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mcit.cli.live import describe
from mcit.core.errors import ConfigError, printable
from mcit.core.interfaces import Reporter
from mcit.core.types import JsonDict, Plan, Progress

if TYPE_CHECKING:
    from mcit.core.schema import RunConfig
    from mcit.models.combine import Combination
    from mcit.runs.run import Run

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "pillow",
    "safetensors",
    "numpy",
)


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG, --set, --json."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or the name of a shipped config such as demo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value: --set seed=3")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def print_json(content: Any) -> None:
    """One line of JSON in ASCII alone: any terminal, pipe and locale takes it, and nothing in it steers a terminal."""
    print(json.dumps(content))


def trust_argument(parser: argparse.ArgumentParser) -> None:
    """--trust-mtime."""
    parser.add_argument(
        "--trust-mtime",
        action="store_true",
        help="do not read pictures and base again whose size and times are as an earlier command saw them",
    )


def profile_argument(parser: argparse.ArgumentParser) -> None:
    """--profile."""
    parser.add_argument("--profile", action="store_true", help="measure where time goes; the report and status show it")


def combine_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """--combine or --combined HOW, --stages, --weights, --density, --rank."""
    kinds = ("linear", "ties", "dare", "linear_svd", "ties_svd", "dare_svd")
    parser.add_argument(name, dest="combine", choices=kinds, help="several stages as one adapter, by PEFT's functions")
    parser.add_argument("--stages", metavar="A,B,…", help="stages to combine (default: all that are committed)")
    parser.add_argument("--weights", metavar="X,Y,…", help="a weight for each of them (default: 1)")
    parser.add_argument(
        "--density", type=float, metavar="D", help="share of values that ties and dare keep (default: 0.5)"
    )
    parser.add_argument("--rank", type=int, metavar="R", help="of the result of a kind that ends in _svd")


def combination_of(args: argparse.Namespace, run: Run) -> Combination | None:
    """What --combine asks for. Raises ConfigError for what cannot be combined, or for its options without it."""
    for name in ("stages", "weights", "density", "rank"):
        if getattr(args, name) is not None and not args.combine:
            raise ConfigError("goes with a combination of stages only", where=f"--{name}", fix="leave it out")
    if not args.combine:
        return None
    from mcit.core.seeds import seed_for
    from mcit.models.combine import combination
    from mcit.runs.gates import done_stages

    stages, weights = _numbers_of(args, "stages", int), _numbers_of(args, "weights", float)
    seed = seed_for(config_of_run(run).seed, "combine")
    given = {"stages": stages, "weights": weights, "density": args.density, "rank": args.rank, "seed": seed}
    return combination(args.combine, committed=done_stages(run), **given)


def _numbers_of(args: argparse.Namespace, name: str, kind: type) -> list[Any] | None:
    text = getattr(args, name)
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"'{text}' is no list of numbers", where=f"--{name}", fix="write for example 1,2") from None


def start_torch(*, computes: bool = True) -> None:
    """Settings of every command: no tokenizer threads, quiet libraries; where it `computes`, deterministic kernels.

    Torch would also write every new tensor full of NaN first, which no kernel here needs.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import logging as std_logging

    import torch

    if not torch.cuda.is_available():  # or deepspeed, which transformers looks at, warns on every start
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    std_logging.getLogger("bitsandbytes").setLevel(std_logging.ERROR)
    from transformers.utils import logging

    if computes:  # the setting loads torch's compiler, seconds that a check can do without
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def environment() -> JsonDict:
    """Versions, machine and devices, for environment.json."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    import mcit

    versions: dict[str, str | None] = {"mcit": mcit.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    cuda = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "versions": versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "devices": cuda or ["cpu"],
    }


STOPPING = "stopping after this step; a second signal stops at once"


class StopFlag:
    """Set by SIGTERM or SIGINT; the loop looks at it after every step. A second signal stops at once."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet` for a rank whose starter tells the user."""
        self.set, self._quiet = False, quiet

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.set

    def install(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.set:
            raise KeyboardInterrupt
        self.set = True
        if not self._quiet:
            print(STOPPING, file=sys.stderr, flush=True)


class Lines:
    """Plain log lines: every line as it comes, progress at most every few seconds."""

    def __init__(self, *, every_s: float = 5.0) -> None:
        self._every, self._last = every_s, -every_s

    def line(self, text: str) -> None:
        """Print with flush, so that a log file is always current."""
        print(printable(text), file=sys.stderr, flush=True)

    def doing(self, text: str) -> None:
        """The first thing at once, others as progress."""
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self.line(f"{text} …")

    def progress(self, progress: Progress) -> None:
        """One line every few seconds and at the end of each phase."""
        now = time.monotonic()
        if now - self._last >= self._every or progress.done == progress.total:
            self._last = now
            self.line(describe(progress))


def reporter() -> Reporter:
    """The live view on a terminal, log lines elsewhere and on ranks other than 0."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        from mcit.cli.live import Live

        return Live()
    return Lines()


def config_of_run(run: Run) -> RunConfig:
    """The stored resolved config of an existing run. Raises StateError if it no longer resolves."""
    from mcit.core.errors import StateError
    from mcit.plan.plan import parse_run

    config, problems = parse_run(run.config())
    if config is None:
        raise StateError.of(problems)
    return config


def plan_of_run(run: Run) -> Plan:
    """The plan of an existing run. Raises StateError if its stored config no longer resolves."""
    from mcit.plan.gone import recorded
    from mcit.plan.plan import make_plan

    return make_plan(config_of_run(run), known=recorded([run], name=run.plan()["name"]))


def plan_as_begun(run: Run) -> Plan:
    """The same, for commands that add what they measure to a run. Raises StateError naming data that are not what they were."""
    from mcit.core.errors import Problem, StateError
    from mcit.plan.datasets import readable
    from mcit.runs.identity import told

    plan, known = plan_of_run(run), run.identity()
    now = {f"recipe {task.recipe}": task.digest for task in readable(plan)}
    changes = {key: (known[key], digest) for key, digest in now.items() if key in known and known[key] != digest}
    if changes:
        root = run.layout.root
        fix = f"restore it, or accept it first with: mcit resume {shlex.quote(str(root))} --accept-changes"
        raise StateError.of([Problem(str(root), f"changed since the run began: {text}", fix) for text in told(changes)])
    return plan


def runs_dir(args: argparse.Namespace) -> Path:
    """--runs-dir, else ``runs`` in the current folder."""
    return Path(args.runs_dir)
