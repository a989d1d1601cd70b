"""Outputs of the run's base: from the present model while it is the base, else from disk; shared out over ranks."""

import shutil

import pytest
import torch

from mcit.engine import world
from mcit.engine.features import FOLDER
from mcit.models.basefiles import base_digest
from mcit.models.lineage import Lineage
from mcit.models.load import load_base
from mcit.plan.preflight import make_encoder
from mcit.train.basemodel import BATCH, base_identity, load_run_base
from mcit.train.stage import Material, build_stage
from tests.fakes import bench
from tests.fakes.bench import plan_of, run_plan, tensors_of


@pytest.fixture
def work():
    plan = plan_of(defaults={"methods": [{"name": "gere", "recipe": "general/tiny", "per_step": 2}]})
    model = load_base(plan.model_path)
    lineage = Lineage(str(plan.model_path), base_digest(plan.model_path))
    return build_stage(plan.stages[0], Material(plan, model, make_encoder(plan), lineage), inherited={})


def outputs(work, **settings):
    """Hidden states by place."""
    found = {}
    for places, batch, out in work.ctx.base_pass(work.ctx.data.pool("general/tiny"), **settings):
        for k, place in enumerate(places):
            found[place] = out.hidden_BTD[k][batch.attention_BT[k].bool()]
    return found


def test_every_row_once_and_no_logits_unless_asked(work):
    rows = work.ctx.data.pool("general/tiny")
    seen = [(places, batch, out) for places, batch, out in work.ctx.base_pass(rows)]
    assert sorted(p for places, _, _ in seen for p in places) == list(range(24))
    assert all(len(places) <= BATCH and batch.target_count == 0 and not len(out.nll_N) for places, batch, out in seen)
    with_logits = list(work.ctx.base_pass(rows, logits=True))
    assert all(batch.target_count == len(out.logits_NV) > 0 for _, batch, out in with_logits)


def test_present_model_and_base_from_disk_agree_bit_for_bit(work):
    """A fresh adapter adds zero. After the first step the present model is no longer the base, and disk is read."""
    present = outputs(work)
    work.ctx.at(0)
    from_disk = outputs(work)
    assert all(torch.equal(present[p], from_disk[p]) for p in range(24))
    loads = []
    inner = work.ctx._base._load
    work.ctx._base._load = lambda: loads.append(1) or inner()
    outputs(work)
    assert loads == [1]


def test_training_does_not_move_the_base(work):
    before = outputs(work)
    with torch.no_grad():
        for parameter in work.engine.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    moved = outputs(work)
    assert not torch.equal(before[0], moved[0])  # not at step 0 any more, but the context was not told
    work.ctx.at(1)
    assert torch.equal(outputs(work)[0], before[0])


def test_ranks_share_the_pass_and_get_what_one_rank_gets(work, monkeypatch):
    """24 rows are 3 batches: ranks 0 and 1 of 2 get 2 and 1, with the same composition; both run 2 passes."""
    whole = outputs(work)
    found, passes = {}, []
    inner = work.ctx._forward
    monkeypatch.setattr(work.ctx, "_forward", lambda batch: passes.append(rank) or inner(batch))
    monkeypatch.setattr(world, "size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(world, "rank", lambda r=rank: r)
        part = outputs(work)
        assert not set(part) & set(found)
        found.update(part)
    assert set(found) == set(whole) and all(torch.equal(found[p], whole[p]) for p in whole)
    assert passes == [0, 0, 1, 1]


def test_random_state_is_left_alone(work):
    before = torch.get_rng_state()
    for _ in work.ctx.base_pass(work.ctx.data.pool("general/tiny")):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_identity_names_weights_and_precision(tmp_path):
    plan = plan_of()
    assert base_identity(plan, "abc") == {"sha256": "abc", "dtype": "fp32"}
    assert next(load_run_base(plan, device=torch.device("cpu")).parameters()).dtype == torch.float32


def test_a_run_with_a_vision_cache_is_the_same_whatever_is_kept_and_wherever_it_is_killed(tmp_path, monkeypatch, cache):
    """Empty, full, and killed inside a stage with an empty one."""
    kept = plan_of(defaults={"max_steps": 2}, engine={"micro_batch": 4, "workers": 0, "vision_cache": "1M"})
    monkeypatch.setattr(bench, "load_base", lambda path, **how: load_run_base(kept, device=torch.device("cpu")))
    runs = {}
    for name, empty, stopped in (("empty", True, None), ("full", False, None), ("killed", True, (2, 1))):
        if empty:
            shutil.rmtree(cache / FOLDER, ignore_errors=True)
        runs[name] = run_plan(kept, tmp_path / name, stop_at=stopped)
        assert list((cache / FOLDER).glob("*/*.safetensors"))
    tower = runs["full"]["model"].model.vision_tower.forward
    assert tower.computed == 0 and tower.found
    empty, full, killed = map(tensors_of, runs.values())
    assert empty == full == killed
