"""Run directories without a model: dict savers in place of engine, methods and streams, and a sequence over them."""

import contextlib
import json
import os
import signal
from types import SimpleNamespace

from mcit.core.files import append_line, read_json, read_lines, write_json, write_text
from mcit.core.stored import sealed_line
from mcit.runs.ledger import chained
from mcit.runs.run import Run, config_digest, open_run
from scripts.inject.faultpoints import Fault, Operations

STEPS, EVERY = 5, 2


class Saver:
    """State in two JSON files."""

    def __init__(self, **state):
        self.state = state

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "state.json", self.state)
        write_text(folder / "double.txt", str(self.state) * 2)

    def load(self, folder):
        self.state = read_json(folder / "state.json")


class Streams:
    """One cursor."""

    def __init__(self):
        self.position = 0

    @property
    def cursors(self):
        return {"task": self.position}

    def seek(self, cursors):
        self.position = cursors["task"]


def resolved(*, seed=1, micro_batch=4, stages=("a", "b")):
    return {
        "name": "toy",
        "seed": seed,
        "engine": {"kind": "plain", "micro_batch": micro_batch},
        "checkpoint": {"every": EVERY, "keep": 2},
        "stages": [{"recipe": name, "epochs": 1} for name in stages],
    }


def plan_content(config, **changes):
    names = [s["recipe"] for s in config["stages"]]
    content = plan_record([[name] for name in names], names=names, method_state={"l2": 1})
    content["name"], content["digest"] = config["name"], config_digest(config)
    return {**content, **changes}


def plan_record(tasks, *, names=None, scorer="exact", style="word", mode="strict", method_state=None):
    """plan.json of a run that trains so many lists of tasks in order."""
    names = names or [f"s{k}" for k in range(1, len(tasks) + 1)]
    every = list(dict.fromkeys(task for some in tasks for task in some))
    stages = [
        {
            "index": k,
            "name": name,
            "folder": f"{k:02d}-{name}",
            "tasks": list(some),
            "forget": [],
            "steps": STEPS,
            "rows": 10,
            "seed": k,
            "carry": "merge",
            "passes": 1.0,
            "hooks": {},
            "method_state": method_state or {},
        }
        for k, (name, some) in enumerate(zip(names, tasks, strict=True), start=1)
    ]
    return {
        "name": "toy",
        "digest": "d" * 64,
        "code": "0.1.0",
        "base": "/base",
        "base_sha256": "0" * 64,
        "chat_template_sha256": None,
        "tasks": every,
        "forget_tasks": [],
        "recipes": {task: f"digest-{task}" for task in every},
        "scorers": {task: {"scorer": scorer, "style": style} for task in every},
        "sources": {},
        "stages": stages,
        "scorer_mode": mode,
    }


def create(root, plan, *, config=None, env=None):
    """A run folder of this plan with nothing trained; an older plan is replaced. `config` adds to the resolved one."""
    run = Run(root)
    stages = [{"recipe": stage["name"], "methods": []} for stage in plan["stages"]]
    resolved = {"name": plan["name"], "seed": 1, "stages": stages, **(config or {})}
    run.create(config_text="", resolved=resolved, plan_json=plan, environment=env or environment())
    return run


def rejection(folder):
    """Record of a gate whose stage was rejected."""
    digests = {f"{name}_sha256": "0" * 64 for name in ("gate", "stage", "before")}
    said = {"verdict": "fail", "results": [], "ended": None, "decision": "rejected", "by": "me", "time": "2026-01-01"}
    return {"stage": folder, "index": int(folder[:2]), **digests, **said}


def json_lines(path):
    """Content of a file of JSON lines."""
    return [json.loads(line) for line in read_lines(path)]


def environment(**versions):
    known = {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "accelerate": "1.15.0", "mcit": "0.1.0"}
    return {"versions": {**known, "python": "3.11.9", **versions}, "threads": 2}


def opened(runs_dir, config=None, *, by=open_run, env=None, content=None, **options):
    """`open_run` of a toy config, or another function that opens runs."""
    config = config or resolved()
    content = content or plan_content(config)
    stages = tuple(SimpleNamespace(folder=stage["folder"]) for stage in content["stages"])
    plan = SimpleNamespace(config=SimpleNamespace(name=config["name"]), digest=config_digest(config), stages=stages)
    start = {"config_text": f"name: toy # {len(stages)}\n", "resolved": config, "plan_json": content}
    return by(plan, runs_dir=runs_dir, environment=env or environment(), **start, **options)


def train(run, folder, *, until=None, steps=STEPS):
    """One stage whose result depends on every step, the cursor and on being restored right; None if stopped early."""
    engine, methods, streams = Saver(weight=1), Saver(seen=[]), Streams()
    with run.draft(folder, keep=2) as draft:
        first = draft.restore(engine, methods, streams)
        for step in range(first, steps):
            if step == until:
                return None
            streams.position += 3
            engine.state["weight"] = (engine.state["weight"] * 31 + streams.position) % 1_000_003
            methods.state["seen"] = [*methods.state["seen"], streams.position]
            draft.record(step + 1, {"loss": 1.0 / (step + 1), "cursor": streams.position})
            if (step + 1) % EVERY == 0 or step + 1 == steps:
                draft.checkpoint(step + 1, engine, methods, streams, {"tokens": streams.position})

        def write(out):
            write_json(out / "adapter" / "weights.json", engine.state)
            methods.save(out / "methods" / "l2")
            write_json(out / "lineage.json", {"folder": folder})

        return draft.commit(write, {"steps": steps, "tokens": draft.extra.get("tokens")})


def whole(runs_dir, config=None, **options):
    """A run (of two stages) from the first line to the last."""
    run = opened(runs_dir, config, **options)
    with run.locked():
        for folder in run.stage_folders():
            if not run.is_committed(folder):
                train(run, folder)
    return run


def older(run, **keys):
    """The ledger as an mcit wrote it that did not know a key of the lines of these events."""
    events = run.ledger.events()
    run.layout.ledger.unlink()
    for event in events:
        line = {key: value for key, value in event.items() if key not in (keys.get(event["event"]), "previous")}
        append_line(run.layout.ledger, lambda last, line=line: sealed_line({**line, "previous": chained(last)}))


def stage_bytes(run):
    """Every byte of every committed stage but the clock-like files."""
    skip = {"progress.json", "manifest.json"}
    paths = sorted(p for p in run.layout.stages.rglob("*") if p.is_file() and p.name not in skip)
    return {str(p.relative_to(run.layout.stages)): p.read_bytes() for p in paths}


def killed_at(number, work):
    """Run `work` in a forked process that is killed before its `number`-th new name (file, rename); True if it was."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException), Operations("/", Fault(number), kinds={"create", "rename"}):
            work()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False
