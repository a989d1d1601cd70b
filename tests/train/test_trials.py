"""A trial that an equal model passed on equal rows is not made again; anything else that it follows from makes another one."""

import pytest
import torch

from mcit.core.entries import Entries
from mcit.engine import world
from mcit.engine.plain import PlainEngine
from mcit.models.basefiles import base_digest
from mcit.models.lineage import Lineage
from mcit.models.load import load_base
from mcit.plan.preflight import make_encoder
from mcit.train import trials
from mcit.train.stage import Material, build_stage
from tests.fakes.bench import plan_of


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """How often packs were compared with padded rows; the cache is empty at first."""
    monkeypatch.setattr(trials, "ENTRIES", Entries(f"trials-{tmp_path.name}", most=100))
    made = []
    own = PlainEngine._differs
    monkeypatch.setattr(PlainEngine, "_differs", lambda self, probe: made.append(probe) or own(self, probe))
    return made


def built(change=None, **settings):
    plan = plan_of(engine={"micro_batch": 4, "workers": 0}, **settings)
    model = load_base(plan.model_path)
    if change:
        change(model)
    lineage = Lineage(str(plan.model_path), base_digest(plan.model_path))
    return build_stage(plan.stages[0], Material(plan, model, make_encoder(plan), lineage), inherited={}).engine


def test_an_equal_stage_is_not_tried_again_and_packs_as_it_did(tried):
    first = built()
    assert len(tried) == 1 and first._packs and first._cut is not None
    again = built()
    assert len(tried) == 1 and again._packs and again._cut is not None and not again.notes
    built(defaults={"optim": {"lr": 5e-4}})  # outputs before the first step do not follow from it
    assert len(tried) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1},
        {"defaults": {"adapter": {"rank": 4, "alpha": 64}}},
        {"defaults": {"methods": [{"name": "hft"}]}},
        {"stages": [{"recipe": "tiny/yesno"}]},
    ],
    ids=["seed", "adapter", "methods", "rows"],
)
def test_what_the_outcome_follows_from_is_tried_anew(tried, settings):
    built()
    built(**settings)
    assert len(tried) == 2


def test_other_weights_code_or_versions_are_tried_anew(tried, monkeypatch):
    built()
    monkeypatch.setattr(trials, "code_digest", lambda *packages: "changed")
    built()
    monkeypatch.setattr(trials, "versions", lambda names: {"torch": "0"})
    built()
    monkeypatch.setattr(trials, "base_identity", lambda plan, sha: {"sha256": "another"})
    built()
    assert len(tried) == 4


def test_a_failed_trial_is_made_and_told_every_time(tried):
    def other(model):
        forward = type(model).forward.__get__(model)
        model.forward = lambda position_ids=None, segments=None, ends=None, **given: forward(**given)

    for count in (2, 4):  # with the last block cut, and without
        engine = built(other)
        assert len(tried) == count and not engine._packs and "token losses would change" in engine.notes[0]


def test_one_that_fails_with_the_cut_alone_is_remembered_without(tried):
    def second_residual(model):
        block = model.get_decoder().layers[-1]
        own = block.forward
        block.forward = lambda hidden_states, **given: own(hidden_states, **given) + hidden_states

    for count in (2, 3):  # the second time only the failed one
        engine = built(second_residual)
        assert len(tried) == count and engine._packs and engine._cut is None


def test_another_card_is_tried_anew(monkeypatch):
    """Machines with other cards may share a cache folder."""
    found = []
    for card in ("NVIDIA H200", "Tesla V100"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, card=card: card)
        found.append(trials._machine(torch.device("cuda:0")))
    assert found[0] != found[1]


QUIET = """
from mcit.methods.base import Method


class Quiet(Method):
    \"\"\"It has no settings of its own.\"\"\"
"""
FAMILY = "from mcit.models.families.tiny import materialize, pending\n"


@pytest.mark.parametrize("kind", ["method", "family"])
def test_code_that_is_not_ours_is_always_tried(tried, tmp_path, kind):
    file = tmp_path / "own.py"
    file.write_text(QUIET if kind == "method" else FAMILY)
    own = {"defaults": {"methods": [{"name": f"{file}:Quiet"}]}} if kind == "method" else {}
    own = own or {"base": {"family": str(file), "dtype": "fp32"}}
    for count in (1, 2):
        built(**own)
        assert len(tried) == count


def test_several_ranks_always_try(monkeypatch):
    plan = plan_of()
    model = load_base(plan.model_path)
    monkeypatch.setattr(world, "size", lambda: 2)
    assert trials.Passed.of(plan, plan.stages[0], None, model, None) is None
