"""GS-LoRA and GS-LoRA++ as presets of bounded forgetting, group sparsity, refusals and prototypes."""

import json

import pytest
import torch

from mcit.core.errors import ConfigError, PlanError
from mcit.methods.bounded_forget import BoundedForget
from mcit.methods.group_sparse import GroupSparse
from mcit.plan.plan import parse_run
from mcit.plan.references import reference_problems
from tests.fakes import steps
from tests.fakes.bench import config_of, plan_of, tensors_of
from tests.fakes.forgetting import STAGES, output, step_context, trained
from tests.fakes.sharded import ShardedEngine

GOLDEN = {
    "default": ({"use": "gs_lora"}, [0.048962411, -0.049477253, -0.061527282]),
    "proximal": (
        {"use": "gs_lora", "per_step": 4, "treatment": "proximal", "alpha": 60.0},
        [0.044461194, -0.048433539, -0.052889548],
    ),
    "refusal": (
        {"use": "gs_lora", "per_step": 4, "refusal": {"omega": 0.5}},
        [0.049915463, -0.046087332, -0.06161321],
    ),
    "blind": ({"use": "gs_lora", "refusal": {"say": "blind", "omega": 0.5}}, [0.048417732, -0.048897691, -0.0615381]),
    "pp": ({"use": "gs_lora_pp", "prototypes": {"bound": 0.5, "by": "task"}}, [0.051016062, -0.049786028, -0.06141565]),
}
"""Weights after two stages of the tiny model by the one method `gs_lora` that these presets replace: with the same settings,
one number of each of the first matrices by name. On the machine where they were taken all weights were equal bit for bit.
Those of `refusal` were taken anew when its rows came to follow the order of the rows to forget."""


def specs(entry):
    config, problems = parse_run(config_of(stages=STAGES, defaults={"methods": [entry]}))
    assert config is not None and not problems, problems
    return {m["name"]: m for m in config.stages[0].methods}


@pytest.mark.parametrize("name", GOLDEN)
def test_weights_are_those_of_the_one_method_before(name, tmp_path):
    entry, expected = GOLDEN[name]
    _, result = trained(tmp_path, entry)
    matrices = [p for n, p in sorted(result["model"].named_parameters()) if "q_proj" in n or "down_proj" in n]
    assert [float(p.detach().flatten()[7]) for p in matrices[: len(expected)]] == pytest.approx(expected, rel=1e-4)


def test_total_by_hand():
    """Oracle 4: retained 1.7, forgotten 30 under 105 at beta 0.2, a group of norm 13 at 1e-4: 1.7 + 15 + 0.0013 = 16.7013."""
    forgets = BoundedForget(BoundedForget.Config(bound=105, beta=0.2, reduction="authors"))
    forget = forgets.loss_term(output([30.0]), steps.batch("forget"), step_context(rows=1, tokens=1)).sum
    sparse, unit = GroupSparse(GroupSparse.Config(alpha=1e-4)), steps.unit("layers.0")
    penalty = sparse.weight_penalty(unit, {"a": torch.tensor([5.0]), "b": torch.tensor([12.0])}, step_context())
    assert 1.7 + forget.item() + penalty.item() == pytest.approx(16.7013, abs=1e-4)


def test_a_setting_goes_to_every_method_that_the_preset_states_it_for():
    found = specs({"use": "gs_lora", "per_step": 4, "alpha": 60, "spare": "none"})
    assert list(found) == ["bounded_forget", "group_sparse", "refusal"]
    assert (
        found["bounded_forget"]["per_step"] == found["refusal"]["per_step"] == 4
        and found["group_sparse"]["alpha"] == 60
    )
    assert found["bounded_forget"]["spare"] == found["refusal"]["spare"] == "none"
    nested = specs({"use": "gs_lora_pp", "bound": 3.0, "prototypes": {"bound": 0.5}, "refusal": {"omega": 0.25}})
    assert nested["bounded_forget"]["bound"] == 3.0 and nested["prototypes"]["bound"] == 0.5
    assert nested["refusal"]["omega"] == 0.25


def test_the_name_of_a_preset_is_no_method():
    config, _ = parse_run(config_of(stages=STAGES, defaults={"methods": [{"name": "gs_lora"}]}))
    (problem, *_) = reference_problems(config)
    assert problem.fix == "write {use: gs_lora}: it is a preset of several methods"
    with pytest.raises((ConfigError, PlanError)):
        plan_of(stages=STAGES, defaults={"methods": [{"name": "gs_lora"}]})


def test_plus_plus_is_gs_lora_with_prototypes():
    plain, more = specs({"use": "gs_lora", "per_step": 4}), specs({"use": "gs_lora_pp"})
    assert {name: more[name] for name in plain} == plain and list(more) == [*plain, "prototypes"]


def test_factors_of_zero_equal_not_listed(tmp_path):
    """beta 0 and alpha 0: the same weights as a stage that forgets nothing."""
    _, off = trained(tmp_path / "off", {"use": "gs_lora", "beta": 0, "alpha": 0})
    _, without = trained(tmp_path / "without", stages=[{"recipe": s["recipe"]} for s in STAGES])
    _, on = trained(tmp_path / "on", {"use": "gs_lora"})

    def weights(result):
        return {s: {f: h for f, h in files.items() if "methods/" not in f} for s, files in tensors_of(result).items()}

    assert weights(off) == weights(without) != weights(on)


@pytest.mark.slow
def test_refusals_with_prototypes_and_exact_zero_groups_are_a_list_in_yaml(tmp_path):
    """What one method of fixed parts could not say; it survives a restart and sharded weights."""
    entries = [
        {"name": "refusal", "per_step": 4},
        {"name": "bounded_forget", "beta": 0, "per_step": 4},
        {"name": "prototypes", "bound": 0.5, "by": "task"},
        {"name": "group_sparse", "treatment": "proximal", "alpha": 1e4},
    ]
    plan, straight = trained(tmp_path / "a", *entries)
    _, resumed = trained(tmp_path / "b", *entries, stop_at=(2, 2))
    _, sharded = trained(tmp_path / "c", *entries, engine=ShardedEngine)
    assert tensors_of(straight) == tensors_of(resumed) == tensors_of(sharded)
    state = json.loads((tmp_path / "a" / plan.stages[1].folder / "methods/group_sparse/state.json").read_text())[
        "state"
    ]
    assert len(state["zero"]) == 2
