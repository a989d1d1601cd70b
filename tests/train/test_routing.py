"""Pools of adapters: kept apart, continued by the router's word, chosen per row, the same after a restart."""

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from mcit.core.errors import StateError
from mcit.core.files import read_json, write_json
from mcit.core.interfaces import Silent
from mcit.core.types import Row, Turn
from mcit.data.collate import collate
from mcit.data.encode import Encoder
from mcit.data.folder import DataFolder
from mcit.models import adapters
from mcit.models.lineage import Lineage
from mcit.models.load import load_processor
from mcit.models.pool import answers_digest, members_of
from mcit.routers.base import Router
from mcit.train import routing
from mcit.train.routing import pooled
from mcit.train.sequence import Session, run_sequence
from tests.fakes import small
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.pools import stored
from tests.fakes.run_dir import json_lines
from tests.train.test_sequence import opened

JOINER = {"use": "tests.fakes.small:Joiner"}
NEAREST = {"use": "mcit_sample.nearest:Nearest"}
POOL = {"adapter": {"rank": 4, "alpha": 8, "also_train": [], "carry": "pool"}, "max_steps": 2}
STAGES = [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno"}, {"recipe": "tiny/letter", "name": "again"}]


def pool_plan(router=NEAREST, stages=STAGES, defaults=POOL, **top):
    return plan_of(defaults=defaults, stages=stages, router=router, **top)


class Chooser(Router):
    """Answers what a test says and shows what it was asked."""

    answer: ClassVar[Any] = None

    @staticmethod
    def route(rows, members, state, tensors, states):
        return Chooser.answer(rows, members, state, tensors, states)

    def state_dict(self):
        return {"stage": self.stage}

    def load_state_dict(self, state):
        self.stage = state["stage"]


def chooser(stage, *, tensors=True):
    router = Chooser(Chooser.Config())
    router.stage = stage
    if tensors:
        router.tensors.put("mean", "x", torch.tensor([float(stage)]))
    return router


CHOOSER = SimpleNamespace(name="tests.train.test_routing:Chooser", config=Chooser.Config())
QUESTIONS = [Row(f"r{k}", (), (Turn("user", "why " * (k + 1)), Turn("assistant", "so")), "t", "t:1") for k in range(9)]


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A pool of two members, each stage with what the router knew then."""
    monkeypatch.setattr(Chooser, "answer", lambda rows, members, *rest: [members[0]] * len(rows))
    return stored(tmp_path, [chooser(1), chooser(2)])


def live_pool(lineage, router=CHOOSER):
    encoder = Encoder(load_processor(tiny_path()))
    return pooled(SimpleNamespace(router=router), tiny_model().eval(), encoder, lineage)


def test_a_router_comes_back_as_the_last_stage_left_it(pair):
    router = routing.build(CHOOSER, pair)
    assert router.stage == 2 and router.tensors.require("mean", "x").item() == 2
    assert not hasattr(routing.build(CHOOSER, Lineage("", "")), "stage"), "nothing was learned yet"
    write_json(pair.deltas[-1].folder / "router" / "state.json", {"state_version": 7, "state": {"stage": 2}})
    with pytest.raises(StateError, match="state has version 7, this code writes 1"):
        routing.build(CHOOSER, pair)


@pytest.mark.parametrize("tensors", [True, False])
def test_routing_is_given_rows_members_state_and_tensors(tensors, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Chooser, "answer", lambda *given: asked.append(given[:4]) or ["02-b"] * len(given[0]))
    with live_pool(stored(tmp_path, [chooser(1), chooser(2, tensors=tensors)])) as pool:
        assert pool.choose(QUESTIONS[:2]) == ["02-b", "02-b"]
    ((rows, members, state, found),) = asked
    assert rows == [{"id": r.id, "task": "t", "question": r.question} for r in QUESTIONS[:2]]
    assert (members, state) == (["01-a", "02-b"], {"stage": 2})
    assert {name: t.tolist() for name, t in found.items()} == ({"mean|x": [2.0]} if tensors else {})


def test_states_are_those_of_each_row_alone_in_passes_of_eight(pair, monkeypatch):
    """Last hidden state at the last prompt token, under the base or a member, whatever stands beside a row."""
    seen, sizes, run = {}, [], routing.run_model

    def answer(rows, members, state, tensors, states):
        seen.update({member: states(rows, member) for member in (None, *members)})
        return [members[0]] * len(rows)

    monkeypatch.setattr(Chooser, "answer", answer)
    monkeypatch.setattr(
        routing, "run_model", lambda m, batch, **how: sizes.append(len(batch.rows)) or run(m, batch, **how)
    )
    with live_pool(pair) as pool:
        pool.choose(QUESTIONS)
        assert sizes == [8, 1] * 3
        for member, states_BD in seen.items():
            for k, row in enumerate(QUESTIONS):
                batch = collate([pool._encoder.prompt(row)], stream="x", pad_id=pool._encoder.pad_id)
                with torch.no_grad(), pool.using(member):
                    alone = run(pool._model, batch, device=torch.device("cpu"), layers={"last"}).hidden_BTD[0, -1]
                assert torch.allclose(states_BD[k], alone, atol=1e-5), (member, k)
    assert not any(torch.allclose(seen[None], seen[name], atol=1e-3) for name in ("01-a", "02-b"))
    assert not torch.allclose(seen["01-a"], seen["02-b"], atol=1e-3)


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (["02-b"], r"chose \[\] for 1 of 2 rows"),
        (["01-a"] * 3, r"chose \[\] for 3 of 2 rows"),
        (["y", "x"], r"chose \['x'\] for 2 of 2 rows"),
        (["01-a", "x"], r"chose \['x'\] for 2 of 2 rows"),
    ],
)
def test_a_choice_is_one_member_for_each_row(chosen, says, pair, monkeypatch):
    monkeypatch.setattr(Chooser, "answer", lambda *given: chosen)
    with live_pool(pair) as pool, pytest.raises(StateError, match=says) as error:
        pool.choose(QUESTIONS[:2])
    assert error.value.fix == "choose one of ['01-a', '02-b'] for each row"
    monkeypatch.setattr(Chooser, "answer", lambda *given: ["01-a", "02-b"])
    with live_pool(pair) as pool:
        assert pool.choose(QUESTIONS[:2]) == ["01-a", "02-b"]


def test_a_run_without_members_or_router_has_no_pool(pair, tmp_path):
    merged = stored(tmp_path / "merged", [chooser(1)], carry="merge")
    for lineage, router in ((merged, CHOOSER), (pair, None), (merged, None), (Lineage("", ""), CHOOSER)):
        with live_pool(lineage, router) as pool:
            assert pool is None


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
