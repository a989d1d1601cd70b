"""Every kind of file of a run, damaged in five ways: the next command names it, heals it or says what is lost.

The table in docs/reliability.md is written from here: ``WRITE_DOCS=1 pytest -m exhaustive tests/test_corruption.py``.
"""

import os
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts import faults
from scripts.inject.faultpoints import Fault
from tests.fakes.docs import block, written

DOCS = Path(__file__).parents[1] / "docs" / "reliability.md"
STAGES = "stages=[{recipe: tiny/letter}, {recipe: tiny/yesno}]"
SHORT = (STAGES, "defaults.max_steps=4", "eval.base=false", *faults.SMALL[1:])
SETTINGS = [part for item in SHORT for part in ("--set", item)]


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
    state: str = "finished"


CASES = [
    *(Case(name, name) for name in ("config.yaml", "resolved.yaml", "plan.json", "environment.json", "manifest.json")),
    Case("ledger.jsonl", "ledger.jsonl"),
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
]


def argv(command, home):
    runs = home / "runs"
    if command == "run":
        return ["run", "tiny-methods", "--runs-dir", str(runs), *SETTINGS]
    root = str(next(runs.glob("[!.]*")))
    return {
        "report": ["report", root],
        "export": ["export", root, "--stage", "2"],
        "eval --rescore": ["eval", root, "--rescore"],
    }[command]


@pytest.fixture(scope="module")
def states(tmp_path_factory, cache):
    """A finished run with an export; the same run killed before stage 2, at its end, and in its last answers."""
    os.environ["MCIT_CACHE"] = str(cache)
    faults.prepare()
    base = tmp_path_factory.mktemp("states")
    log, note = base / "log", base / "note"
    home = base / "now"
    (home / "runs").mkdir(parents=True)
    assert faults.call(argv("run", home), log, root=home, note=note) == 0, log.read_text()
    assert faults.call(argv("export", home), log, root=home) == 0, log.read_text()
    shutil.copytree(home, base / "finished")
    done = note.read_text().splitlines()
    for state, pattern in (
        ("between", r"mkdir runs/[^/]+/stages/\.02-[^/]+$"),
        ("stage", r"rename runs/[^/]+/stages/02-"),
        ("answers", r"fsync .*after-02/yesno/predictions\.p"),
    ):
        shutil.rmtree(home)
        (home / "runs").mkdir(parents=True)
        at = [n for n, line in enumerate(done, 1) if re.match(pattern, line)][-1]
        code = faults.call(
            argv("run", home), log, root=home, fault=Fault(at, "after" if state == "answers" else "before")
        )
        assert code == -signal.SIGKILL
        shutil.copytree(home, base / state)
        assert faults.call(argv("run", home), log, root=home) == 0
        shutil.copytree(home, base / f"{state}-after")
    shutil.copytree(base / "finished", base / "finished-after")
    return base


def outcome(case, damage, base):
    """What one damage to one file leads to, in a word."""
    home, log = base / "now", base / "case.log"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(base / case.state, home)
    (path,) = home.glob(f"runs/*/{case.where}")
    if damage is None:
        path.unlink()
    else:
        assert damage(path.read_bytes()) != path.read_bytes()
        path.write_bytes(damage(path.read_bytes()))
    log.unlink(missing_ok=True)
    code = faults.call(argv(case.command, home), log, root=home)
    text = log.read_text()
    if "Traceback" in text:
        return "traceback"
    if code:
        return "named" if code == 5 and (str(path) in text or str(path.parent) + ":" in text) else f"exit {code}"
    said = str(path) in text or (case.state == "stage" and said_in_ledger(home, path))
    if not faults.compared(base / f"{case.state}-after", home) and case.where != "ledger.jsonl":
        return "healed, said" if said else "healed"
    return "said" if said else "silent"


def said_in_ledger(home, path):
    (ledger,) = home.glob("runs/*/ledger.jsonl")
    return str(path) in ledger.read_text()


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
