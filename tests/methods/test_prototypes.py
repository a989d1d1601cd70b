"""Prototypes: means, bounds and distances by hand."""

import dataclasses
from types import SimpleNamespace

import pytest

from mcit.core.errors import DataError, PlanError, TrainingError
from mcit.methods.prototypes import Prototypes
from tests.fakes import steps
from tests.fakes.bench import plan_of, tensors_of
from tests.fakes.forgetting import STAGES, seen, started, step_context, trained
from tests.fakes.settings import refused, shipped_config
from tests.fakes.sharded import ShardedEngine

FORGET = {"name": "bounded_forget", "per_step": 4}


def method(**settings):
    return Prototypes(Prototypes.Config(**settings))


def test_a_missing_meta_key_names_its_row():
    ctx = SimpleNamespace(forget_rows=lambda: steps.rows("t", 1), seed=5)
    with pytest.raises(DataError, match="no meta 'kind'"):
        method(by="meta.kind").streams(ctx)


def test_prototypes_are_means_by_target_and_the_bound_is_their_median_distance():
    """dog (0, 2) and (2, 2), cat (4, 0): means (1, 2) and (4, 0); l2 (9 + 4) / 2 = 6.5."""
    p = {"forget": 1, "retain": 2, "distance": "l2"}
    forget = seen("forget", [0.0, 2], [2.0, 2], answers=["dog", "dog"])
    task = seen("task", [4.0, 0], answers=["cat"])
    given = started(method(**p), forget, task)
    assert given._targets == ["dog", "cat"] and given._push == 6.5
    assert given.tensors.get("prototype", "all").tolist() == [[1, 2], [4, 0]]
    moved = seen("forget", [1.0, 4], [9.0, 2], answers=["dog", "dog"])  # distances 2 and 32
    assert given.loss_term(moved[1], moved[0], step_context()).sum.item() == 4.5
    kept = seen("task", [4.0, 2], [5.0, 5], answers=["cat", "bird"])  # distance 2; no prototype of birds
    found = given.loss_term(kept[1], kept[0], step_context())
    assert (found.sum.item(), found.per) == (4.0, "rows")


def test_authors_push_bounds_the_batch_mean():
    """Distances 2 and 32 under bound 20: mean 17, so 3; per row (18 + 0) / 2 = 9. A part of the step is refused."""
    forget, task = seen("forget", [1.0, 2], answers=["dog"]), seen("task", [4.0, 0], answers=["cat"])
    moved = seen("forget", [1.0, 4], [9.0, 2], answers=["dog", "dog"])
    for reduction, value in (("authors", 3), ("rows", 9)):
        given = started(method(distance="l2", bound=20, reduction=reduction), forget, task)
        assert given.loss_term(moved[1], moved[0], step_context(tokens=2)).sum.item() / 2 == value
    with pytest.raises(TrainingError, match="holds 2 of 3 rows"):
        started(method(bound=20, reduction="authors"), forget, task).loss_term(moved[1], moved[0], step_context(rows=3))


def test_a_median_needs_another_target():
    with pytest.raises(DataError, match="also forgotten"):
        both = [seen(s, [1.0, 2], answers=["dog"]) for s in ("forget", "task")]
        started(method(), *both)


def test_a_target_is_an_answer_a_task_or_a_value_of_meta():
    """Of one row with answer a, task t and kind 3: the name of its prototype."""
    forget, task = seen("forget", [1.0, 2], answers=["a"]), seen("task", [4.0, 0], answers=["b"])
    rows = tuple(dataclasses.replace(r, meta={"kind": 3}) for r in forget[0].rows)
    forget = (dataclasses.replace(forget[0], rows=rows), forget[1])
    elsewhere = tuple(dataclasses.replace(r, task="u", meta={"kind": 4}) for r in task[0].rows)
    task = (dataclasses.replace(task[0], rows=elsewhere), task[1])
    for by, names in (("answer", ["a", "b"]), ("task", ["t", "u"]), ("meta.kind", ["3", "4"])):
        assert started(method(by=by), forget, task)._targets == names


def test_retained_rows_alone_may_have_prototypes():
    """forget 0, retain 0.5: cat stays at (4, 0), from which (4, 2) is 4 / 2 = 2 away in l2; half of that."""
    p = {"forget": 0, "retain": 0.5, "distance": "l2"}
    forget, task = seen("forget", [1.0, 2], answers=["dog"]), seen("task", [4.0, 0], answers=["cat"])
    given = started(method(**p), forget, task)
    kept = seen("task", [4.0, 2], answers=["cat"])
    assert given.loss_term(kept[1], kept[0], step_context()).sum.item() == 1.0


def test_what_is_retained_too_has_the_prototype_of_the_forgotten_rows():
    """dog at (1, 2) among the rows to forget, at (5, 6) among the retained: one prototype, and a bound as given."""
    both = seen("forget", [1.0, 2], answers=["dog"]), seen("task", [5.0, 6], answers=["dog"])
    given = started(method(bound=3), *both)
    assert given._targets == ["dog"] and given._push == 3.0
    assert given.tensors.get("prototype", "all").tolist() == [[1, 2]]


def test_rows_without_a_prototype_or_an_answer_are_not_moved():
    """dog at (1, 2), bound 20: of two dogs at (1, 4) the one that only keeps ranks in step, nothing supervised, adds nothing:
    20 - 2. A bird has no prototype: 0, and hidden states get no gradient."""
    p = {"forget": 1, "retain": 1, "distance": "l2", "bound": 20}
    forget, task = seen("forget", [1.0, 2], answers=["dog"]), seen("task", [4.0, 0], answers=["cat"])
    given = started(method(**p), forget, task)
    batch, out = seen("forget", [1.0, 4], [1.0, 4], answers=["dog", "dog"])
    labels = batch.labels_BT.clone()
    labels[1] = -100
    found = given.loss_term(out, dataclasses.replace(batch, labels_BT=labels), step_context())
    assert found.sum.item() == 18.0
    for stream in ("forget", "task"):
        batch, out = seen(stream, [1.0, 4], answers=["bird"])
        out = dataclasses.replace(out, hidden={"last": out.hidden_BTD.requires_grad_()})
        found = given.loss_term(out, batch, step_context())
        assert found.sum.item() == 0.0 and not found.sum.requires_grad


@pytest.mark.parametrize(("settings", "count"), [({}, 256), ({"retain": 1}, 300)])
def test_so_many_retained_rows_are_looked_at(settings, count):
    """Drawn by seed, so that files sorted by class do not show one class; held rows all count."""
    rows = steps.rows("t", 300)

    def looked_at(seed):
        asked, ctx = [], step_context()
        ctx.seed, ctx.data.stage_rows = seed, lambda: rows
        both = {"forget": seen("forget", [1.0, 2], answers=["dog"]), "task": seen("task", [4.0, 0], answers=["cat"])}

        def forward_pass(source, **kw):
            asked.append(source)
            return iter([both["forget" if source == "forget" else "task"]])

        ctx.forward_pass = forward_pass
        method(**settings).on_stage_start(ctx)
        return [row.id for row in asked[1]]

    assert len(looked_at(1)) == count
    assert looked_at(1) == looked_at(1) and (looked_at(1) != looked_at(2)) == (count == 256)
    assert (looked_at(1) == [row.id for row in rows[:count]]) == (count == 300)


def test_factors_of_zero_are_off():
    ctx = step_context()
    ctx.forward_pass = None
    given = method(forget=0, retain=0)
    given.on_stage_start(ctx)
    assert given.state_dict() == {"targets": [], "push": 0.0}
    assert given.loss_term(*seen("forget", [1.0, 2], answers=["dog"])[::-1], ctx) is None


def test_state_goes_to_disk_and_back():
    given = method()
    given.load_state_dict({"targets": ["dog"], "push": 0.5})
    assert given.state_dict() == {"targets": ["dog"], "push": 0.5}


def test_rows_to_forget_must_come_from_another_method():
    with pytest.raises(PlanError, match="needs stream:forget, but nothing in this stage provides it"):
        plan_of(stages=STAGES, defaults={"methods": [{"name": "prototypes"}]})


def test_naming_it_alone_is_using_the_shipped_settings():
    assert Prototypes.Config() == shipped_config(Prototypes)
    for key in ("forget", "retain"):
        assert refused(Prototypes, **{key: 0.5}) == [] and refused(Prototypes, **{key: -0.5}) == [key]


@pytest.mark.slow
def test_a_bound_by_number_resumes_and_shards_bitwise(tmp_path):
    entries = [FORGET, {"name": "prototypes", "retain": 0.5, "bound": 0.5, "by": "task"}]
    _, straight = trained(tmp_path / "a", *entries)
    _, resumed = trained(tmp_path / "b", *entries, stop_at=(2, 2))
    _, sharded = trained(tmp_path / "c", *entries, engine=ShardedEngine)
    assert tensors_of(straight) == tensors_of(resumed) == tensors_of(sharded)
