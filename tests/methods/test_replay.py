import json
import math
from collections import Counter

import pytest
import torch

from mcit.core.errors import StateError
from mcit.methods.replay import Replay
from tests.fakes.bench import run_plan, tensors_of
from tests.fakes.method_plans import plan_with
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import batch, context, output, rows


def test_keeps_a_seeded_choice_of_each_stage_and_replays_it():
    first, second = rows("a", 10), rows("b", 3)
    method = Replay(Replay.Config(keep=4, per_step=2))
    assert method.streams(context(rows=first).data) == {}
    method.on_stage_end(context(rows=first))
    method.on_stage_end(context(rows=second))
    kept = method.state_dict()["kept"]
    assert [task for task, _ in kept] == ["a", "b"]
    assert len(set(kept[0][1])) == 4 and kept[1][1] == ["b0", "b1", "b2"]
    spec = method.streams(context(rows=first + second).data)["replay"]
    assert [r.id for r in spec.rows] == kept[0][1] + kept[1][1] and spec.per_step == 2
    again = Replay(Replay.Config(keep=4))
    again.on_stage_end(context(rows=first))
    assert again.state_dict()["kept"][0] == kept[0]
    other = Replay(Replay.Config(keep=4))
    other.on_stage_end(context(rows=first, seed=6))
    assert other.state_dict()["kept"][0] != kept[0]


def test_joint_stage_shares_the_memory():
    method = Replay(Replay.Config(keep=4))
    method.on_stage_end(context(rows=rows("a", 10) + rows("b", 10)))
    assert [len(ids) for _, ids in method.state_dict()["kept"]] == [2, 2]


def test_loss_by_hand():
    """Uniform logits over 4: each token costs ln 4; two tokens, weight 0.5: ln 4."""
    method = Replay(Replay.Config(weight=0.5))
    term = method.loss_term(output(torch.zeros(2, 4), [0, 1]), batch("replay"), context())
    assert term.sum.item() == pytest.approx(1.3862943611) and term.per == "tokens"
    assert method.loss_term(output(torch.zeros(2, 4), [0, 1]), batch("task"), context()) is None


def test_replayed_rows_are_added_with_a_mean_of_their_own():
    """Task mean 1, replayed mean 3: 4 at weight 1, whatever their counts; 8 and 2 rows in one mean would make 1.4."""
    logits = torch.tensor([[0.0, math.log(math.exp(3) - 1)]] * 2)
    term = Replay(Replay.Config()).loss_term(output(logits, [0, 0]), batch("replay"), context())
    replayed = term.sum.item() / 2
    assert 1.0 + replayed == pytest.approx(4.0) and (8 * 1.0 + 2 * replayed) / 10 == pytest.approx(1.4)


def test_every_row_is_kept_with_the_same_chance():
    """200 of 1,000 rows: 0.2 each, early and late ones alike."""
    times = Counter()
    for seed in range(20):
        method = Replay(Replay.Config(keep=200))
        method.on_stage_end(context(rows=rows("a", 1000), seed=seed))
        times.update(method.state_dict()["kept"][0][1])
    tenths = [sum(times[f"a{k}"] for k in range(start, start + 100)) / 2_000 for start in range(0, 1000, 100)]
    assert sum(tenths) / 10 == pytest.approx(0.2) and all(abs(share - 0.2) < 0.04 for share in tenths)


def test_a_lost_row_is_named():
    method = Replay(Replay.Config())
    method.load_state_dict({"kept": [["a", ["a0", "gone"]]]})
    with pytest.raises(StateError, match="'gone'"):
        method.streams(context(rows=rows("a", 2)).data)


def test_every_task_of_a_joint_stage_keeps_at_least_one_row():
    """Two rows to keep, three tasks: 2 // 3 is none, so each keeps one."""
    method = Replay(Replay.Config(keep=2))
    method.on_stage_end(context(rows=rows("a", 5) + rows("b", 5) + rows("c", 5)))
    assert [len(ids) for _, ids in method.state_dict()["kept"]] == [1, 1, 1]


def test_a_task_that_comes_again_replaces_what_was_kept_of_it():
    method = Replay(Replay.Config(keep=2))
    for task in "aba":
        method.on_stage_end(context(rows=rows(task, 2)))
    assert method.state_dict()["kept"] == [["b", ["b0", "b1"]], ["a", ["a0", "a1"]]]


def test_weight_zero_opens_no_stream():
    method = Replay(Replay.Config(weight=0.0))
    method.on_stage_end(context(rows=rows("a", 2)))
    assert method.streams(context(rows=rows("a", 2)).data) == {}


def test_naming_it_alone_is_using_the_shipped_settings():
    """``{name: replay}`` and ``{use: replay}`` in a config are the same run; one row of each is the least."""
    assert Replay.Config() == shipped_config(Replay)
    assert refused(Replay, weight=0.5, keep=1, per_step=1) == []
    assert refused(Replay, weight=-0.5, keep=0, per_step=0) == ["weight", "keep", "per_step"]


@pytest.mark.parametrize("name", ["replay", *(pytest.param(name, marks=pytest.mark.slow) for name in ("agem", "fpf"))])
def test_age_weighted_after_a_stop_is_the_same_bitwise(name, tmp_path):
    """Three stages, keep 8 of all; stopped inside the third, in which rows of two stages are replayed."""
    stages = [{"recipe": f"tiny/{task}", "max_steps": 2} for task in ("letter", "word", "yesno")]
    plan = plan_with(name, changes={name: {"policy": "age_weighted", "keep": 8}}, stages=stages)
    files = tensors_of(run_plan(plan, tmp_path / "straight"))
    assert tensors_of(run_plan(plan, tmp_path / "resumed", stop_at=(3, 1))) == files
    state = json.loads((tmp_path / "straight" / plan.stages[2].folder / "methods" / name / "state.json").read_text())
    held = [i for _, ids in state["state"]["kept"] for i in ids]
    assert len(held) == 8 and len(state["state"]["kept"]) > 1
