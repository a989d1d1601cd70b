"""SSD: importances kept while learning, dampening in a stage without training, alphas that are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mcit.core.config import parse
from mcit.core.errors import PlanError, TrainingError
from mcit.methods.ssd import SSD
from mcit.models.load import load_base
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.settings import shipped_config

FORGET = {
    "name": "forget",
    "recipe": "tiny/word-retain",
    "forget": "tiny/word-forget",
    "epochs": 0,
    "adapter": {"kind": "none", "also_train": []},
}
LEARN = {"recipe": "tiny/word", "adapter": {"rank": 4, "alpha": 8, "also_train": [], "targets": ["down_proj"]}}


def run(folder, *, learn=True, targets=("down_proj",), **settings):
    """A learned stage and one that forgets, both with these settings, on the down projections; its state and weights."""
    method = {"use": "ssd", "rows": 12, "units": ["down_proj"], "alpha": 1.5, **settings}
    first = {**LEARN, "adapter": {**LEARN["adapter"], "targets": list(targets)}, "methods": [method] if learn else []}
    plan = plan_of(stages=[first, {**FORGET, "methods": [method]}], defaults={"max_steps": 2})
    result = run_plan(plan, folder)
    state = json.loads((folder / plan.stages[1].folder / "methods" / "ssd" / "state.json").read_text())["state"]
    return plan, result, state


def test_weights_are_dampened_without_training(tmp_path):
    """Some weights shrink towards 0, none grow or turn, the rest keeps its bits; importances are those of the learned stage."""
    plan, result, state = run(tmp_path / "a")
    _, same, _ = run(tmp_path / "b")
    assert tensors_of(result) == tensors_of(same)
    assert state["count"] == 12 and 0 < state["done"]["share"] < 1 and state["done"]["alpha"] == 1.5
    kept = load_file(tmp_path / "a" / plan.stages[1].folder / "methods" / "ssd" / "tensors.safetensors")
    assert len(kept) == 2 and all(name.endswith("down_proj") for name in kept)  # sums of squares alone
    own, _, other = run(tmp_path / "c", learn=False)
    assert other["count"] == 0 and own.stages[1].steps == 0 and 0 < other["done"]["share"] < 1


def test_what_learned_stages_added_can_be_dampened_alone(tmp_path):
    """Down to nothing: the selected weights are the base's again, the others are what was learned."""
    plan, _, state = run(tmp_path / "a", dampen="effect", alpha=1.0, strength=1e-12)
    base = dict(load_base(plan.model_path, dtype="fp32").named_parameters())
    found = load_file(tmp_path / "a" / plan.stages[1].folder / "weights" / "model.safetensors")
    back = torch.cat([(weight - base[name]).abs().flatten() < 1e-8 for name, weight in found.items()])
    assert len(found) == 2 and 0.1 < state["done"]["share"] < 0.9
    assert float(back.float().mean()) == pytest.approx(state["done"]["share"], abs=0.02)


def test_alphas_by_percentile_and_by_search(tmp_path):
    _, _, state = run(tmp_path / "a", alpha={"percentile": 90})
    assert state["done"]["share"] == pytest.approx(0.1, abs=0.02)
    _, _, state = run(tmp_path / "b", alpha={"search": [0.5, 2.0, 4.0], "rise": 100.0, "rows": 8})
    assert state["done"]["alpha"] == 0.5
    with pytest.raises(TrainingError, match="lifts the retained loss"):
        run(tmp_path / "c", alpha={"search": [1e12], "rows": 8})


def test_an_alpha_that_dampens_nothing_or_everything_is_named_before_the_commit(tmp_path):
    with pytest.raises(TrainingError, match="dampens no weight; I_f / I_D is at most"):
        run(tmp_path / "a", alpha=1e12)
    assert not list((tmp_path / "a" / "02-forget").glob("weights*"))
    with pytest.raises(TrainingError, match="dampens every weight"):
        run(tmp_path / "d", alpha=1e-30, strength=1e-12)
    with pytest.raises(TrainingError, match="no importances of down_proj are stored"):
        run(tmp_path / "b", targets=["up_proj"])
    with pytest.raises(PlanError, match="nothing to train"):
        run(tmp_path / "c", units=["nothing"])


def test_memory_is_that_of_whole_matrices():
    shapes = {"a.up.lora_A.x.weight": (2, 5), "a.up.lora_B.x.weight": (3, 2), "b.weight": (4, 4)}
    assert SSD(SSD.Config()).state_bytes(shapes, stages=1) == 4 * (15 + 16)
    assert SSD(SSD.Config(units=["up"], dampen="effect")).state_bytes(shapes, stages=1) == 8 * 15


def test_state_and_settings():
    method = SSD(SSD.Config())
    method.load_state_dict({"count": 3, "done": {"alpha": 1.0}})
    assert method.state_dict() == {"count": 3, "done": {"alpha": 1.0}}
    assert shipped_config(SSD) == SSD.Config()
    config, problems = parse(SSD.Config, {"alpha": {"percentile": 99}})
    assert not problems and parse(SSD.Config, json.loads(config.model_dump_json()))[0] == config
    assert parse(SSD.Config, {"alpha": {"percentile": 0}})[1] and parse(SSD.Config, {"dampen": "all"})[1]
    for alpha in (0, -1.0, {"search": [5.0, 0.0]}):
        assert parse(SSD.Config, {"alpha": alpha})[1]
