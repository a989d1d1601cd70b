from mcit.report.differences import Difference, run_differences
from tests.fakes.run_dir import environment, plan_record

TWO = [["a"], ["b"]]


def stage(recipe, *methods, lr=1e-3):
    return {"recipe": recipe, "optim": {"lr": lr}, "methods": list(methods)}


def test_two_runs_alike_differ_in_nothing(fake_run):
    assert run_differences(fake_run(TWO, "x").root, fake_run(TWO, "y").root) == []


def test_every_kind_is_told_and_what_is_alike_in_all_stages_once(fake_run):
    replay, l2 = {"name": "replay", "keep": 200}, {"name": "l2", "weight": 1.0}
    a = fake_run(
        TWO,
        "x",
        config={"stages": [stage("r1", l2), stage("r2", l2)], "engine": {"micro_batch": 4}},
        plan={"sources": {"method l2": "d" * 64}},
    )
    b = fake_run(
        TWO,
        "y",
        config={
            "name": "other",
            "seed": 2,
            "stages": [stage("r1", replay, l2, lr=2e-3), stage("r2", replay, {"name": "l2", "weight": 5.0}, lr=2e-3)],
            "engine": {"micro_batch": 8},
        },
        env={**environment(torch="2.14.0"), "threads": 8},
        plan={
            "recipes": {"a": "f" * 64, "b": "digest-b"},
            "code": "0.2.0",
            "sources": {"method l2": "e" * 64, "method replay": "f" * 64},
        },
    )
    found = run_differences(a.root, b.root)
    assert found == [
        Difference("settings", "optim.lr (every stage)", "0.001", "0.002"),
        Difference("settings", "method replay (every stage)", "off", "on"),
        Difference("settings", "l2.weight (s2)", "1.0", "5.0"),
        Difference("data", "recipe a", "digest-a", "ffffffffffff…"),
        Difference("code", "mcit", "0.1.0", "0.2.0"),
        Difference("code", "method l2", "dddddddddddd…", "eeeeeeeeeeee…"),
        Difference("versions", "torch", "2.13.0", "2.14.0"),
        Difference("hardware", "threads", "2", "8"),
        Difference("seeds", "seed", "1", "2"),
        Difference("layout", "engine.micro_batch", "4", "8"),
    ]


def test_another_sequence_compares_the_stages_that_both_have(fake_run):
    a = fake_run(TWO, "x", config={"stages": [stage("r1"), stage("r2")]})
    b = fake_run([["a"], ["b"], ["c"]], "y", config={"stages": [stage("r1"), stage("r2", lr=1.0), stage("r3")]})
    kinds = [(item.kind, item.what) for item in run_differences(a.root, b.root)]
    assert kinds == [("sequence", "stages"), ("settings", "optim.lr (s2)"), ("data", "recipe c")]


def test_every_visit_of_a_stage_that_comes_back_is_compared(fake_run):
    three = [["a"], ["b"], ["a"]]

    def run(name, first, last):
        stages = [stage("a", lr=first), stage("b"), stage("a", lr=last)]
        return fake_run(three, name, plan=plan_record(three, names=["a", "b", "a"]), config={"stages": stages}).root

    plain = run("x", 1e-3, 1e-3)
    for other, where in ((run("y", 2e-3, 1e-3), "a"), (run("z", 1e-3, 2e-3), "a (2)")):
        assert run_differences(plain, other) == [Difference("settings", f"optim.lr ({where})", "0.001", "0.002")]
