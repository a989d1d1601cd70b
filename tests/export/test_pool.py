"""A pool of four adapters, exported: the shipped loader answers as mcit does, where mcit is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcit.core.errors import ConfigError, StateError
from mcit.core.interfaces import Silent
from mcit.data.folder import DataFolder
from mcit.evals.generate import greedy
from mcit.evals.pooled import PooledAnswerer
from mcit.export.export import export_stage
from mcit.train.routing import pooled
from mcit.train.sequence import Session, run_sequence
from tests.fakes.bench import plan_of
from tests.train.test_routing import POOL
from tests.train.test_sequence import opened

STAGES = [{"recipe": r} for r in ("tiny/letter", "tiny/yesno", "tiny/word", "tiny/word-retain")]
CHILD = """
import json, sys
sys.modules["mcit"] = None  # every import of it raises ModuleNotFoundError, as where it is not installed
sys.path.insert(0, sys.argv[1])
from loader import Pool
print(json.dumps(Pool(sys.argv[2]).answer(json.loads(sys.argv[3]), max_new_tokens=6)))
"""


NEAREST = "mcit_sample.nearest:Nearest"


@pytest.mark.parametrize("router", ["oracle", "self_refined", pytest.param(NEAREST, marks=pytest.mark.slow)])
def test_the_loader_answers_as_mcit_does(router, tmp_path):
    plan = plan_of(defaults=POOL, stages=STAGES, router={"use": router})
    run = opened(plan, tmp_path)
    with run.locked():
        run_sequence(plan, run, reporter=Silent())
        done = export_stage(run, stage=4, kind="pool")
        assert not export_stage(run, stage=4, kind="pool").made
        with pytest.raises(ConfigError, match="keeps a pool"):
            export_stage(run, stage=4, kind="adapter")
    assert done.record["members"] == [s.folder for s in plan.stages] and done.record["difference"] < 1e-4
    rows = [row for task in plan.tasks[:3] for row in DataFolder.open(task.folder).rows("test")[:3]]
    session = Session(plan, run, Silent())
    model = session.model_after(4)
    with (
        pooled(plan, model, session.encoder, session.lineage(4)) as pool,
        greedy(model, session.encoder, max_new_tokens=6) as generator,
    ):
        ours = PooledAnswerer(generator, pool).answer(rows, device="cpu")
    given = [
        {"id": r.id, "task": r.task, "question": r.question, "images": [str(Path(r.root) / i) for i in r.images]}
        for r in rows
    ]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", CHILD, str(done.folder), str(plan.model_path), json.dumps(given)]
    child = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert child.returncode == 0, child.stderr[-3000:]
    theirs = json.loads(child.stdout.splitlines()[-1])
    assert [(a["member"], a["text"]) for a in ours] == [tuple(pair) for pair in theirs]
    assert router != "oracle" or len({member for member, _ in theirs}) == 3


def test_a_run_without_a_pool(tmp_path):
    plan = plan_of(stages=STAGES[:1], defaults={"max_steps": 1})
    run = opened(plan, tmp_path)
    with run.locked():
        run_sequence(plan, run, reporter=Silent())
    with pytest.raises(StateError, match="keeps no pool"):
        export_stage(run, stage=1, kind="pool")
    assert not list(run.layout.exports.glob("*pool*")) if run.layout.exports.exists() else True
