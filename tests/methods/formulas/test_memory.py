import json
from types import SimpleNamespace

import pytest

from mcit.core.config import parse
from mcit.core.errors import StateError
from mcit.methods.formulas.memory import Aged, MemoryConfig, RowMemory, kept_of, pruned, recall, remember
from tests.fakes.steps import context, rows


def test_a_memory_remembers_and_recalls():
    first, second = rows("a", 10), rows("b", 3)
    kept = remember([], context(rows=first), count=4, draw="x")
    kept = remember(kept, context(rows=second), count=4, draw="x")
    assert [(task, len(ids)) for task, ids in kept] == [("a", 4), ("b", 3)]
    data = context(rows=first + second).data
    assert [row.id for row in recall(kept, data, where="m")] == [i for _, ids in kept for i in ids]
    assert kept_of([[task, ids] for task, ids in kept]) == kept
    assert remember([], context(rows=first), count=4, draw="y") != kept[:1], "each user draws its own"
    with pytest.raises(StateError, match="kept row 'a9' is no longer in task a"):
        recall([("a", ["a9"])], context(rows=rows("a", 9)).data, where="m")


def test_more_than_a_stage_has_is_noted_once():
    stages = [SimpleNamespace(index=k, rows=count) for k, count in enumerate((0, 30, 9, 9), 1)]
    plan = SimpleNamespace(stages=stages)

    def noted(**settings):
        memory = RowMemory(MemoryConfig(**settings), keep=10, draw="x")
        return [(s.index, p.level, p.what) for s in stages for p in memory.check(s, plan)]

    assert noted() == [(3, "note", "is 10, and this stage has 9 training rows: all of them are kept")]
    assert noted(policy="age_weighted") == [], "its budget is of all stages together"


def aged_memory(keep=6, tau=20.0):
    return RowMemory(MemoryConfig(policy="age_weighted", tau=tau), keep=keep, draw="x")


def after(*tasks, count=9, **settings):
    """A memory after stages of these tasks, and the data of all of them."""
    memory = aged_memory(**settings)
    for index, task in enumerate(tasks, 1):
        memory.add(context(index=index, seed=index, rows=rows(task, count)))
    return memory, context(rows=[row for task in dict.fromkeys(tasks) for row in rows(task, count)]).data


def test_old_rows_of_little_relevance_go_first():
    """Relevance .8 at age 10 and .5 at age 0, tau 10: .294 < .5."""
    old, new = Aged("a", "a0", 1, 0.8), Aged("b", "b0", 11, 0.5)
    assert pruned([old, new], 1, now=11, tau=10) == [new]
    assert pruned([old, new], 1, now=11, tau=100) == [old]  # .724
    assert pruned([old, new], 2, now=11, tau=10) == [old, new]


def test_age_weighted_stages_share_one_budget():
    memory, data = after("a", "b", "c")
    kept = memory.state()["kept"]
    assert sum(len(ids) for _, ids in kept) == 6
    assert [row.id for row in memory.rows(data)] == [i for _, ids in kept for i in ids]
    assert [task for task, _ in after("a", "b", "c", tau=0.01)[0].state()["kept"]] == ["c"]


def test_a_row_that_was_dropped_stays_out_and_a_task_that_comes_again_adds_rows():
    before, _ = after("a", "b")
    memory, _ = after("a", "b", "a")
    ids = {i for task, ids in before.state()["kept"] if task == "b" for i in ids}
    assert {i for task, i, *_ in memory.state()["aged"] if task == "b"} <= ids
    again = [row for row in memory.state()["aged"] if row[0] == "a"]
    assert len({i for _, i, *_ in again}) == len(again) and any(stage == 3 for _, _, stage, _ in again)


def test_state_of_an_age_weighted_memory_comes_back_exactly():
    memory, data = after("a", "b")
    loaded = aged_memory()
    loaded.load(json.loads(json.dumps(memory.state())))
    assert loaded.state() == memory.state() and loaded.rows(data) == memory.rows(data)
    for one in (memory, loaded):
        one.add(context(index=3, seed=3, rows=rows("c", 9)))
    assert loaded.state() == memory.state()
    uniform = RowMemory(MemoryConfig(), keep=4, draw="x")
    assert uniform.state() == {"kept": [], "without": [], "aged": []} and not uniform


@pytest.mark.parametrize("policy", ["uniform", "age_weighted"])
def test_rows_with_the_present_stage_change_nothing(policy):
    memory = RowMemory(MemoryConfig(policy=policy), keep=4, draw="x")
    memory.add(context(index=1, rows=rows("a", 9)))
    state, now = memory.state(), context(index=2, rows=rows("b", 9))
    data = context(rows=rows("a", 9) + rows("b", 9)).data
    shown = memory.rows(data, present=now)
    assert memory.state() == state and "b" in {row.task for row in shown}
    memory.add(now)
    assert memory.rows(data) == shown


def test_settings_that_make_no_sense_are_refused():
    problems = parse(MemoryConfig, {"policy": "age_wieghted", "tau": 0})[1]
    assert [problem.where for problem in problems] == ["policy", "tau"]
    assert "age_weighted" in problems[0].fix


@pytest.mark.parametrize("policy", ["uniform", "age_weighted"])
def test_rows_that_a_stage_forgot_leave_the_memory_with_it(policy):
    """What it forgot is out of the rows at once, out of the state at its end, and not asked for again."""
    memory, every = RowMemory(MemoryConfig(policy=policy), keep=20, draw="x"), rows("a", 6)
    memory.add(context(rows=every, index=1))
    ctx, asked = context(rows=[*every, *rows("b", 2)], index=2), []
    ctx.data.stage_rows = lambda: rows("b", 2)
    ctx.data.stages = [SimpleNamespace(folder="01-a", forget=()), SimpleNamespace(folder="02-f", forget=("a",))]

    def without(kept, known=()):
        asked.append(list(known))
        return [row for row in kept if known or row.id not in ("a1", "a4")]

    ctx.data.without_forgotten = without
    assert [row.id for row in memory.rows(ctx.data)] == ["a0", "a2", "a3", "a5"]
    memory.add(ctx)
    state = json.loads(json.dumps(memory.state()))
    assert state["kept"] == [["a", ["a0", "a2", "a3", "a5"]], ["b", ["b0", "b1"]]] and state["without"] == ["02-f"]
    assert {row[1] for row in state["aged"]} == (set() if policy == "uniform" else {"a0", "a2", "a3", "a5", "b0", "b1"})
    again = RowMemory(MemoryConfig(policy=policy), keep=20, draw="x")
    again.load(state)
    asked.clear()
    again.add(ctx)
    assert asked == [] and len(again.rows(ctx.data)) == 6 and asked == [["02-f"]]
    old = {key: value for key, value in state.items() if key != "without"}
    again.load(old)
    assert again.state()["without"] == [], "a state of before"
