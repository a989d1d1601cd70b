"""Pools of adapters: kept apart, continued by the router's word, chosen per row, the same after a restart."""

import pytest
import torch

from mcit.core.errors import StateError
from mcit.core.files import read_json
from mcit.core.interfaces import Silent
from mcit.data.folder import DataFolder
from mcit.models import adapters
from mcit.models.pool import answers_digest, members_of
from mcit.train.routing import pooled
from mcit.train.sequence import Session, run_sequence
from tests.fakes import small
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.run_dir import json_lines
from tests.train.test_sequence import opened

JOINER = {"use": "tests.fakes.small:Joiner"}
NEAREST = {"use": "mcit_sample.nearest:Nearest"}
POOL = {"adapter": {"rank": 4, "alpha": 8, "also_train": [], "carry": "pool"}, "max_steps": 2}
STAGES = [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno"}, {"recipe": "tiny/letter", "name": "again"}]


def pool_plan(router=NEAREST, stages=STAGES, defaults=POOL, **top):
    return plan_of(defaults=defaults, stages=stages, router=router, **top)


@pytest.fixture(scope="module")
def done(tmp_path_factory, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        plan = pool_plan(eval={"tasks": "seen", "rows": 3, "batch": 8})
        run = opened(plan, tmp_path_factory.mktemp("runs"))
        with run.locked():
            run_sequence(plan, run, reporter=Silent())
    return plan, run


def test_adapters_stay_apart_and_a_task_that_returns_goes_on_with_its_own(done):
    plan, run = done
    session = Session(plan, run, Silent())
    lineage = session.lineage(3)
    assert {name: d.folder.name for name, d in members_of(lineage).items()} == {
        "01-letter": "03-again",
        "02-yesno": "02-yesno",
    }
    base, after = Session(plan, run, Silent()).model_after(0).state_dict(), session.model_after(3).state_dict()
    assert base.keys() == after.keys() and all(torch.equal(base[n], after[n]) for n in base)
    first, third = (lineage.deltas[k].read().lora for k in (0, 2))
    assert first.keys() == third.keys() and any(not torch.equal(first[n].B_OR, third[n].B_OR) for n in first)
    start = read_json(run.stage("02-yesno") / "pool.json")
    assert start == {"member": "02-yesno", "members": [["01-letter", "01-letter"], ["02-yesno", "02-yesno"]]}


def test_answers_are_those_of_each_member_alone(done):
    """Every answer of the run equals what the chosen member, merged into the weights, answers; batches mix members."""
    plan, run = done
    home = run.layout.evals(3)
    lines = [line for task in ("letter", "yesno") for line in json_lines(home / task / "predictions.jsonl")]
    assert {line["member"] for line in lines} <= {"01-letter", "02-yesno"}
    session = Session(plan, run, Silent())
    model, lineage = session.model_after(3), session.lineage(3)
    rows = [DataFolder.open(task.folder).rows("test")[k] for k in range(3) for task in plan.tasks]
    with pooled(plan, model, session.encoder, lineage) as pool:
        chosen = pool.choose(rows)
        by_id = {(line["id"], line["question"]): line["member"] for line in lines}
        assert chosen == [by_id[row.id, row.question] for row in rows]
        alone = [pool.choose([row])[0] for row in rows]
        assert alone == chosen
    assert not adapters.lora_layers(model)


def test_interrupted_and_resumed_equals_straight_bitwise(tmp_path):
    """Stopped in the stage that continues a member, which a restart must find again."""
    plan = pool_plan()
    straight = run_plan(plan, tmp_path / "straight")
    resumed = run_plan(plan, tmp_path / "resumed", stop_at=(3, 1))
    assert tensors_of(straight) == tensors_of(resumed)
    (a, b) = ({n: h for n, h in r["03-again"].items() if n.startswith(("router", "pool"))} for r in (straight, resumed))
    assert a == b and set(a) == {"router/state.json", "router/tensors.safetensors", "pool.json"}


@pytest.fixture(scope="module")
def joined(tmp_path_factory, cache):
    return tensors_of(run_plan(pool_plan(JOINER), tmp_path_factory.mktemp("joined")))


@pytest.mark.parametrize("moments", [2, 3, 7], ids=["join", "learn", "end of learn"])
def test_a_kill_inside_join_and_learn_is_resumed_bitwise(moments, joined, tmp_path):
    """A stage of one task passes 1 moment in `join`, if there is a member, and 2 in `learn`: 0-1, 2-4, 5-7."""
    small.kill_after(moments)
    made = tensors_of(run_plan(pool_plan(JOINER), tmp_path))
    assert small._left is None, "the router never came to that moment"
    assert made == joined


def test_what_the_router_knows_is_part_of_what_answers(done, tmp_path):
    plan, run = done
    lineage = Session(plan, run, Silent()).lineage(3)
    before, state = answers_digest(lineage), run.stage("03-again") / "router" / "state.json"
    kept = state.read_bytes()
    state.write_bytes(kept.replace(b"01-letter", b"02-yesno"))
    assert answers_digest(lineage) != before
    state.write_bytes(kept)


def test_a_router_that_names_no_member(done):
    plan, run = done
    session = Session(plan, run, Silent())
    with pooled(plan, session.model_after(3), session.encoder, session.lineage(3)) as pool:
        pool._router = type("R", (), {"route": staticmethod(lambda *args: ["nobody"])})
        with pytest.raises(StateError, match="chose \\['nobody'\\]"):
            pool.choose([DataFolder.open(plan.tasks[0].folder).rows("test")[0]])
