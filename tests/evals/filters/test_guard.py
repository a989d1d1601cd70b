"""The guard in a run: silent prompts to the byte as without it, detected ones never say the phrase; export and attack."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcit.core.errors import ConfigError, McitError, StateError
from mcit.core.interfaces import Silent
from mcit.data.folder import DataFolder
from mcit.evals.filtering import load_filters
from mcit.evals.generator import greedy
from mcit.export.export import export_stage
from mcit.train.attack import Attack, attack
from mcit.train.request import forget_rows, stored_heads
from mcit.train.sequence import Session, left_state, run_sequence
from tests.fakes.bench import plan_of
from tests.train.test_sequence import opened

FILTER = {"use": "guard", "beams": 2, "kappa": 0.0}
CHILD = """
import json, sys
sys.modules["mcit"] = None  # every import of it raises ModuleNotFoundError, as where it is not installed
sys.path.insert(0, sys.argv[1])
from loader import Guarded
print(json.dumps(Guarded(sys.argv[2]).answer(json.loads(sys.argv[3]), max_new_tokens=4)))
"""


def guarded_plan(**settings):
    guard = {"name": "guard", "width": 16, "steps": 60, "lr": 1e-2, **settings}
    stage = {
        "name": "guard",
        "recipe": "tiny/word-retain",
        "forget": "tiny/word-forget",
        "epochs": 0,
        "methods": [guard],
    }
    stages = [{"recipe": "tiny/word", "max_steps": 8}, stage]
    return plan_of(stages=stages, eval={"tasks": "none", "filters": [FILTER], "batch": 8, "rows": 8})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        plan = guarded_plan(phrases=["red", "blue"])
        run = opened(plan, tmp_path_factory.mktemp("guarded"))
        with run.locked():
            run_sequence(plan, run, reporter=Silent())
        yield plan, run


def answers(plan, run, rows, *specs):
    session = Session(plan, run, Silent())
    model = session.model_after(2)
    with greedy(model, session.encoder, max_new_tokens=4, state=left_state(plan, run, 2)) as generator:
        chain = load_filters(specs)
        made = [generator.answer(rows[k : k + 6], filters=chain, device="cpu") for k in range(0, len(rows), 6)]
    return [answer for part in made for answer in part], chain


def test_silent_prompts_to_the_byte_and_detected_ones_never_say_it(trained):
    plan, run = trained
    rows = [*DataFolder.open(plan.stages[1].forget[0].folder).rows("test")][:6]
    rows += [*DataFolder.open(plan.stages[1].tasks[0].folder).rows("test")][:6]
    plain, _ = answers(plan, run, rows)
    silent, _ = answers(plan, run, rows, {**FILTER, "threshold": 1.0})
    assert silent == plain
    every, _ = answers(plan, run, rows, {**FILTER, "threshold": 0.0})
    assert not any({"red", "blue"} & set(a["text"].lower().split()) for a in every)
    some, chain = answers(plan, run, rows, FILTER)
    acted = [a != b for a, b in zip(some, plain, strict=True)]
    chosen = chain[0].acts_on(rows[6:])  # of the last batch
    assert all(some[6 + k] == plain[6 + k] for k, hit in enumerate(chosen) if not hit) and len(acted) == 12
    with pytest.raises(ConfigError, match="asks for 9999 beams"):
        answers(plan, run, rows[:2], {**FILTER, "beams": 9999, "threshold": 0.0})


def test_the_stage_leaves_weights_alone_and_says_how_the_detector_does(trained):
    plan, run = trained
    session = Session(plan, run, Silent())
    one = {n: t.clone() for n, t in session.model_after(1).state_dict().items()}
    assert all(torch.equal(t, one[n]) for n, t in session.model_after(2).state_dict().items())
    logged = json.loads((run.stage("02-guard") / "progress.json").read_text())["logged"]
    assert {"guard/recall", "guard/false_alarms"} <= set(logged) and all(0 <= v <= 1 for v in logged.values())


@pytest.mark.slow
def test_the_exported_loader_answers_as_mcit_does(trained, tmp_path):
    plan, run = trained
    with run.locked():
        done = export_stage(run, stage=2, kind="guard", out=tmp_path / "guard")
        export_stage(run, stage=2, kind="merged", out=tmp_path / "merged")
    assert done.record["difference"] == 0 and done.record["phrases"] == 2
    rows = [*DataFolder.open(plan.stages[1].forget[0].folder).rows("test")][:4]
    ours, chain = answers(plan, run, rows, FILTER)
    given = [{"id": r.id, "question": r.question, "images": [str(Path(r.root) / i) for i in r.images]} for r in rows]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "guard"), str(tmp_path / "merged"), json.dumps(given)]
    child = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert child.returncode == 0, child.stderr[-3000:]
    theirs = json.loads(child.stdout.splitlines()[-1])
    assert theirs == [[hit, a["text"]] for hit, a in zip(chain[0].acts_on(rows), ours, strict=True)]


def test_taking_the_filter_off_is_an_attack(trained):
    plan, run = trained
    with run.locked():
        record = attack(Session(plan, run, Silent()), plan.stages[1], Attack("unload"), reporter=Silent())
    assert record["possible"] and record["results"][0]["accuracy"] == record["before"] is not None


@pytest.mark.slow
def test_an_analytic_detector_forgets_single_rows_exactly(tmp_path):
    plan = guarded_plan(detector="analytic")
    run = opened(plan, tmp_path)
    rows = [*DataFolder.open(plan.stages[1].forget[0].folder).rows("train")][2:5]
    with run.locked():
        run_sequence(plan, run, reporter=Silent())
        done = forget_rows(plan, run, rows, scratch=tmp_path, reporter=Silent())
    assert done["heads"] == [
        {
            "stage": "02-guard",
            "home": "methods/guard",
            "removed": 3,
            "left": {"keep": 93, "forget": 36},
            "difference": 0.0,
        }
    ]
    assert len(stored_heads(run)[0].head.rows["forget"]) == 36


def test_a_run_without_a_guard(tmp_path):
    plan = plan_of(stages=[{"recipe": "tiny/word"}], defaults={"max_steps": 1})
    run = opened(plan, tmp_path)
    with run.locked():
        run_sequence(plan, run, reporter=Silent())
    with pytest.raises(StateError, match="left a guard"):
        export_stage(run, stage=1, kind="guard")
    session, chain = Session(plan, run, Silent()), load_filters([FILTER])
    rows = list(DataFolder.open(plan.tasks[0].folder).rows("test")[:2])
    with greedy(session.model_after(1), session.encoder, max_new_tokens=2) as generator:  # the guard is still to come
        assert generator.answer(rows, filters=chain, device="cpu") == generator.answer(rows, device="cpu")
    with pytest.raises(McitError, match="no stage leaves a detector"):
        plan_of(stages=[{"recipe": "tiny/word"}], eval={"filters": [FILTER]})
