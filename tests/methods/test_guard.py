"""What the method leaves: a detector, phrases, errors on prompts it did not see."""

from types import SimpleNamespace

import pytest
import torch

from mcit.analytic.detector import probability
from mcit.core.errors import DataError
from mcit.core.types import ModelOutput
from mcit.methods.guard import Guard
from tests.fakes import steps
from tests.fakes.rows import row


def stage_of(name, folder=".", gone=False):
    """One that forgets with the method."""
    forget = (SimpleNamespace(recipe=f"zoo/{name}", folder=str(folder), gone=gone),)
    return SimpleNamespace(
        name=name, forget=forget, tasks=(SimpleNamespace(name=name),), methods=(SimpleNamespace(name="guard"),)
    )


def context(*names, keep=30, forget=10, seed=5, gone=False):
    """A stage for each name. Prompts to forget have a feature of 4; every row is its own batch of tokens, the answer last."""
    names = names or ("penguin",)
    kept = [row(f"What is it, {i % 10}?", f"k{i}", id=f"k{i}") for i in range(keep)]
    rows = {name: [row(f"What is it, {i}?", name, id=f"{name}{i}") for i in range(forget)] for name in names}
    stages = [stage_of(name, gone=gone and name != names[-1]) for name in names]
    logged, noise = {}, {}

    def forward_pass(given, *, rows):
        for one in given:
            batch = steps.batch("task")
            labels = torch.tensor([[-100, -100, 7]])
            vector = noise.setdefault(one.id, torch.randn(6, generator=torch.Generator().manual_seed(len(noise))))
            hidden = vector.expand(1, 3, 6).clone()
            if one.answer in names:
                hidden[..., names.index(one.answer)] += 4.0
            made = type(batch)("task", (one,), torch.zeros_like(labels), labels, torch.ones_like(labels), {}, 1)
            empty = torch.zeros(0)
            yield made, ModelOutput(empty, empty, empty, empty, {"last": hidden})

    others = {name: [*kept[:5], row("And this?", f"other {name}", id=name)] for name in names}
    data = SimpleNamespace(
        stages=stages,
        forget_rows=lambda stage=stages[-1]: rows[stage.name],
        stage_rows=lambda: kept,
        rows=lambda task: [*others[task], rows[names[-1]][0]],
    )
    log = lambda name, value: logged.update({name: float(value)})
    ctx = SimpleNamespace(data=data, seed=seed, forward_pass=forward_pass, log=log)
    return ctx, logged


@pytest.mark.parametrize("kind", ["mlp", "analytic"])
def test_detector_phrases_and_held_out_errors(kind):
    method, (ctx, logged) = Guard(Guard.Config(detector=kind, width=8, steps=100, lr=1e-2)), context()
    method.on_stage_end(ctx)
    state = method.state_dict()
    assert state["phrases"] == ["penguin"] and state["mean"] and state["detector"] == kind
    assert (
        logged["guard/recall"] == 1.0
        and logged["guard/false_alarms"] == logged["guard/false_alarms_same_question"] <= 0.2
    )
    if kind == "analytic":
        tensors = {"weight": method.tensors.require("weight", "head")}
        assert {label: len(rows) for label, rows in state["head"]["rows"].items()} == {"keep": 30, "forget": 10}
    else:
        tensors = {name: method.tensors.require("detector", name) for name in method.tensors.names("detector")}
    far = torch.zeros(2, 6)
    far[0, 0] = 6.0
    assert (probability(tensors, far) >= 0.5).tolist() == [True, False]
    other = Guard(method.config)
    other.load_state_dict(state)
    assert other.state_dict() == state


@pytest.mark.parametrize("kind", ["mlp", "analytic"])
def test_a_second_request_leaves_the_first_one_guarded(kind):
    """Its rows are fitted on beside the new ones, its phrases are kept; what one retains and the other forgets is forgotten."""
    method = Guard(Guard.Config(detector=kind, width=8, steps=100, lr=1e-2))
    method.load_state_dict({"phrases": ["Penguin!", "seal"], "head": {"of": "before"}})
    method.on_stage_end(context("penguin", "seal")[0])
    state = method.state_dict()
    assert state["phrases"] == ["Penguin!", "seal"]
    if kind == "analytic":
        tensors = {"weight": method.tensors.require("weight", "head")}
        assert {label: len(rows) for label, rows in state["head"]["rows"].items()} == {"keep": 31, "forget": 20}
    else:
        tensors = {name: method.tensors.require("detector", name) for name in method.tensors.names("detector")}
        assert "head" not in state
    asked = torch.zeros(3, 6)
    asked[0, 0] = asked[1, 1] = 6.0
    assert (probability(tensors, asked) >= 0.5).tolist() == [True, True, False]


def test_a_request_whose_data_were_deleted_is_not_dropped_unsaid():
    with pytest.raises(DataError, match="the data of zoo/penguin, which stage penguin guards, were deleted"):
        Guard(Guard.Config()).on_stage_end(context("penguin", "seal", gone=True)[0])


def test_listed_phrases_and_mirrored_pictures():
    method, (ctx, _) = Guard(Guard.Config(phrases=["emperor"], flip=True, width=4, steps=2)), context()
    method.on_stage_end(ctx)
    assert method.state_dict()["phrases"] == ["emperor"]


def test_settings_that_cannot_be():
    stage = SimpleNamespace(name="s", epochs=1)
    plan = SimpleNamespace(config=SimpleNamespace(eval=SimpleNamespace(filters=[{"use": "guard"}])))
    assert not Guard(Guard.Config()).check(stage, plan)
    whats = [p.what for p in Guard(Guard.Config(detector="analytic", flip=True)).check(stage, plan)]
    assert "no request could be exact" in whats[0] and "no request could name" in whats[1]
    bare = SimpleNamespace(config=SimpleNamespace(eval=SimpleNamespace(filters=["strip"])))
    (note,) = Guard(Guard.Config()).check(stage, bare)
    assert note.level == "note" and "no filter guard" in note.what
