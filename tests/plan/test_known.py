"""What is kept about a stage's skeleton: read where everything is equal, made anew where anything differs or is damaged."""

import json
from dataclasses import replace

import pytest

from mcit.engine.estimate.activations import Activations, MicroBatch
from mcit.engine.estimate.weights import Weight
from mcit.plan import known
from mcit.plan.plan import make_plan, read_config

BATCH = MicroBatch(4, 20, 8)
FOUND = ({"w": Weight((3, 4), "fp32", True, "layers.0", False)}, Activations(100, 200))


@pytest.fixture
def made(tmp_path, monkeypatch):
    plan = make_plan(read_config("tiny")[0])
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path))
    calls = []

    def kept(batch=BATCH, stage=plan.stages[0], found=FOUND):
        return known.kept(plan, stage, batch, cuda=False, make=lambda: calls.append(1) or found)

    return kept, calls, plan, tmp_path / "estimates"


def test_the_second_plan_reads_what_the_first_traced(made):
    kept, calls, plan, _ = made
    assert kept() == kept() == FOUND and len(calls) == 1
    kept(replace(BATCH, positions=21))
    stage = plan.stages[0]
    kept(stage=replace(stage, adapter=stage.adapter.model_copy(update={"rank": 3})))
    assert len(calls) == 3


def test_a_damaged_entry_is_made_again(made):
    kept, calls, _, folder = made
    kept()
    (file,) = folder.iterdir()
    content = json.loads(file.read_text())
    content["found"]["activations"]["peak"] = 1
    for text in (json.dumps(content), "{", "[]"):
        file.write_text(text)
        assert kept() == FOUND
    assert len(calls) == 4


def test_a_rough_count_is_not_kept(made):
    kept, calls, *_ = made
    rough = FOUND[0], Activations(1, 2, traced=False, why="values were asked for")
    assert kept(found=rough) == rough and kept(found=rough) == rough and len(calls) == 2
