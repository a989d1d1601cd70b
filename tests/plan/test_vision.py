"""What a plan says of the vision cache: what it holds and saves, and what it is refused for."""

import shutil
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mcit.cli.main import main
from mcit.core.errors import Problem
from mcit.core.paths import cache_dir
from mcit.plan import preflight, resources
from mcit.plan.vision import disk_problems, room_beside, vision_facts, vision_line, vision_problems
from tests.fakes.bench import plan_of


def planned(size="1G", **changes):
    """A plan that was checked without the cache, with the cache on."""
    plan = plan_of(**changes)
    engine = plan.config.engine.model_copy(update={"vision_cache": size})
    return replace(plan, config=plan.config.model_copy(update={"engine": engine}))


def test_pictures_and_bytes_of_a_plan():
    """The tiny tower hands on 16 patches of 32 numbers; every row of a task has a picture of its own, or shares one."""
    plan = planned()
    assert vision_problems(plan) == [] and disk_problems(plan) == []
    facts = vision_facts(plan)
    assert facts["bytes"] == facts["pictures"] * 17 * 32 * 4, "with the class token, which the projector is not given"
    assert 0 < facts["pictures"] <= sum(sum(task.rows.values()) for task in plan.tasks)
    assert 1 < facts["step"] < facts["prompt"]
    line = vision_line(facts)
    assert "of 1.0 GiB" in line and f"{facts['prompt']:.2f} times less arithmetic" in line and "not all" not in line
    assert "not all are kept" in vision_line({**facts, "limit": facts["bytes"] - 1})


def test_full_training_makes_the_tower_a_smaller_share():
    lora, full = (
        vision_facts(planned(defaults={"adapter": adapter}))
        for adapter in ({"rank": 4, "alpha": 8}, {"kind": "none", "carry": "none", "also_train": []})
    )
    assert full["step"] < lora["step"] and full["prompt"] == lora["prompt"]


def test_nothing_is_said_where_it_is_off():
    plan = planned("off")
    assert vision_problems(plan) == [] and disk_problems(plan) == [] and vision_facts(plan) is None


@pytest.mark.parametrize(
    "adapter",
    [
        {"rank": 4, "alpha": 8, "also_train": ["tower"]},
        {"rank": 4, "alpha": 8, "targets": ["vision_tower.encoder.layers.0.self_attn.q_proj", "up_proj"]},
    ],
    ids=["whole", "adapter"],
)
def test_a_tower_that_trains_is_named_with_its_stage(adapter):
    stages = [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno", "adapter": adapter}]
    (problem,) = vision_problems(planned(stages=stages))
    assert problem.where == "engine.vision_cache" and "stage 02-yesno trains the vision tower" in problem.what


def test_a_processor_that_is_not_deterministic_is_named(monkeypatch):
    plan = planned()
    processor = preflight.make_encoder(plan).processor
    own = type(processor.image_processor)

    class Draws(own):
        def __call__(self, *args, **kwargs):
            out = super().__call__(*args, **kwargs)
            out["pixel_values"] = [torch.as_tensor(value) + torch.rand(1) for value in out["pixel_values"]]
            return out

    monkeypatch.setattr(processor.image_processor, "__class__", Draws)
    (problem,) = vision_problems(plan)
    assert "LlavaProcessor gives other values for the same picture each time" in problem.what
    assert "engine.vision_cache: off" in problem.fix


def test_a_tower_that_takes_more_than_pictures_is_named(monkeypatch):
    plan = planned()
    owner = type(preflight.shared_skeleton(plan).model)
    own = owner.get_image_features
    monkeypatch.setattr(
        owner, "get_image_features", lambda self, **given: own(self, image_sizes=torch.ones(1, 2), **given)
    )
    (problem,) = vision_problems(plan)
    assert "more than pictures (image_sizes)" in problem.what


def test_rows_without_pictures_are_noted(monkeypatch):
    monkeypatch.setattr("mcit.plan.vision._shown", lambda plan: None)
    (note,) = vision_problems(planned())
    assert note.level == "note" and "no row of this run shows a picture" in note.what


def test_a_bound_above_the_disk_is_refused(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(9 << 30, 0, 3 << 29))
    assert disk_problems(planned("1.4G")) == []
    (cache_dir() / "vision").mkdir(exist_ok=True)
    (problem,) = disk_problems(planned("2G"))
    assert isinstance(problem, Problem) and "is 2.0 GiB" in problem.what and "has 1.5 GiB for it" in problem.what
    monkeypatch.setattr("mcit.plan.vision.held_bytes", lambda: 1 << 29)
    assert disk_problems(planned("2G")) == [], "what is kept already counts"


def test_a_run_and_its_cache_on_one_disk_need_room_for_both(monkeypatch, tmp_path):
    """Each alone fits; what the cache holds needs no room any more."""
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path / "cache"))
    plan = planned("1G")
    assert room_beside(plan, tmp_path / "runs") == 1 << 30 and room_beside(planned("off"), tmp_path) == 0
    monkeypatch.setattr("mcit.plan.vision.held_bytes", lambda: 1 << 29)
    assert room_beside(plan, tmp_path / "runs") == 1 << 29
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(9 << 30, 0, (1 << 30) + 1000))
    found = SimpleNamespace(disk=(1 << 29) + 1001, stages=[])
    monkeypatch.setattr(resources, "memory_problems", lambda *given: [])
    (problem,) = resources.resource_problems(plan, found, tmp_path / "runs")
    assert "and 0.5 GiB for engine.vision_cache" in problem.what
    found.disk -= 1
    assert resources.resource_problems(plan, found, tmp_path / "runs") == []


def test_the_plan_says_it(capsys):
    assert main(["plan", "tiny", "--set", "engine.vision_cache=1G"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "vision cache: " in out and "of 1.0 GiB; a picture that comes again saves" in out
