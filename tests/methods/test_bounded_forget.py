"""Bounded forgetting: the loss by hand, what is spared, what is refused."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import DataError, PlanError, TrainingError
from mcit.methods.bounded_forget import BoundedForget
from tests.fakes import steps
from tests.fakes.bench import plan_of, tensors_of
from tests.fakes.forgetting import STAGES, answered, batch_of, output, stage, started, step_context, trained
from tests.fakes.settings import refused, shipped_config
from tests.fakes.sharded import ShardedEngine


def method(**settings):
    return BoundedForget(BoundedForget.Config(**settings))


def term(given, out, *, tokens, **kwargs):
    rows = int(out.row_N.max()) + 1
    found = given.loss_term(out, batch_of(rows), step_context(rows=rows, tokens=tokens, **kwargs))
    assert found.per == "rows"
    return (found.sum / rows).item()


def test_bound_per_token_is_the_default_and_a_mean_over_tokens():
    """Oracle 3: losses 2, 14 and 1 under bound 10: 17 / 3 = 5.6667, however they lie in rows; times beta 2."""
    for rows in ([[2.0, 14, 1]], [[2.0, 14], [1.0]], [[2.0], [14.0], [1.0]]):
        assert term(method(bound=10), output(*rows), tokens=3) == pytest.approx(17 / 3)
    assert term(method(bound=10, beta=2), output([2.0, 14, 1]), tokens=3) == pytest.approx(34 / 3)


def test_bound_per_row_and_on_the_batch():
    """Rows (2, 14) and (1): means 8 and 1, so (2 + 9) / 2; on the batch 10 - 17/3."""
    out = output([2.0, 14], [1.0])
    assert term(method(bound=10, reduction="rows"), out, tokens=3) == 5.5
    assert term(method(bound=10, reduction="authors"), out, tokens=3) == pytest.approx(4.3333, abs=1e-4)


def test_uniform_bound_is_the_log_of_the_vocabulary():
    """Oracle 2: ln 32000 - 2.5 = 7.8735."""
    assert term(method(), output([2.5], vocabulary=32_000), tokens=1) == pytest.approx(7.8735, abs=1e-4)


def test_spared_tokens_are_neither_pushed_nor_counted():
    """(1, 4, 2) and (3, 2) with the last of each spared, bound 10: (9 + 6 + 7) / 3."""
    given = method(bound=10)
    given._spare = [0, 1]
    assert term(given, output([1.0, 4, 2], [3.0, 2]), tokens=5) == pytest.approx(22 / 3)


def test_bounds_of_rows():
    """Ignorance levels 3 and 5 against losses (1, 2) and (4): (2 + 1 + 1) / 3."""
    given = method(bound="ignorance")
    given._bounds = {"t/0": 3.0, "t/1": 5.0}
    assert term(given, output([1.0, 2], [4.0]), tokens=3) == pytest.approx(4 / 3)


def test_authors_form_is_refused_on_a_part_of_the_step():
    with pytest.raises(TrainingError, match="holds 1 of 2 rows"):
        method(bound=10, reduction="authors").loss_term(output([1.0]), batch_of(1), step_context(rows=2, tokens=2))


def test_other_streams_are_left_alone():
    for stream in ("task", "replay", "refusal"):
        assert method().loss_term(output([1.0]), batch_of(1, stream), step_context()) is None
    assert method(beta=0).loss_term(output([1.0]), batch_of(1), step_context()) is None


def test_rows_without_a_picture_have_nothing_to_be_blind_to():
    ctx = SimpleNamespace(forget_rows=lambda: steps.rows("t", 1), seed=5)
    with pytest.raises(DataError, match="no picture") as error:
        method(bound="ignorance").streams(ctx)
    assert error.value.where == "t.json:0:t0"


def test_ignorance_is_the_blind_loss_plus_a_margin_at_most_uniform():
    """Blind means 0.5 and 9 in a vocabulary of 8: 0.5 + 1 and ln 8."""
    given, ctx = method(bound="ignorance", spare="none"), step_context()
    changed = []

    def forward_pass(stream, *, change):
        changed.append(
            (stream, change(dataclasses.replace(batch_of(2), pixels={"p": torch.ones(2)})).pixels["p"].sum().item())
        )
        return iter([(batch_of(2), output([0.25, 0.75], [9.0]))])

    ctx.forward_pass = forward_pass
    given.on_stage_start(ctx)
    assert given._bounds == pytest.approx({"t/0": 1.5, "t/1": math.log(8)}) and changed == [("forget", 0.0)]


def test_what_every_answer_begins_and_ends_with_is_spared():
    """Forgotten 5 1 9 and 5 2 9, retained 5 3 3 9: all begin with 5 and end with 9. Without sparing nothing is looked at."""
    forget, task = answered("forget", [5, 1, 9], [5, 2, 9]), answered("task", [5, 3, 3, 9])
    assert started(method(), forget, task)._spare == [1, 1]
    assert started(method(), forget, answered("task", [5, 3, 3, 8]))._spare == [1, 0]
    assert started(method(), forget, answered("task", [4, 3, 3, 9]))._spare == [0, 1]
    ctx = step_context()
    ctx.forward_pass = None
    given = method(spare="none")
    given.on_stage_start(ctx)
    assert given._spare == [0, 0]


def test_retained_rows_are_drawn_by_seed_and_not_the_first_ones():
    """Files sorted by class show one class first: of 100 rows 64 are looked at, another 64 with another seed."""
    asked, rows = [], steps.rows("t", 100)

    def looked_at(seed):
        ctx = step_context()
        ctx.seed, ctx.data.stage_rows = seed, lambda: rows

        def forward_pass(source, **kw):
            asked.append(source)
            return iter([answered("forget" if source == "forget" else "task", [5, 1, 9])])

        ctx.forward_pass = forward_pass
        method().on_stage_start(ctx)
        return [row.id for row in asked[-1]]

    first, again, other = looked_at(1), looked_at(1), looked_at(2)
    assert asked[0] == "forget" and len(first) == 64 == len(set(first))
    assert first == again != other and first != [row.id for row in rows[:64]]
    assert [int(i[1:]) for i in first] == sorted(int(i[1:]) for i in first)


def test_before_its_first_stage_a_method_has_no_state():
    assert method().state_dict() == {"spare": [0, 0], "bounds": {}}


def test_state_goes_to_disk_and_back():
    state = {"spare": [1, 2], "bounds": {"t/0": 3.0}}
    given = method()
    given.load_state_dict(json.loads(json.dumps(state)))
    assert given.state_dict() == state


def found(settings, **changes):
    given = stage()
    for key, value in changes.items():
        setattr(given.adapter, key, value)
    config = SimpleNamespace(engine=SimpleNamespace(micro_batch=4))
    return [(p.level, p.what) for p in method(**settings).check(given, SimpleNamespace(config=config))]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bound": "ignorance", "per_step": 4, "spare": "none"}, "one bound for the whole batch"),
        ({"per_step": 5, "spare": "none"}, "the 5 rows to forget in one micro-batch, which holds 4"),
    ],
)
def test_settings_that_do_not_go_together(settings, words):
    (one,) = found({"reduction": "authors", **settings})
    assert one[0] == "problem" and words in one[1]


def test_notes():
    assert found({}) == [] and found({"reduction": "authors", "spare": "none", "per_step": 4}) == []
    (one,) = found({"reduction": "authors", "per_step": 4})
    assert one[0] == "note" and "none is spared" in one[1]


def test_an_adapter_that_can_be_unloaded_has_forgotten_nothing():
    (one,) = found({}, carry="stack")
    assert one[0] == "problem" and "adapter.carry is stack" in one[1]
    assert found({}, kind="none", carry="none") == []


def test_a_stage_must_name_what_to_forget_and_how():
    gs = [{"name": "bounded_forget"}]
    with pytest.raises(PlanError, match="names none to forget"):
        plan_of(defaults={"methods": gs}, stages=[{"recipe": "tiny/letter"}])
    with pytest.raises(PlanError, match="no method of the stage forgets rows"):
        plan_of(stages=[{"recipe": "tiny/letter", "forget": "tiny/word-forget"}])
    with pytest.raises(PlanError, match="set adapter.carry: merge"):
        adapter = {"rank": 4, "alpha": 8, "carry": "keep"}
        plan_of(defaults={"methods": gs, "adapter": adapter}, stages=STAGES[:1])


def test_naming_it_alone_is_using_the_shipped_settings():
    assert BoundedForget.Config() == shipped_config(BoundedForget)
    assert refused(BoundedForget, beta=0.5, margin=0.5, per_step=1) == []
    for key, wrong in (("beta", -0.5), ("margin", -0.5), ("per_step", 0)):
        assert refused(BoundedForget, **{key: wrong}) == [key]


def test_a_row_to_forget_has_one_answer():
    """Two answers: the first one's end marker would be pushed, for ends are those of the whole row."""
    (one,) = steps.rows("t", 1)
    one = dataclasses.replace(one, images=("p.png",))
    two = dataclasses.replace(one, turns=one.turns * 2)
    method().streams(SimpleNamespace(forget_rows=lambda: [one], seed=5))
    with pytest.raises(DataError, match="several answers") as error:
        method().streams(SimpleNamespace(forget_rows=lambda: [one, two], seed=5))
    assert error.value.where == two.where
    assert method(spare="none").streams(SimpleNamespace(forget_rows=lambda: [two], seed=5))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"bound": "ignorance"}, {"reduction": "rows", "bound": 2.5}])
def test_other_settings_resume_and_shard_bitwise(tmp_path, settings):
    """The shipped settings are in the contract suite; bounds per row must survive as well."""
    entry = {"name": "bounded_forget", "per_step": 4, **settings}
    _, straight = trained(tmp_path / "a", entry)
    _, resumed = trained(tmp_path / "b", entry, stop_at=(2, 2))
    _, sharded = trained(tmp_path / "c", entry, engine=ShardedEngine)
    assert tensors_of(straight) == tensors_of(resumed) == tensors_of(sharded)
