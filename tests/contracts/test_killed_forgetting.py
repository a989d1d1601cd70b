"""Stages that forget, killed at a drawn forward pass or edit of weights: the same bytes.

Kills between two steps are in the contract suite, for every method (test 2); here are those inside of what a stage without
steps does, and between the passes of one step.
"""

import contextlib
import functools
import random
from unittest import mock

import pytest

from mcit.engine.gradients import LocalWeights
from mcit.engine.plain import PlainEngine
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.small import Killed

REQUEST = {"name": "forget", "recipe": "tiny/word-retain", "forget": "tiny/word-forget"}
FULL = {"kind": "none", "also_train": []}
MERGE = {"rank": 4, "alpha": 8, "also_train": []}
STAGES = {
    "ssd": {"epochs": 0, "adapter": FULL, "methods": [{"use": "ssd", "rows": 6, "units": ["down_proj"], "alpha": 1.2}]},
    "iau": {"epochs": 0, "adapter": MERGE, "methods": [{"use": "iau", "rows": 6}]},
    "guard": {"epochs": 0, "adapter": MERGE, "methods": [{"use": "guard", "width": 8, "steps": 4}]},
    "sam around npo beside prompt_decouple": {
        "max_steps": 2,
        "adapter": MERGE,
        "decouple": "tiny/word-decouple",
        "methods": [{"use": "npo", "per_step": 4}, {"use": "sam"}, {"use": "prompt_decouple", "per_step": 4}],
    },
}


@contextlib.contextmanager
def moments(kill_at=None):
    """A list of the forward passes and edits of weights in this block; the process is gone before number `kill_at`."""
    seen = []

    def told(owner, name):
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def call(*args, **kwargs):
            seen.append(name)
            if len(seen) - 1 == kill_at:
                raise Killed
            return inner(*args, **kwargs)

        return mock.patch.object(owner, name, call)

    with told(PlainEngine, "forward"), told(LocalWeights, "edit"):
        yield seen


@pytest.mark.parametrize("kind", STAGES)
def test_a_killed_forget_stage_ends_in_the_same_bytes(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mcit.train.trials.Passed.of", lambda *given: None
    )  # each start tries packs: calls can be counted
    plan = plan_of(stages=[{**REQUEST, **STAGES[kind]}], checkpoint={"every": 1})
    with moments() as every:
        straight = tensors_of(run_plan(plan, tmp_path / "straight"))
    edits = [at for at, name in enumerate(every) if name == "edit"]
    assert len(every) > 3 and bool(edits) == (kind != "guard")
    kill_at = random.Random(kind).choice(edits[1:] or range(1, len(every)))
    with moments(kill_at) as seen:
        assert tensors_of(run_plan(plan, tmp_path / "killed")) == straight
    assert len(seen) > len(every), "the kill hit, and what it hit was done again"
