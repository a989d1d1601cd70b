"""The script as a user starts it: a few rounds of every command; all: ``python scripts/faults.py --all --seed 1``."""

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from scripts import faults
from scripts.inject import samefiles
from tests.fakes.docs import block, written

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "reliability.md"


def test_the_docs_list_what_may_differ():
    lines = ["| file of a run | what differs |", "|---|---|"]
    lines += [f"| `{name}` | {what} |" for name, what in samefiles.DIFFERENT.items()]
    written(DOCS, "different", "\n".join(lines))
    assert block(DOCS, "different") == "\n".join(lines)


@pytest.mark.parametrize(
    ("operation", "place"),
    [
        ("write runs/tiny-1a2b3c4d/.plan.json.abcd12_9.tmp", "write RUN/.plan.json.*.tmp"),
        ("fsync runs/tiny-1a2b3c4d/.plan.json.abcd12_9.tmp", "fsync RUN/FILE.*.tmp"),
        ("rename runs/t-1/stages/02-yes-no", "rename RUN/stages/STAGE"),
        ("rename runs/t-1/stages/.02-yesno.draft/live/000012", "rename RUN/stages/.STAGE.draft/live/N"),
        ("create runs/t-1/evals/after-02/word/score.json", "create RUN/evals/AFTER/TASK/FILE"),
        ("mkdir data/.tiny-letter-0123abcd.abcdefgh.tmp", "mkdir data/.SET.*.tmp"),
    ],
)
def test_operations_on_the_like_are_one_place(operation, place):
    assert faults.place_of(operation) == place


def test_comparing_sees_every_difference_but_the_listed_ones(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    files = {
        "ledger.jsonl": ("a", "b"),
        "train.log": ("a", "b"),
        "lock": ("", "x"),
        "profile.json": ("a", "b"),
        "stages/01-a/progress.json": (
            '{"seconds": 1, "peak_bytes": 1, "loss": 2}',
            '{"seconds": 9, "peak_bytes": 3, "loss": 2}',
        ),
        "stages/01-a/metrics.jsonl": ('{"seconds": 1, "loss": 2}\n', '{"seconds": 2, "loss": 2}\n'),
        "stages/01-a/probes.jsonl": ('{"seconds": 1, "step": 2}\n', '{"seconds": 2, "step": 2}\n'),
        "stages/01-a/manifest.json": (
            '{"files": {"a": 1, "progress.json": 1}, "seal": "a"}',
            '{"files": {"a": 1, "progress.json": 2}, "seal": "b"}',
        ),
        "report/report.json": (
            '{"costs": [{"seconds": 1, "peak_bytes": 1}], "a": 1, "p": {"seconds": 3, "share": 0.1}, "profile": {"tokens": 1}}',
            '{"costs": [{"seconds": 2, "peak_bytes": 2}], "a": 1, "p": {"seconds": 4, "share": 0.2}, "profile": {"tokens": 2}}',
        ),
        "report/report.md": (
            "## Where time went\n\na\n\n## b\n\n| stage | seconds | share of step time |\n|---|---|---|\n| 5 | 2.00 | 0.1 |",
            "## Where time went\n\nc\n\n## b\n\n| stage | seconds | share of step time |\n|---|---|---|\n| 5 | 3.00 | 0.2 |",
        ),
        "aside/01-a/01-a/progress.json": ('{"seconds": 1, "peak_bytes": 1}', '{"seconds": 9, "peak_bytes": 3}'),
        "gates/01-a.json": (
            '{"time": "then", "stage_sha256": "a", "verdict": "fail", "seal": "a"}',
            '{"time": "now", "stage_sha256": "b", "verdict": "fail", "seal": "b"}',
        ),
        "certificates/stages/01-a.json": (
            '{"id": "x", "index": 1, "issued": "then", "run": "a", "audit": {"manifest_sha256": "a", "seed": 1}}',
            '{"id": "x", "index": 1, "issued": "now", "run": "b", "audit": {"manifest_sha256": "b", "seed": 1}}',
        ),
        "certificates/statement.json": (
            '{"certificates": {"01-a": "x"}, "lines": 3, "run": "a"}',
            '{"certificates": {"01-a": "y"}, "lines": 4, "run": "b"}',
        ),
        "certificates/statement.sig": ("a", "b"),
        "report/report.html": (
            'Training took 1 s: 2 steps, at most 1,200 MiB of memory <td data-sort="9">1 MiB</td>'
            '<h2 class="section">Where time went</h2>\na<h2 class="section">What probes took</h2>1.1'
            '<h2><td data-sort="0.9">1 s</td>',
            'Training took 1 min: 2 steps, at most 900 MiB of memory <td data-sort="8">8 MiB</td>'
            '<h2 class="section">Where time went</h2>\nb<h2 class="section">What probes took</h2>1.2'
            '<h2><td data-sort="60">1 min</td>',
        ),
    }
    for name, texts in files.items():
        for home, text in zip((one, two), texts, strict=True):
            path = home / "runs" / "r-1" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    assert samefiles.compared(one, two) == []
    listed = {name.replace("*", "01-a") for name in samefiles.DIFFERENT}
    assert listed == files.keys(), "each of them is one that the docs list"
    changes = {
        "stages/01-a/progress.json": ('"loss": 2', '"loss": 3'),
        "stages/01-a/metrics.jsonl": (' "loss"', ' "lass"'),
        "stages/01-a/probes.jsonl": ('"step": 2', '"step": 3'),
        "stages/01-a/manifest.json": ('"a": 1', '"a": 2'),
        "gates/01-a.json": ("fail", "pass"),
        "certificates/stages/01-a.json": ('"seed": 1', '"seed": 2'),
        "certificates/statement.json": ("01-a", "02-b"),
        "report/report.json": ('"a": 1', '"a": 2'),
        "report/report.md": ("| 5 |", "| 6 |"),
        "report/report.html": ("2 steps", "3 steps"),
    }
    for name, change in changes.items():
        path = two / "runs" / "r-1" / name
        before = path.read_text()
        path.write_text(before.replace(*change))
        assert samefiles.compared(one, two) == [f"differs: runs/r-1/{name}"]
        path.write_text(before)
    (two / "runs" / "r-1" / ".x.tmp").mkdir()
    (two / "runs" / "r-1" / "report" / "more").write_text("")
    (two / "runs" / "r-1" / "lock").unlink()
    (two / "runs" / "r-1" / "report" / "report.md").unlink()
    assert samefiles.compared(one, two) == [
        "left over: runs/r-1/.x.tmp/", "left over: runs/r-1/report/more", "missing: runs/r-1/report/report.md",
    ]  # fmt: skip


def test_both_ranks_are_hit_in_turn(tmp_path):
    """Rank 0 has nearly all operations: of rounds drawn from all alike, ten in a row hit it."""
    for rank, count in ((0, 60), (1, 3)):
        lines = [f"mkdir runs/t-1/{chr(97 + k % 26) * (1 + k // 26)}" for k in range(count)]
        (tmp_path / f"run.txt.{rank}").write_text("\n".join(lines))
    scene = faults.Scene("tiny", "run", tmp_path, tmp_path, tmp_path / "run.txt", ranks=2)
    found = [(scene, one) for one in faults.planned(scene, random.Random(1))]
    order = faults.drawn(found, random.Random(1))
    ranks = [one.rank for _, one in order]
    few = ranks.count(1)
    assert few == 6 and ranks[: 2 * few] == [0, 1] * few and set(ranks[2 * few :]) == {0}
    assert sorted(one.key for _, one in order) == sorted(one.key for _, one in found)
    assert [one.at for _, one in order] != [one.at for _, one in found]
    alone = [(scene, faults.Round("tiny", "run", "write x", k, "EIO")) for k in range(9)]
    assert {one.at for _, one in faults.drawn(alone, random.Random(1))} == set(range(9))


def test_a_file_of_rounds_is_read_again_but_for_a_line_cut_off(tmp_path):
    one = faults.Round("tiny", "run", "write RUN/x", 3, "EIO", outcome="told", code="abc")
    path = tmp_path / "rounds.jsonl"
    assert faults.written_rounds(None) == faults.written_rounds(path) == []
    line = json.dumps(asdict(one)) + "\n"
    path.write_text(line + line[:9])
    (found,) = faults.written_rounds(path)
    assert found.key == one.key and path.read_text() == line


def rounds(tmp_path, *options, codes=(0,)):
    out = tmp_path / "rounds.jsonl"
    given = [sys.executable, "scripts/faults.py", *options, "--home", str(tmp_path / "home"), "--json", str(out)]
    done = subprocess.run(
        given, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, check=False
    )
    assert done.returncode in codes, done.stdout + done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_few_rounds_of_every_command(tmp_path):
    found = rounds(tmp_path, "tiny", "--rounds", "12", "--seed", "4")
    assert len(found) == 12 and not any(r["wrong"] for r in found)
    assert {r["command"] for r in found} >= {"run", "eval"} and {r["outcome"] for r in found} >= {"killed", "told"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_with_retention_methods_is_killed(tmp_path):
    kills(tmp_path, "tiny-retention", 1)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("config", ["tiny-retention", "scole-tiny"])
def test_ten_kills_of_a_run(config, tmp_path):
    kills(tmp_path, config, 10)


def kills(tmp_path, config, count):
    """So many kills of a run, each followed by the same bytes. On a busy machine the report's page, which is written by the
    clock, may move a kill to another operation than the drawn one: a moment as good as that."""
    given = ["--commands", "run", "--kills", "--rounds", str(count), "--seed", "1"]
    found = rounds(tmp_path, config, *given, codes=(0, 1))
    wrong = [text for one in found for text in one["wrong"] if not text.startswith("operation ")]
    assert len(found) == count and wrong == [] and {one["outcome"] for one in found} == {"killed"}


@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_each_of_two_ranks_is_hit(tmp_path):
    found = rounds(tmp_path, "tiny", "--rounds", "2", "--seed", "2", "--ranks", "2")
    assert len(found) == 2 and not any(r["wrong"] for r in found) and {r["rank"] for r in found} == {0, 1}
