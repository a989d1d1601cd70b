import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mcit.core.errors import PlanError, TrainingError
from mcit.core.files import read_json
from mcit.core.tensorfile import load_tensors
from mcit.engine import world
from mcit.models.basefiles import base_digest
from mcit.models.lineage import Lineage, read_lineage
from mcit.models.load import load_base
from mcit.plan.preflight import make_encoder
from mcit.train.moved import moved
from mcit.train.stage import Material, agreed_choice, build_stage, drift, write_stage
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.packs import question_settings


def material(plan, lineage=None):
    lineage = lineage or Lineage(str(plan.model_path), base_digest(plan.model_path))
    return Material(plan, load_base(plan.model_path), make_encoder(plan), lineage)


def test_projector_has_its_own_learning_rate_and_streams_their_own_seeds():
    plan = plan_of(engine={"micro_batch": 4, "workers": 0})
    work = build_stage(plan.stages[0], material(plan), inherited={})
    assert work.engine.spec.is_projector("model.multi_modal_projector.linear_1.weight")
    assert not work.engine.spec.is_projector("model.language_model.layers.0.mlp.up_proj.lora_A.default.weight")
    assert list(work.streams.cursors) == ["task"] and work.later_steps == plan.stages[1].steps
    assert work.engine.spec.adapter_off is not None


def test_what_a_stage_writes(tmp_path):
    plan = plan_of(defaults={"methods": [{"name": "replay"}]})
    m = material(plan)
    work = build_stage(plan.stages[0], m, inherited={})
    write_stage(tmp_path, work, m)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "lineage.json"} <= files
    assert "methods/replay/state.json" in files
    record = read_json(tmp_path / "lineage.json")
    assert (record["kind"], record["carry"], record["stages"]) == ("lora", "merge", [])


def test_replay_adds_its_stream_from_the_second_stage_on(tmp_path):
    plan = plan_of(defaults={"methods": [{"name": "replay", "keep": 6, "per_step": 3}]})
    result = run_plan(plan, tmp_path)
    state = read_json(tmp_path / plan.stages[1].folder / "methods" / "replay" / "state.json")["state"]
    assert [task for task, _ in state["kept"]] == ["letter", "yesno"]
    assert result["model"] is not None


def test_a_kept_adapter_of_another_shape_is_refused(tmp_path):
    recipes = [("tiny/letter", 4), ("tiny/yesno", 2)]
    stages = [{"recipe": r, "adapter": {"rank": n, "alpha": 8, "carry": "keep"}} for r, n in recipes]
    with pytest.raises(PlanError, match="another rank"):
        run_plan(plan_of(stages=stages, defaults={"max_steps": 1}), tmp_path)


def test_a_kept_adapter_goes_on_training(tmp_path):
    adapter = {"rank": 4, "alpha": 8, "carry": "keep"}
    plan = plan_of(defaults={"adapter": adapter, "max_steps": 1})
    result = run_plan(plan, tmp_path)
    folders = [tmp_path / s.folder for s in plan.stages]
    first, second = read_lineage(folders, base="b", base_sha256=base_digest(plan.model_path)).deltas
    name = "model.language_model.layers.0.mlp.up_proj"
    a, b = first.read().lora[name], second.read().lora[name]
    assert 0 < (a.A_RI - b.A_RI).abs().max() < 0.1, "one step away from the kept values, not a fresh draw"
    below = read_lineage(folders[:1], base="b", base_sha256=base_digest(plan.model_path))
    work = SimpleNamespace(stage=plan.stages[1], router=None, member="")
    found = drift(work, Material(plan, result["model"], None, below))
    assert found == pytest.approx(moved(second.read().lora, first.read().lora)) and 0 < found[name]
    assert found[name] < moved(second.read().lora, {})[name], "what the stage below moved is not counted again"


def test_ranks_that_choose_differently_are_an_error(monkeypatch):
    """Two ranks, of which the other one sends what `theirs` says."""
    mine = [[2, 0], [5, 1]]
    chooser = SimpleNamespace(name="hardest", choose=lambda stream, count, size, ctx: [(2, 0), (5, 1)])
    methods = SimpleNamespace(chooser_of=lambda stream: chooser)
    monkeypatch.setattr(world, "size", lambda: 2)
    for theirs in (mine, [[2, 0], [4, 1]]):
        monkeypatch.setattr(world, "gather_objects", lambda obj, theirs=theirs: [json.loads(json.dumps(obj)), theirs])
        if theirs == mine:
            assert agreed_choice(methods, None, "hard", 9, 2) == [(2, 0), (5, 1)]
        else:
            with pytest.raises(TrainingError, match="ranks choose different rows of stream 'hard'"):
                agreed_choice(methods, None, "hard", 9, 2)


def test_packs_change_how_a_step_is_computed_and_nothing_else(tmp_path):
    """Weights after two stages are those of padded rows up to rounding; a run stopped inside a stage ends bit for bit alike."""
    settings = question_settings(tmp_path)
    plans = {
        packs: plan_of(**settings, engine={"micro_batch": 6, "workers": 0, "packs": packs}) for packs in (True, False)
    }
    assert plans[True].digest == plans[False].digest
    packed, padded = (tensors_of(run_plan(plans[p], tmp_path / f"packs-{p}")) for p in (True, False))
    assert packed != padded, "packs were not used"
    assert packed == tensors_of(run_plan(plans[True], tmp_path / "stopped", stop_at=(2, 2)))
    for stage in plans[True].stages:
        file = Path(stage.folder, "adapter", "adapter_model.safetensors")
        before, after = (load_tensors(tmp_path / f"packs-{p}" / file) for p in (False, True))
        for name, tensor in before.items():
            assert (after[name] - tensor).norm() <= 1e-3 * tensor.norm(), name


def test_the_optimiser_goes_on_in_the_next_stage(tmp_path):
    """Moments and step counts of 4 steps are in the first stage's folder and go on to 8 in the second, which ends elsewhere
    than with a new optimiser, and in the same bytes when it is stopped and begun again from disk."""
    optim = {"batch": 8, "lr": 1e-2, "warmup": 0, "schedule": "constant"}
    adapter = {"rank": 4, "alpha": 8, "also_train": ["projector"], "carry": "keep"}

    def trained(name, moments, **given):
        plan = plan_of(defaults={"optim": {**optim, "moments": moments}, "adapter": adapter})
        return tensors_of(run_plan(plan, tmp_path / name, **given))

    kept, anew = trained("kept", "keep"), trained("anew", "reset")
    first, second = kept
    for folder, steps in ((first, 4), (second, 8)):
        record = read_json(tmp_path / "kept" / folder / "optimizer.json")
        assert len(record["steps"]) > 20 and set(record["steps"].values()) == {steps}
        assert not (tmp_path / "anew" / folder / "optimizer.json").exists()
    weights = "adapter/adapter_model.safetensors"
    assert kept[first][weights] == anew[first][weights] and kept[second][weights] != anew[second][weights]
    assert trained("resumed", "keep", stop_at=(2, 2)) == kept
    assert trained("resumed at its start", "keep", stop_at=(1, 3)) == kept
