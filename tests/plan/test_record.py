from mcit.plan.record import plan_json
from tests.fakes.bench import plan_of


def test_plan_json_names_everything_a_run_depends_on():
    content = plan_json(plan_of(defaults={"methods": [{"name": "replay"}]}))
    assert set(content["recipes"]) == {"tiny/letter", "tiny/yesno"} and len(content["base_sha256"]) == 64
    hooks = ("check", "streams", "loss_term", "on_stage_end")
    assert content["stages"][0]["hooks"] == {hook: ["replay"] for hook in hooks}
    assert content["stages"][0]["method_state"] == {"replay": 1}


def test_the_plan_holds_digests_of_method_sources():
    from mcit.core.lookup import source_digest
    from mcit.methods import l2

    plan = plan_of(stages=[{"recipe": "tiny/letter", "methods": [{"name": "l2"}]}])
    found = plan_json(plan)["sources"]
    assert found["method l2"] == source_digest(l2) and len(found["method l2"]) == 64
    assert sorted(found) == ["method l2", *(f"scorer {name}" for name in sorted({t.scorer for t in plan.tasks}))]
