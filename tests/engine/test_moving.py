"""A run that is stopped in the middle of a stage and goes on with another engine or another number of processes.

As a user does it: `mcit run` is told to stop (SIGTERM) in its second stage, exits with 75, and the same command with another
engine finishes the run. RegLoRA and GeRe act in that stage. The weight changes are those of one process that never stopped.
"""

import json
import shutil
from types import SimpleNamespace

import pytest

from tests.fakes.agreement_job import CALM, agreement_config, changes_of_run
from tests.fakes.jobs import farthest, mcit

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]
TOLERANCE = 1e-5
STEPS, STOP = 12, 6
ENGINES = {
    "plain": ("plain", 1),
    "ddp": ("plain", 2),
    "zero1": ("zero1", 2),
    "zero2": ("zero2", 2),
    "zero3": ("zero3", 2),
}
PAIRS = [
    ("plain", "ddp"),
    ("ddp", "zero2"),
    ("zero2", "zero3"),
    ("zero3", "plain"),
    ("plain", "zero1"),
    ("zero1", "zero3"),
    ("zero3", "zero2"),
    ("zero2", "plain"),
]
"""Where a run starts and where it goes on: every engine as both, one process to two and back."""


@pytest.fixture(scope="module")
def given(tmp_path_factory, cache):
    """Runs the config with an engine in a folder of its own, and keeps those that were stopped."""
    home = tmp_path_factory.mktemp("moving")
    stopped = {}

    def start(engine, runs, *, code, told=True):
        kind, processes = ENGINES[engine]
        file = home / f"{kind}-{processes}.json"
        content = agreement_config(steps=STEPS, optim=CALM, gere={"weight": 1.0}, kind=kind)
        term = {
            "name": "tests.fakes.failing:Failing",
            "how": "term",
            "rank": 0,
            "step": STOP,
            "once": str(home / "told"),
        }
        content["stages"][1]["methods"].append(term)
        file.write_text(json.dumps(content))
        (home / "told").touch() if told else (home / "told").unlink(missing_ok=True)
        more = [] if processes == 1 else ["--nproc", processes]
        done = mcit("run", file, "--runs-dir", runs, *more, cache=cache)
        assert done.code == code, done.err
        (root,) = runs.glob("bench-*")
        return SimpleNamespace(root=root, err=done.err)

    def of(source):
        if source not in stopped:
            stopped[source] = start(source, home / f"from-{source}", code=75, told=False).root.parent
        return stopped[source]

    straight = start("plain", home / "straight", code=0)
    return SimpleNamespace(start=start, stopped=of, straight=changes_of_run(straight.root))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_goes_on_with_another_engine(source, target, given, tmp_path):
    runs = shutil.copytree(given.stopped(source), tmp_path / "runs")
    (root,) = runs.glob("bench-*")
    assert list(root.glob(f"stages/.02-*.draft/live/{STOP + 1:06d}")), "it stopped in the middle of its second stage"
    done = given.start(target, runs, code=0)
    found, expected = changes_of_run(done.root), given.straight
    assert farthest(found, expected)[0] <= TOLERANCE, farthest(found, expected)
    lines = (done.root / "stages" / "02-yesno" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1)), "no step was taken twice"


def test_every_engine_is_a_source_and_a_target():
    assert {source for source, _ in PAIRS} == {target for _, target in PAIRS} == set(ENGINES)
