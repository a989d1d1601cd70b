from types import SimpleNamespace

import pytest
import torch

from mcit.core.interfaces import Silent
from mcit.core.types import Slices
from mcit.models.frozen import frozen_checksums
from mcit.plan.record import plan_json, resolved
from mcit.runs.run import open_run
from mcit.train.sequence import Session, due, inherited_state, run_sequence
from tests.fakes.bench import plan_of


def opened(plan, tmp_path):
    return open_run(
        plan,
        runs_dir=tmp_path,
        config_text="",
        resolved=resolved(plan.config),
        plan_json=plan_json(plan),
        environment={"versions": {}},
    )


@pytest.fixture
def done(tmp_path):
    plan = plan_of(
        defaults={"max_steps": 2, "methods": [{"name": "replay"}]},
        stages=[{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno", "methods": []}, {"recipe": "tiny/word"}],
    )
    run = opened(plan, tmp_path)
    with run.locked():
        run_sequence(plan, run, reporter=Silent())
    return plan, run


def test_all_stages_are_committed_and_a_second_call_does_nothing(done):
    plan, run = done
    assert run.committed() == [s.folder for s in plan.stages]
    before = {p: p.stat().st_mtime_ns for p in run.layout.root.rglob("*") if p.is_file()}
    with run.locked():
        run_sequence(plan, run, reporter=Silent())
    after = {p: p.stat().st_mtime_ns for p in run.layout.root.rglob("*") if p.is_file() and p.name != "lock"}
    assert all(before[p] == t for p, t in after.items())


def test_a_method_not_listed_keeps_its_state_for_its_return(done):
    plan, run = done
    found = inherited_state(plan, run, plan.stages[2])
    assert found["replay"] == run.layout.stage(plan.stages[0].folder) / "methods" / "replay"
    assert not (run.layout.stage(plan.stages[1].folder) / "methods" / "replay").exists()


def test_going_forward_in_memory_equals_loading_at_once(done):
    plan, run = done
    walking = Session(plan, run, Silent())
    for k in range(4):
        walking.model_after(k)
    direct = Session(plan, run, Silent())
    a, b = walking.model_after(3).state_dict(), direct.model_after(3).state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a)
    back = walking.model_after(1).state_dict()
    fresh = Session(plan, run, Silent()).model_after(1).state_dict()
    assert all(torch.equal(back[n], fresh[n]) for n in back)


def test_an_adapter_given_as_start_is_under_everything(done, tmp_path):
    plan, run = done
    adapter = run.layout.stage(plan.stages[0].folder) / "adapter"
    other = plan_of(
        name="more", base={"family": "tiny", "dtype": "fp32", "adapter": str(adapter)}, defaults={"max_steps": 1}
    )
    again = opened(other, tmp_path / "more")
    start = Session(other, again, Silent()).model_after(0).state_dict()
    after = Session(plan, run, Silent()).model_after(1).state_dict()
    assert all(torch.equal(start[n], after[n]) for n in after)
    plain = plan_of(name="more", defaults={"max_steps": 1})
    assert plan_json(other)["base_sha256"] != plan_json(plain)["base_sha256"]


def test_frozen_weights_and_buffers_after_a_stage(done):
    plan, run = done
    base = frozen_checksums(Session(plan, run, Silent()).model_after(0))
    after = frozen_checksums(Session(plan, run, Silent()).model_after(1))
    changed = {n for n in base if base[n] != after[n]}
    allowed = ("multi_modal_projector", "self_attn", "mlp")
    assert changed and all("vision_tower" not in n and any(part in n for part in allowed) for n in changed)


def test_tasks_due():
    tasks = [SimpleNamespace(name=n) for n in "abc"]
    stages = [SimpleNamespace(index=i, tasks=(t,), forget=(), slices=Slices()) for i, t in enumerate(tasks, start=1)]

    def names(setting, after):
        plan = SimpleNamespace(
            config=SimpleNamespace(eval=SimpleNamespace(tasks=setting)),
            tasks=tuple(tasks),
            stages=stages,
            up_to=lambda index: [stage for stage in stages if stage.index <= index],
            below=lambda index: index - 1,
            forget_tasks=(),
        )
        return [t.name for t in due(plan, after)]

    assert names("seen", 2) == ["a", "b"] and names("seen", 0) == ["a", "b", "c"]
    assert names("all", 1) == ["a", "b", "c"] and names("none", 3) == [] and names(["c"], 1) == ["c"]
