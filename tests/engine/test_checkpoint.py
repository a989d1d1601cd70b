import json

import pytest
import torch

from mcit.core.errors import StateError
from mcit.engine.checkpoint import (
    EngineState,
    Moments,
    load_rng,
    read_moments,
    read_state,
    save_rng,
    write_moments,
    write_state,
)

CPU = torch.device("cpu")
SHAPES = {"a": torch.Size([2]), "b": torch.Size([1])}


def state():
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    return EngineState(7, weights, {"a": {"exp_avg": torch.tensor([0.1, 0.2])}}, {"a": 5})


def test_what_is_written_is_read_again(tmp_path):
    write_state(tmp_path, state())
    found = read_state(tmp_path, SHAPES)
    assert found.step == 7 and found.steps == {"a": 5} and list(found.moments) == ["a"]
    assert torch.equal(found.moments["a"]["exp_avg"], state().moments["a"]["exp_avg"])
    assert all(torch.equal(found.weights[n], t) for n, t in state().weights.items())
    record = json.loads((tmp_path / "engine.json").read_text())
    assert record == {"format": 1, "optimizer_steps": {"a": 5}, "step": 7}


def test_what_a_stage_leaves_of_its_optimiser_is_read_again(tmp_path):
    """Names with dots, several tensors each; of a stage without steps nothing but the record; half of it is refused."""
    tensors = {"a.b": {"exp_avg": torch.tensor([0.1]), "exp_avg_sq": torch.tensor([0.2])}}
    write_moments(tmp_path, Moments(tensors, {"a.b": 8}))
    found = read_moments(tmp_path)
    assert found.steps == {"a.b": 8} and all(torch.equal(found.tensors["a.b"][k], t) for k, t in tensors["a.b"].items())
    (tmp_path / "optimizer.safetensors").unlink()
    with pytest.raises(StateError, match="different parameters"):
        read_moments(tmp_path)
    write_moments(tmp_path, Moments({}, {}))
    assert read_moments(tmp_path) == Moments({}, {}) and not (tmp_path / "optimizer.safetensors").exists()
    (tmp_path / "optimizer.json").unlink()
    with pytest.raises(StateError):
        read_moments(tmp_path)


def test_a_checkpoint_before_the_first_step_has_no_moments(tmp_path):
    write_state(tmp_path, EngineState(0, state().weights, {}, {}))
    assert not (tmp_path / "optimizer.safetensors").exists()
    assert read_state(tmp_path, SHAPES).moments == {}


def test_other_shapes_and_names_are_refused(tmp_path):
    write_state(tmp_path, state())
    for shapes in ({"a": torch.Size([2])}, {**SHAPES, "b": torch.Size([2])}):
        with pytest.raises(StateError, match="another model"):
            read_state(tmp_path, shapes)


def test_random_state_comes_back_and_is_derived_where_it_is_missing(tmp_path):
    torch.manual_seed(1)
    save_rng(tmp_path, CPU)
    draw = torch.rand(4)
    assert load_rng(tmp_path, CPU, seed=3, step=2) == []
    assert torch.equal(torch.rand(4), draw)
    (tmp_path / "rng" / "rank-000.safetensors").rename(tmp_path / "rng" / "rank-001.safetensors")
    load_rng(tmp_path, CPU, seed=3, step=2)
    derived = torch.rand(4)
    torch.manual_seed(5)
    load_rng(tmp_path, CPU, seed=3, step=2)
    assert torch.equal(torch.rand(4), derived) and not torch.equal(derived, draw)


def test_another_number_of_ranks_is_noted(tmp_path):
    save_rng(tmp_path, CPU)
    (tmp_path / "rng" / "rank-001.safetensors").write_bytes((tmp_path / "rng" / "rank-000.safetensors").read_bytes())
    (note,) = load_rng(tmp_path, CPU, seed=0, step=0)
    assert "of 2 ranks and there are 1" in note
