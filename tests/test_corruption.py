"""Every kind of file of a run, damaged in five ways: the next command names it, heals it or says what is lost.

The table in docs/reliability.md is written from here: ``WRITE_DOCS=1 pytest -m exhaustive tests/test_corruption.py``.
"""

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass, replace
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
    "defaults.methods=[]",
    "router={use: analytic}",
    "probes=[{use: seen, every: 2, count: 2, share: null}]",
)
FORGETS = "{name: forgets, recipe: tiny/word-retain, forget: tiny/word-forget, methods: [{use: npo, per_step: 4}]}"
GATE = "thresholds: [{metric: success, at_least: 1.0, unit: share}]"


def given(config, stages, *settings):
    """Arguments of ``mcit run``; a stage is a task, or YAML in braces. ``BASE`` stands for the folder of all states."""
    listed = ", ".join(stage if stage.startswith("{") else f"{{recipe: tiny/{stage}}}" for stage in stages)
    return [config, *(part for item in (f"stages=[{listed}]", *SHORT, *settings) for part in ("--set", item))]


RUNS = {
    "run": given("tiny-methods", ("letter", "yesno")),
    "branch": given("tiny-methods", ("letter", "word"), "name=branch"),
    "extension": given("tiny-methods", ("letter", "yesno", "word")),
    "pool": given("tiny", ("word-forget", "yesno"), *POOL),
    "profiled": [*given("tiny", ("letter",)), "--profile"],
    "served": given("tiny", ("letter",), "eval.backend=vllm", "eval.vllm={compare: 2}"),
    "gated": given("tiny", ("letter", "{recipe: tiny/yesno, gate: BASE/gate.yaml}")),
    "kit": given("tiny", ("word", FORGETS), "eval.kit={rows: 2, membership: [min_k]}"),
}
"""Arguments of ``mcit run`` by what is run."""


@dataclass(frozen=True)
class State:
    """What a command left that nothing disturbed."""

    command: str = "run"
    begin: str = ""
    """The state before it; an empty folder if empty."""
    what: str = ""
    """Of which run; the state's own name if empty."""
    code: int = 0


STATES = {
    "run": State(),
    "branch": State(begin="run"),
    "extension": State(begin="run"),
    "pool": State(),
    "profiled": State(),
    "served": State(),
    "combined": State("eval --combined", "run", "run"),
    "elsewhere": State("eval --predictions", "combined", "run"),
    "exported": State("export", "elsewhere", "run"),
    "signed": State("audit --sign", "pool", "pool"),
    "asked": State("forget", "signed", "pool"),
    "gated": State(code=6),
    "promoted": State("promote", "gated", "gated"),
    "kit": State(),
    "attacked": State("attack", "kit", "kit"),
    "data": State("data build"),
    "cache": State("plan"),
}
KILLED = {
    "between": ("run", r"mkdir runs/[^/]+/stages/\.02-[^/]+$", "before"),
    "stage": ("run", r"rename runs/[^/]+/stages/02-", "before"),
    "answers": ("run", r"fsync .*after-02/yesno/predictions\.p", "after"),
    "extending": ("extension", r"rename runs/[^/]+/extension$", "after"),
    "pool stage": ("pool", r"rename runs/[^/]+/stages/02-", "before"),
    "replacing": ("asked", r"rename runs/[^/]+/replacing$", "after"),
}
"""What a kill leaves: of which state, at the last operation of this form, and whether it was done."""


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
    """Pattern below the folder of the run; of all, where it begins with ``/``."""
    command: str = "run"
    state: str = "run"
    """What was not disturbed, or what a kill left of it."""
    run: str = "*"
    """Pattern of the run's folder."""

    @property
    def whole(self):
        """The state that the command leads to; the state's own command leads to it again."""
        if self.state in STATES and STATES[self.state].command == self.command:
            return self.state
        later = (name for name, one in STATES.items() if (one.begin, one.command) == (self.state, self.command))
        return KILLED[self.state][0] if self.state in KILLED else next(later, self.state)

    def files(self, home):
        """Where it is."""
        return list(home.glob(self.where[1:] if self.where.startswith("/") else f"runs/{self.run}/{self.where}"))


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
    Case("whole/manifest.json of a stage under way", "stages/.02-*/whole/manifest.json", state="stage"),
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
    Case("exports/*/export.json", "exports/02-*/export.json", "export", "exported"),
    Case("exports/*/*.safetensors", "exports/02-*/adapter_model.safetensors", "export", "exported"),
    Case("exports/*/adapter_config.json", "exports/02-*/adapter_config.json", "export", "exported"),
    Case("exports/*/README.md", "exports/02-*/README.md", "export", "exported"),
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
    Case("evals/combined/*/combination.json", "evals/combined/*/combination.json", "eval --combined", "combined"),
    Case("evals/elsewhere/*/*/score.json", "evals/elsewhere/*/letter/score.json", "eval --predictions", "elsewhere"),
    Case("certificates/*/certificate.json", "certificates/0001/certificate.json", "audit --key", "asked"),
    Case("certificates/*/certificate.json", "certificates/0001/certificate.json", "forget", "asked"),
    Case("certificates/*/features.safetensors", "certificates/0001/features.safetensors", "audit --key", "asked"),
    Case("certificates/statement.json", "certificates/statement.json", "audit --key", "asked"),
    Case("certificates/statement.sig", "certificates/statement.sig", "audit --key", "asked"),
    Case("replacing/manifest.json", "replacing/manifest.json", "forget", "replacing"),
    Case("replacing/stages/*", "replacing/stages/02-*/router/tensors.safetensors", "forget", "replacing"),
    Case("replacing/certificates/*", "replacing/certificates/0001/certificate.json", "forget", "replacing"),
    Case("gates/*.json", "gates/02-yesno.json", state="gated"),
    Case("gates/*.json", "gates/02-yesno.json", "promote", "gated"),
    Case("aside/*/*/manifest.json", "aside/02-yesno/02-yesno/manifest.json", "promote", "gated"),
    Case("aside/*/*/progress.json", "aside/02-yesno/02-yesno/progress.json", "promote", "gated"),
    Case("aside/*/*/adapter/*.safetensors", "aside/02-*/02-*/adapter/adapter_model.safetensors", "promote", "gated"),
    Case("aside/*/evals/*/score.json", "aside/02-yesno/evals/yesno/score.json", "promote", "gated"),
    Case("kit/*/*/kit.json", "kit/after-02/02-forgets/kit.json", state="kit"),
    Case("kit/*/*/kit.json", "kit/after-02/02-forgets/kit.json", "report", "kit"),
    Case("attacks/*/*.json", "attacks/02-forgets/relearn.json", "report", "attacked"),
    Case("a data set's manifest.json", "/data/*/manifest.json", "data build", "data"),
    Case("a data set's rows", "/data/*/train.jsonl", "data build", "data"),
    Case("a data set's index of rows", "/data/*/train.index.npy", "data build", "data"),
    Case("a data set's picture", "/data/*/images/0/letter-00020.png", "data build", "data"),
    Case("the cache's digests/files.sqlite", "/cache/digests/files.sqlite", "plan", "cache"),
    Case("the cache's estimates/*.json", "/cache/estimates/*.json", "plan", "cache"),
    Case("the cache's encoded/*.json", "/cache/encoded/*.json", "plan", "cache"),
]


def argv(command, home, what="run"):
    runs, beside = home / "runs", home.parent
    if command == "status":
        return ["status", "--runs-dir", str(runs)]
    if command == "data build":
        return ["data", "build", "tiny/letter-asd20", "--data-dir", str(home / "data")]
    if command == "plan":
        return ["plan", *RUNS["profiled"][:-1]]
    first = str(next(runs.glob("tiny*"), ""))
    if command == "run":
        more = {"branch": ["--from", first, "--stage", "1"], "extension": ["--extend", first]}.get(what, [])
        own = [part.replace("BASE", str(beside)) for part in RUNS[what]]
        return ["run", *own, "--runs-dir", str(runs), *more]
    root = str(next(runs.glob("branch*"))) if what == "branch" else first
    verb, *more = {
        "report": ["report"],
        "report --html": ["report", "--html"],
        "export": ["export", "--stage", "2"],
        "eval --rescore": ["eval", "--rescore"],
        "eval --combined": ["eval", "--combined", "linear"],
        "eval --predictions": ["eval", "--predictions", str(beside / "answers.jsonl"), "--task", "letter"],
        "audit --sign": ["audit", "--sign", str(beside / "key.pem")],
        "audit --key": ["audit", "--key", str(beside / "public.pem")],
        "forget": ["forget", "--rows", str(beside / "rows.json")],
        "promote": ["promote", "--stage", "2", "--by", "somebody"],
        "attack": ["attack", "--stage", "2", "--rows", "4", "--rank", "2", "--control", "none"],
    }[command]
    return [verb, root, *more]


@pytest.fixture(scope="module")
def states(tmp_path_factory, cache):
    """Folders by state: what commands left, and what kills left of them."""
    os.environ["MCIT_CACHE"] = str(cache)
    faults.prepare()
    sys.modules["vllm"] = vllm
    base = tmp_path_factory.mktemp("states")
    (base / "gate.yaml").write_text(GATE)
    (base / "rows.json").write_text(json.dumps(faults.FORGOTTEN))
    (base / "key.pem").write_bytes(faults.private_key())
    (base / "public.pem").write_bytes(public_key())
    for name, state in STATES.items():
        if name == "elsewhere":
            (base / "answers.jsonl").write_text(answers(base / "run"))
        done(base, name, state)
        for kill, (of, pattern, how) in KILLED.items():
            if of == name:
                killed(base, kill, state, name, pattern, how)
    yield base
    del sys.modules["vllm"]


def public_key():
    """The other half of the key to sign with (PEM)."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    public = load_pem_private_key(faults.private_key(), password=None).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def answers(home):
    """A file of answers to the rows that a run was scored on."""
    (path,) = home.glob("runs/*/evals/after-01/letter/predictions.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return "".join(json.dumps({"id": line["id"], "text": "A"}) + "\n" for line in lines)


def killed(base, name, state, of, pattern, how):
    """Kill at the last operation of a form. What is written by the clock moves the numbers of operations: once more then."""

    def places(lines):
        return [n for n, line in enumerate(lines, 1) if re.match(pattern, line)]

    wanted = places((base / f"{of}.txt").read_text().splitlines())
    at = wanted[-1]
    for _ in range(5):
        done(base, name, replace(state, what=state.what or of), fault=Fault(at, how))
        hit = places((base / f"{name}.txt").read_text().splitlines())
        if len(hit) == len(wanted) and hit[-1] == at:
            return
        at = hit[-1] if len(hit) == len(wanted) else at + 10
        shutil.rmtree(base / name)
    raise AssertionError(f"{name}: no call was killed at {pattern}")


def done(base, name, state, *, fault=None):
    """Run a command in the folder that another left; the result is the folder of its state."""
    home, log = base / "now", base / "log"
    log.unlink(missing_ok=True)
    if state.begin:
        shutil.copytree(base / state.begin, home)
    else:
        (home / "runs").mkdir(parents=True)
    note = base / f"{name}.txt"
    note.unlink(missing_ok=True)
    code = called(state.command, home, state.what or name, log, note=note, fault=fault)
    assert code == (-signal.SIGKILL if fault else state.code), log.read_text()
    home.rename(base / name)


def called(command, home, what, log, **given):
    """Exit code of a command in a folder; ``plan`` has its cache there too."""
    before = os.environ["MCIT_CACHE"]
    os.environ["MCIT_CACHE"] = str(home / "cache") if command == "plan" else before
    try:
        return faults.call(argv(command, home, what), log, root=home, **given)
    finally:
        os.environ["MCIT_CACHE"] = before


def outcome(case, damage, base):
    """What one damage to one file leads to, in a word."""
    home, log = base / "now", base / "case.log"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(base / case.state, home)
    path = sorted(case.files(home))[0]
    if damage is None:
        path.unlink()
    else:
        assert damage(path.read_bytes()) != path.read_bytes()
        path.write_bytes(damage(path.read_bytes()))
    log.unlink(missing_ok=True)
    state = STATES[case.whole]
    code = called(case.command, home, state.what or case.whole, log)
    text = log.read_text()
    if "Traceback" in text:
        return "traceback"
    if code not in (0, state.code):
        return "named" if code == 5 and (named(path, text) or f"{path.parent}:" in text) else f"exit {code}"
    said = named(path, text) or (case.state in KILLED and said_in_ledger(path))
    different = [line for line in faults.compared(base / case.whole, home) if not line.endswith(MEMOS)]
    if not different and case.where != "ledger.jsonl":
        return "healed, said" if said else "healed"
    return "said" if said else "silent"


MEMOS = ("/files.sqlite",)
"""Of the cache: what costs time alone."""


def named(path, text):
    """Whether a text names a file, or the stage that a file refers to."""
    return str(path) in text or path.parent.name == "stages" and f"{path.with_suffix('')}:" in text


def said_in_ledger(path):
    root = next(folder for folder in path.parents if folder.parent.name == "runs")
    return str(path) in (root / "ledger.jsonl").read_text()


# ---- is it all? ------------------------------------------------------------------------------------------------------
SCORED = r"((?:generation|predictions|predictions\.part|rows|score|backend|combination)\.jsonl?)$"
SAME = (
    (r"^runs/[^/]+/", ""),
    (r"^(stages/\.?)\d\d-[a-z0-9-]+?(\.draft|\.json)?(?=/|$)", r"\1*\2"),
    (r"^(aside|candidates)/[^/]+/(?!evals)[^/]+/", r"\1/*/*/"),
    (r"/live/\d+/", "/live/*/"),
    (r"/methods/[^/]+/", "/methods/*/"),
    (r"/rank-\d+\.", "/*."),
    (r"^(certificates/stages|gates)/[^/]+\.json$", r"\1/*.json"),
    (r"^(certificates|exports|attacks)/[^/]+/(?!.*/)(?!\*)", r"\1/*/"),
    (r"^blobs/[^/]+\.", "blobs/*."),
    (r"^report/\w+\.csv$", "report/*.csv"),
    (r"^(kit/[^/]+)/[^/]+/", "kit/*/*/"),
    (r"^(evals|attacks/[^/]+|aside/[^/]+|evals/combined|evals/elsewhere)/[^/]+/[^/]+/" + SCORED, r"evals/*/*/\2"),
    (r"^cache/data/", "data/"),
    (r"^(data|cache/\w+)/[^/]+(?=/|\.json$)", r"\1/*"),
)
"""Parts of a path that do not tell one kind of file from another."""
WHY_NOT = {
    r"lock|.*\.lock": "empty",
    r"train\.log": "for people: nothing reads it",
    r"kit/\*/\*/[^/]+/(generation\.json|predictions\.jsonl)": (
        "what kit.json was made from; looked at by a measurement anew alone, which checks it as evals does"
    ),
    r"cache/models/.*": "a base: its checksum is part of a run's identity; what cannot be read is in the table below",
}
"""Kinds without a row: patterns, with the reason."""


def kind_of(path):
    """A path below the folder of a state without the names of runs, stages, tasks and steps."""
    for pattern, instead in SAME:
        path = re.sub(pattern, instead, path)
    return path


def is_listed(path, home):
    """Whether a manifest further up lists a file: then a damage to it is found as in the rows that the folder has."""
    for folder in path.relative_to(home).parents:
        for name in ("manifest.json", "export.json"):
            manifest = home / folder / name
            if (
                manifest.is_file()
                and str(path.relative_to(home / folder)) in json.loads(manifest.read_bytes())["files"]
            ):
                return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_kind_of_file_has_a_row_or_a_reason(states):
    """What commands write into runs, data sets, exports and the cache, a memory apart: it is in the table of wrong input."""
    homes = [states / name for name in (*STATES, *KILLED)]
    rows = {kind_of(p.relative_to(states / c.state).as_posix()) for c in CASES for p in c.files(states / c.state)}
    without = {
        kind_of(path.relative_to(home).as_posix())
        for home in homes
        for path in home.rglob("*")
        if path.is_file() and not is_listed(path, home)
    } - rows
    reasons = {kind: [why for why in WHY_NOT if re.fullmatch(why, kind)] for kind in without}
    assert [kind for kind, found in reasons.items() if not found] == []
    assert {why for found in reasons.values() for why in found} == WHY_NOT.keys()


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
    """Every second cell of one column of the table."""
    column = list(DAMAGES).index("a key misspelt")
    for case, words in list(zip(CASES, listed(), strict=True))[::2]:
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
