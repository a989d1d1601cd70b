"""Every kind of file of a run, damaged in five ways: the next command names it, heals it or says what is lost.

The table in docs/reliability.md is written from here: ``WRITE_DOCS=1 pytest -m exhaustive tests/test_corruption.py``.
"""

import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts import faults
from scripts.inject.faultpoints import Fault
from tests.fakes import vllm
from tests.fakes.docs import block, written

DOCS = Path(__file__).parents[1] / "docs" / "reliability.md"
SHORT = ("defaults.max_steps=4", "eval.base=false", *faults.SMALL[1:])
POOL = (
    "defaults.adapter={rank: 4, alpha: 8, also_train: [], carry: pool}",
    "router={use: mcit_sample.nearest:Nearest}",
    "probes=[{use: seen, every: 2, count: 2, share: null}]",
)


def given(config, tasks, *settings):
    stages = ", ".join(f"{{recipe: tiny/{task}}}" for task in tasks)
    return [config, *(part for item in (f"stages=[{stages}]", *SHORT, *settings) for part in ("--set", item))]


RUNS = {
    "run": given("tiny-methods", ("letter", "yesno")),
    "branch": given("tiny-methods", ("letter", "word"), "name=branch"),
    "extension": given("tiny-methods", ("letter", "yesno", "word")),
    "pool": given("tiny", ("letter", "yesno"), *POOL),
    "profiled": [*given("tiny", ("letter",)), "--profile"],
    "served": given("tiny", ("letter",), "eval.backend=vllm", "eval.vllm={compare: 2}"),
}
"""Arguments of ``mcit run`` by what is run."""
KILLED = {
    "between": ("run", r"mkdir runs/[^/]+/stages/\.02-[^/]+$", "before"),
    "stage": ("run", r"rename runs/[^/]+/stages/02-", "before"),
    "answers": ("run", r"fsync .*after-02/yesno/predictions\.p", "after"),
    "extending": ("extension", r"rename runs/[^/]+/extension$", "after"),
    "pool stage": ("pool", r"rename runs/[^/]+/stages/02-", "before"),
}
"""States that a kill leaves: what was run, the last operation of this form, and whether it was done."""


def flipped(data):
    """One bit of the byte in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def renamed(data):
    """One letter of the last key in the file; in a file of tensors one of a name in its header."""
    found = list(re.finditer(rb'"(\w+)":', data))
    at = found[-1].start(1) if found else len(data) // 3
    return data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :]


DAMAGES = {
    "a bit flipped": flipped,
    "a key misspelt": renamed,
    "cut in half": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "removed": None,
}


@dataclass(frozen=True)
class Case:
    """A kind of file, where one of it is, and the command that comes next."""

    kind: str
    where: str
    """Pattern below the folder of the run."""
    command: str = "run"
    state: str = "run"
    """What was run and not disturbed, or what a kill left of it."""
    run: str = "*"
    """Pattern of the run's folder."""

    @property
    def what(self):
        """What was run."""
        return KILLED[self.state][0] if self.state in KILLED else self.state


CASES = [
    *(Case(name, name) for name in ("config.yaml", "resolved.yaml", "plan.json", "environment.json", "manifest.json")),
    Case("ledger.jsonl", "ledger.jsonl"),
    Case("certificates/stages/*.json", "certificates/stages/01-*.json"),
    Case("lock.json of a killed process", "lock.json", state="stage"),
    Case("stages/*/manifest.json", "stages/01-*/manifest.json"),
    Case("stages/*/progress.json", "stages/01-*/progress.json"),
    Case("stages/*/progress.json", "stages/01-*/progress.json", "report"),
    Case("stages/*/metrics.jsonl", "stages/01-*/metrics.jsonl"),
    Case("stages/*/lineage.json", "stages/01-*/lineage.json"),
    Case("stages/*/adapter/*.safetensors", "stages/01-*/adapter/adapter_model.safetensors"),
    Case("stages/*/adapter/adapter_config.json", "stages/01-*/adapter/adapter_config.json"),
    Case("stages/*/adapter/mcit.json", "stages/01-*/adapter/mcit.json"),
    Case("stages/*/methods/*/state.json", "stages/01-*/methods/reglora/state.json"),
    Case("stages/*/methods/*/tensors.safetensors", "stages/01-*/methods/reglora/tensors.safetensors"),
    Case("a live checkpoint's manifest.json", "stages/.02-*/live/000004/manifest.json", state="stage"),
    Case("… streams.json", "stages/.02-*/live/000004/streams.json", state="stage"),
    Case("… engine.json", "stages/.02-*/live/000004/engine.json", state="stage"),
    Case("… model.safetensors", "stages/.02-*/live/000004/model.safetensors", state="stage"),
    Case("… optimizer.safetensors", "stages/.02-*/live/000004/optimizer.safetensors", state="stage"),
    Case("… rng/*.safetensors", "stages/.02-*/live/000004/rng/rank-000.safetensors", state="stage"),
    Case("… methods/*/state.json", "stages/.02-*/live/000004/methods/gere/state.json", state="stage"),
    Case("… metrics.jsonl", "stages/.02-*/live/000004/metrics.jsonl", state="stage"),
    Case("metrics.jsonl of a stage under way", "stages/.02-*/metrics.jsonl", state="stage"),
    Case("blobs/*.json", "blobs/gere-*.json", state="between"),
    Case("blobs/*.safetensors", "blobs/gere-*.safetensors", state="between"),
    Case("evals/*/*/predictions.part.jsonl", "evals/after-02/yesno/predictions.part.jsonl", state="answers"),
    Case("evals/*/*/generation.json", "evals/after-01/letter/generation.json"),
    Case("evals/*/*/predictions.jsonl", "evals/after-01/letter/predictions.jsonl"),
    Case("evals/*/*/predictions.jsonl", "evals/after-01/letter/predictions.jsonl", "eval --rescore"),
    Case("evals/*/*/rows.json", "evals/after-01/letter/rows.json"),
    Case("evals/*/*/rows.json", "evals/after-01/letter/rows.json", "report"),
    Case("evals/*/*/score.json", "evals/after-01/letter/score.json"),
    Case("evals/*/*/score.json", "evals/after-01/letter/score.json", "report"),
    *(Case(f"report/{name}", f"report/{name}") for name in ("report.md", "report.html", "report.json", "matrix.csv")),
    Case("exports/*/export.json", "exports/02-*/export.json", "export"),
    Case("exports/*/*.safetensors", "exports/02-*/adapter_model.safetensors", "export"),
    Case("exports/*/adapter_config.json", "exports/02-*/adapter_config.json", "export"),
    Case("resolved.yaml", "resolved.yaml", "report --html"),
    Case("profile.json", "profile.json", state="profiled"),
    Case("stages/*.json of a branch", "stages/01-letter.json", state="branch", run="branch-*"),
    Case("stages/*.json of a branch", "stages/01-letter.json", "report", state="branch", run="branch-*"),
    Case("a branch's stage in the other run", "stages/01-*/adapter/*.safetensors", state="branch", run="tiny-*"),
    Case("extension/plan.json", "extension/plan.json", state="extending"),
    Case("extension/manifest.json", "extension/manifest.json", state="extending"),
    Case("extension/manifest.json", "extension/manifest.json", "status", state="extending"),
    Case("stages/*/pool.json", "stages/01-*/pool.json", state="pool"),
    Case("stages/*/router/state.json", "stages/01-*/router/state.json", state="pool"),
    Case("stages/*/router/tensors.safetensors", "stages/01-*/router/tensors.safetensors", state="pool"),
    Case("stages/*/probes.jsonl", "stages/01-*/probes.jsonl", state="pool"),
    Case("probes.jsonl of a stage under way", "stages/.02-*/probes.jsonl", state="pool stage"),
    Case("a live checkpoint's probes.jsonl", "stages/.02-*/live/000004/probes.jsonl", state="pool stage"),
    Case("evals/*/*/backend.json", "evals/after-01/letter/backend.json", state="served"),
    Case("evals/*/*/backend.json", "evals/after-01/letter/backend.json", "eval --rescore", state="served"),
]


def argv(command, home, what="run"):
    runs = home / "runs"
    if command == "status":
        return ["status", "--runs-dir", str(runs)]
    first = str(next(runs.glob("tiny*"), ""))
    if command == "run":
        more = {"branch": ["--from", first, "--stage", "1"], "extension": ["--extend", first]}.get(what, [])
        return ["run", *RUNS[what], "--runs-dir", str(runs), *more]
    root = str(next(runs.glob("branch*"))) if what == "branch" else first
    return {
        "report": ["report", root],
        "report --html": ["report", root, "--html"],
        "export": ["export", root, "--stage", "2"],
        "eval --rescore": ["eval", root, "--rescore"],
    }[command]


@pytest.fixture(scope="module")
def states(tmp_path_factory, cache):
    """Folders by state: what was run whole, and what kills left of it."""
    os.environ["MCIT_CACHE"] = str(cache)
    faults.prepare()
    sys.modules["vllm"] = vllm
    base = tmp_path_factory.mktemp("states")
    for what in RUNS:
        begin = "run" if what in ("branch", "extension") else "empty"
        done(base, what, begin)
        for state, (of, pattern, how) in KILLED.items():
            if of == what:
                killed(base, what, begin, state, pattern, how)
    shutil.copytree(base / "run", base / "exported")
    assert faults.call(argv("export", base / "exported"), base / "log", root=base / "exported") == 0
    yield base
    del sys.modules["vllm"]


def killed(base, what, begin, state, pattern, how):
    """Kill at the last operation of a form. What is written by the clock moves the numbers of operations: once more then."""

    def places(lines):
        return [n for n, line in enumerate(lines, 1) if re.match(pattern, line)]

    wanted = places((base / f"{what}.txt").read_text().splitlines())
    at = wanted[-1]
    for _ in range(5):
        done(base, what, begin, state=state, fault=Fault(at, how))
        hit = places((base / f"{state}.txt").read_text().splitlines())
        if len(hit) == len(wanted) and hit[-1] == at:
            return
        at = hit[-1] if len(hit) == len(wanted) else at + 10
        shutil.rmtree(base / state)
    raise AssertionError(f"{state}: no call was killed at {pattern}")


def done(base, what, begin, *, state=None, fault=None):
    """Run something in the folder that another left; the result is the folder of its state."""
    home, log = base / "now", base / "log"
    log.unlink(missing_ok=True)
    if begin == "empty":
        (home / "runs").mkdir(parents=True)
    else:
        shutil.copytree(base / begin, home)
    note = base / f"{state or what}.txt"
    note.unlink(missing_ok=True)
    code = faults.call(argv("run", home, what), log, root=home, note=note, fault=fault)
    assert code == (-signal.SIGKILL if fault else 0), log.read_text()
    home.rename(base / (state or what))


def outcome(case, damage, base):
    """What one damage to one file leads to, in a word."""
    home, log = base / "now", base / "case.log"
    shutil.rmtree(home, ignore_errors=True)
    whole = "exported" if case.command == "export" else case.what
    shutil.copytree(base / ("exported" if case.command == "export" else case.state), home)
    (path,) = home.glob(f"runs/{case.run}/{case.where}")
    if damage is None:
        path.unlink()
    else:
        assert damage(path.read_bytes()) != path.read_bytes()
        path.write_bytes(damage(path.read_bytes()))
    log.unlink(missing_ok=True)
    code = faults.call(argv(case.command, home, case.what), log, root=home)
    text = log.read_text()
    if "Traceback" in text:
        return "traceback"
    if code:
        return "named" if code == 5 and (named(path, text) or f"{path.parent}:" in text) else f"exit {code}"
    said = named(path, text) or (case.state in KILLED and said_in_ledger(path))
    if not faults.compared(base / whole, home) and case.where != "ledger.jsonl":
        return "healed, said" if said else "healed"
    return "said" if said else "silent"


def named(path, text):
    """Whether a text names a file, or the stage that a file refers to."""
    return str(path) in text or path.parent.name == "stages" and f"{path.with_suffix('')}:" in text


def said_in_ledger(path):
    root = next(folder for folder in path.parents if folder.parent.name == "runs")
    return str(path) in (root / "ledger.jsonl").read_text()


def table(rows):
    lines = [f"| file | next command | {' | '.join(DAMAGES)} |", f"|---|---|{'---|' * len(DAMAGES)}"]
    lines += [f"| {case.kind} | {case.command} | {' | '.join(found)} |" for case, found in rows]
    return "\n".join(lines)


ALLOWED = {"named", "healed", "healed, said", "said"}


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_every_damaged_file_is_named_healed_or_told(states):
    rows = [(case, [outcome(case, damage, states) for damage in DAMAGES.values()]) for case in CASES]
    found = table(rows)
    assert {word for _, words in rows for word in words} <= ALLOWED, found
    written(DOCS, "corruption", found)
    assert block(DOCS, "corruption") == found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_misspelt_key_leads_to_what_the_docs_say(states):
    """One column of the table."""
    column = list(DAMAGES).index("a key misspelt")
    for case, words in zip(CASES, listed(), strict=True):
        assert outcome(case, renamed, states) == words[column], case


def listed():
    """The cells of the table in the docs."""
    return [
        [word.strip() for word in line.strip("| ").split("|")[2:]]
        for line in block(DOCS, "corruption").splitlines()[2:]
    ]


def test_the_table_in_the_docs_has_every_case_and_nothing_silent():
    lines = block(DOCS, "corruption").splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [[f"| {case.kind}", case.command] for case in CASES]
    assert {word for words in listed() for word in words} <= ALLOWED
