"""What a plan says of GeRe: pool, settings over stages, reduction; and what a run keeps."""

from types import SimpleNamespace

import pytest

from mcit.core.errors import PlanError
from mcit.core.types import PoolSize
from mcit.methods.check import check_stage
from mcit.methods.gere import GeRe
from tests.fakes.bench import plan_of
from tests.fakes.rows import row

POOL = "general/tiny"


def plan(**settings):
    return plan_of(defaults={"methods": [{"name": "gere", "recipe": POOL, "per_step": 2, **settings}]})


def problems(made):
    return [str(p) for stage in made.stages for p in check_stage(stage, made, where=f"stages[{stage.index - 1}]")]


def test_a_pool_that_is_a_task_is_refused():
    with pytest.raises(PlanError, match="the pool tiny/yesno is also task 'yesno'"):
        plan(recipe="tiny/yesno")


def test_settings_of_the_states_are_those_of_the_first_stage():
    method = {"name": "gere", "recipe": POOL, "per_step": 2}
    stages = [
        {"recipe": "tiny/letter", "methods": [method]},
        {"recipe": "tiny/yesno", "methods": [{**method, "multiplier": 2.0}]},
    ]
    with pytest.raises(PlanError, match="multiplier is 2.0, in stage letter it is 1.0"):
        plan_of(stages=stages)
    stages[1]["methods"] = [{**method, "weight": 1.0, "per_step": 3}]
    assert problems(plan_of(stages=stages)) == []


def test_authors_reduction_needs_the_rows_in_one_micro_batch():
    with pytest.raises(PlanError, match="all 6 general rows of a step in one micro-batch"):
        plan(reduction="authors", per_step=6)
    assert problems(plan(reduction="authors", per_step=4)) == []
    with pytest.raises(PlanError, match="all 8 general rows"):
        plan(reduction="authors", mix="natural")


def test_a_replaced_task_loss_is_not_shared(tmp_path, monkeypatch):
    (tmp_path / "own_loss.py").write_text(
        "from mcit.core.types import Claims\nfrom mcit.methods.base import Method\n"
        "class Own(Method):\n    name = 'own'\n    claims = Claims(slots=frozenset({'objective:task'}))\n"
        "    def loss_term(self, out, batch, ctx):\n        return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    methods = [{"name": "gere", "recipe": POOL}, {"name": "own_loss:Own"}]
    with pytest.raises(PlanError, match="which another method replaces"):
        plan_of(defaults={"methods": methods})
    assert problems(plan_of(defaults={"methods": [{**methods[0], "combine": "sum"}, methods[1]]})) == []


def claimed(*, stages=(), pools=(), tasks=(), forget=(), index=2, **settings):
    """What `check` says of a stage with these pools, in a plan of these stages and tasks."""
    stage = SimpleNamespace(index=index, name="s", pools=pools, methods=(), optim=SimpleNamespace(batch=4))
    config = SimpleNamespace(engine=SimpleNamespace(micro_batch=8))
    made = SimpleNamespace(stages=stages, tasks=tasks, forget_tasks=forget, config=config)
    return GeRe(GeRe.Config(recipe="g", **settings)).check(stage, made)


def test_a_pool_must_have_rows_of_its_own():
    """Tasks and rows to forget count alike; what another recipe's pool holds does not matter."""

    def data(digest, rows=None, *, recipe="g"):
        return SimpleNamespace(recipe=recipe, name="t", digest=digest, rows={"train": 1} if rows is None else rows)

    assert claimed(pools=[data("d")], tasks=[data("e")], forget=[data("f")]) == []
    assert claimed(pools=[data("d", {}, recipe="other")], tasks=[data("d")]) == []
    for used in ({"tasks": [data("e"), data("d")]}, {"forget": [data("d")]}):
        (one,) = claimed(pools=[data("d")], **used)
        assert one.where == "stages[1].methods (gere)" and "the pool g is also task 't'" in one.what
    for rows in ({}, {"train": 0}, {"test": 3}):
        (one,) = claimed(pools=[data("d", rows)])
        assert one.where == "stages[1].methods (gere)" and "no training rows" in one.what
    assert claimed(pools=[data("d", {})], tasks=[data("d")], weight=0.0) == []


def test_only_earlier_stages_with_states_bind_the_settings():
    """Of stages 1 to 3 the second is checked: stage 3 is not earlier, a method that is off or another has no states."""

    def stage(name, method="gere", **settings):
        spec = SimpleNamespace(name=method, config=GeRe.Config(**{"recipe": "g", **settings}))
        return SimpleNamespace(name=name, methods=(spec,))

    mine, later = stage("mine"), stage("later", multiplier=3.0)
    assert claimed(stages=[stage("off", multiplier=2.0, weight=0.0), mine, later]) == []
    assert claimed(stages=[stage("other", "replay", multiplier=2.0), mine, later]) == []
    for setting, other in (("multiplier", 2.0), ("max_length", 9), ("recipe", "h"), ("bos", True), ("variant", "l1")):
        (one,) = claimed(stages=[stage("early", **{setting: other}), mine, later])
        assert f"{setting} is " in one.what and f"in stage early it is {other}" in one.what


def test_rows_of_a_step_by_mixing():
    """A step of 4 task rows, micro-batches of 8, 24 rows in the pool. Inserted rows come on top, and up to 8 of them fit the
    authors' reduction; mixed ones are counted by the plan, and no step has more of them than rows: 4."""
    fits = {"combine": "sum", "reduction": "authors"}
    assert claimed(per_step=8, **fits) == claimed(per_step=9, mix="natural", **fits) == claimed(per_step=9) == []
    (one,) = claimed(per_step=9, **fits)
    assert one.where == "stages[1].methods (gere)" and "needs all 9 general rows" in one.what
    ctx = SimpleNamespace(pool=lambda recipe: [row("q", "a")])
    for mix, rows, per_step, mixed in (("natural", 24, 0, True), ("insert", 0, 6, False)):
        method = GeRe(GeRe.Config(recipe="g", mix=mix))
        spec = method.streams(ctx)["gere"]
        assert (method.mixed_rows({"g": 24, "h": 3}), spec.per_step, spec.mixed) == (rows, per_step, mixed)
    assert GeRe(GeRe.Config(recipe="g", mix="natural", weight=0.0)).mixed_rows({"g": 24}) == 0


def test_estimate_of_what_a_run_keeps_by_hand():
    """10 rows of which two of 700 and 20 positions, 3 and 5 of them supervised, were looked at; 18 features.

    Texts are cut at 563: (563 + 20) / 2 * 10 = 2,915 positions of 2 * 3 bytes (``tm``) or 18 features of 2 bytes; 40
    supervised tokens of 64 kept tokens, each 4 + 4 bytes; labels are not kept.
    """
    pools = {"general/default": PoolSize(10, ((700, 3), (20, 5)))}
    expected = {"tm": 2915 * 6, "l1": 2915 * 36, "l2": 2915 * 36, "kl": 40 * 64 * 8, "label": 0}
    for variant, size in expected.items():
        assert GeRe(GeRe.Config(variant=variant)).run_bytes(pools, hidden=18) == size, variant
    assert GeRe(GeRe.Config(weight=0.0)).run_bytes(pools, hidden=18) == 0
    assert (
        GeRe(GeRe.Config(mix="natural")).mixed_rows({}) == 0
    )  # a plan whose pool could not be built is told so elsewhere
