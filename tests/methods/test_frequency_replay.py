from types import SimpleNamespace

import pytest

from mcit.methods.frequency_replay import FrequencyReplay, kept, refreshed
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import batch, context, output, rows


@pytest.mark.parametrize(("visits", "size"), [(1, 100), (2, 66), (3, 50), (19, 10), (30, 10)])
def test_refresh_sizes_by_hand(visits, size):
    """max(200 // (visits + 1), 10)."""
    assert refreshed(visits, 200) == size


def test_what_is_kept_changes_by_the_refresh_of_each_visit():
    first, second, third = (set(kept(1000, v, 200, seed="a")) for v in (1, 2, 3))
    assert len(first) == len(second) == len(third) == 200
    assert len(second - first) == 100 and len(third - second) == 66
    assert kept(1000, 0, 200, seed="a") == [] and len(kept(50, 5, 200, seed="a")) == 50
    assert kept(1000, 3, 200, seed="a") == sorted(third) != kept(1000, 3, 200, seed="b")


def test_old_rows_of_a_concept_make_room_first():
    """With a small tau the rows that came first go first: of 200, visits swap 100 and 66."""
    first = set(kept(1000, 1, 200, seed="a"))
    assert set(kept(1000, 1, 200, seed="a", tau=5)) == first
    second, short, long = (set(kept(1000, v, 200, seed="a", tau=tau)) for v, tau in ((2, 1e-2), (3, 1e-2), (3, 1e9)))
    assert len(second - short) == 66 and second - short <= first, "none of those that came with the second visit"
    assert not set(kept(1000, 2, 200, seed="a", tau=1e9)) - long <= first
    config = FrequencyReplay.Config(visits={"a": 3}, keep=12, policy="age_weighted", tau=0.01)
    pools = {"a": rows("a", 40)}
    chosen = (
        FrequencyReplay(config).streams(SimpleNamespace(pool=pools.__getitem__, without_forgotten=list))["replay"].rows
    )
    assert [row.id for row in chosen] == [f"a{k}" for k in kept(40, 3, 12, seed="a", tau=0.01)]


def test_rows_of_the_listed_concepts_are_replayed():
    method = FrequencyReplay(FrequencyReplay.Config(visits={"a": 2, "b": 1}, keep=3))
    pools = {"a": rows("a", 9), "b": rows("b", 2)}
    spec = method.streams(SimpleNamespace(pool=pools.__getitem__, without_forgotten=list))["replay"]
    assert [row.task for row in spec.rows] == ["a"] * 3 + ["b"] * 2 and spec.per_step == 4
    assert method.recipes() == ("a", "b")


def test_nothing_listed_or_weight_zero_is_nothing():
    assert FrequencyReplay(FrequencyReplay.Config()).streams(None) == {}
    off = FrequencyReplay(FrequencyReplay.Config(visits={"a": 2}, weight=0))
    assert off.recipes() == () and off.streams(None) == {}


def test_loss_on_its_stream_only():
    import torch

    method = FrequencyReplay(FrequencyReplay.Config(weight=2))
    out = output(torch.zeros(1, 4), [0])
    assert method.loss_term(out, batch("task"), context()) is None
    assert method.loss_term(out, batch("replay"), context()).sum.item() == pytest.approx(2 * 1.3862944)


def test_settings():
    assert FrequencyReplay.Config() == shipped_config(FrequencyReplay)
    assert refused(FrequencyReplay, keep=0) == ["keep"]
