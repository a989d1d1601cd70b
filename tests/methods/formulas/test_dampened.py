"""Dampening of a model of one matrix, by hand; runs are in tests/methods/test_ssd.py."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import TrainingError
from mcit.core.tensorstore import HostTensors
from mcit.core.types import WeightUnit
from mcit.methods.formulas.dampened import Dampening, importances
from tests.fakes.forgetting import batch_of, output

UNIT = WeightUnit("a.up.weight", "tensor", {"weight": "a.up.weight"}, (1, 2))


def context(weight, losses=()):
    """One matrix; each forward pass takes the next loss."""
    held, coming = {"weight": weight}, iter(losses)
    weights = SimpleNamespace(
        edit=lambda unit: contextlib.nullcontext(held),
        gathered=lambda unit: contextlib.nullcontext({"weight": weight.clone()}),
    )
    return SimpleNamespace(weights=weights, forward_pass=lambda rows: iter([(batch_of(1), output([next(coming)] * 2))]))


def dampening(store=None, *, what="weights", every=(1.0, 1.0), forget=(2.0, 8.0), strength=1.0):
    pairs = {"a.up": (torch.tensor([every]), torch.tensor([forget]))}
    return Dampening([UNIT], pairs, strength, what, store or HostTensors())


def test_importances_are_means_of_what_is_stored():
    store = HostTensors()
    store.put("squares", "a.up", torch.tensor([[6.0]]))
    store.put("forget", "a.up", torch.tensor([[8.0]]))
    ((d, f),) = importances(store, [UNIT], ("squares", 3), ("forget", 2)).values()
    assert d.tolist() == [[2.0]] and f.tolist() == [[4.0]]
    assert importances(HostTensors(), [UNIT], ("squares", 3), ("forget", 2)) == {}


def test_weights_or_what_was_added_to_them():
    """Ratios 2 and 8, alpha 4: the second weight keeps 1/8 of itself, or loses 7/8 of what was added to it."""
    weight = torch.tensor([[1.0, 16.0]])
    dampening().apply(context(weight), 4.0)
    assert weight.tolist() == [[1.0, 2.0]] and dampening().share(4.0) == 0.5
    store, weight = HostTensors(), torch.tensor([[1.0, 16.0]])
    store.put("effect", "a.up", torch.tensor([[1.0, 8.0]]))
    dampening(store, what="effect").apply(context(weight), 4.0)
    assert weight.tolist() == [[1.0, 9.0]]


def test_what_was_taken_off_is_not_taken_off_again():
    """Of 8 added to a weight of 16 one eighth stays: 9, of which the next request takes 7/8 of the 1 that is left."""
    store, weight = HostTensors(), torch.tensor([[1.0, 16.0]])
    store.put("effect", "a.up", torch.tensor([[1.0, 8.0]]))
    for expected in (9.0, 8.125):
        one = dampening(store, what="effect")
        one.apply(context(weight), 4.0)
        one.keep_rest(4.0)
        assert weight.tolist() == [[1.0, expected]]
    plain = dampening(HostTensors())
    plain.keep_rest(4.0)
    assert plain.store.get("effect", "a.up") is None


def test_a_search_stops_before_the_loss_rises_too_much_and_leaves_the_weights():
    """Loss 1 before; 1.1 at alpha 7, 1.5 at 3, where a rise of 0.2 is allowed. Alphas 9 and 1 select nothing and all."""
    weight, found = torch.tensor([[1.0, 16.0]]), dampening()
    assert found.searched(context(weight, [1.0, 1.1, 1.5]), [], [1.0, 3.0, 7.0, 9.0], rise=0.2) == 7.0
    assert weight.tolist() == [[1.0, 16.0]] and not found.store.names("before")
    with pytest.raises(TrainingError, match="lifts the retained loss above 1.200"):
        found.searched(context(weight, [1.0, 1.3]), [], [7.0], rise=0.2)


def test_nothing_and_everything_are_refused():
    for alpha, words in ((9.0, "dampens no weight; I_f / I_D is at most 8"), (1.0, "dampens every weight")):
        with pytest.raises(TrainingError, match=words):
            dampening().refuse_all_or_nothing(alpha)
    dampening().refuse_all_or_nothing(dampening().percentile(40))


def test_weights_that_stay_as_they_are_were_not_dampened():
    """By the cap of 1, without anything added, or for the rows to forget without weight at all: that is no half."""
    with pytest.raises(TrainingError, match="(?s)alpha 4 at strength 1e.06 dampens no weight.*lower strength"):
        dampening(strength=1e6).refuse_all_or_nothing(4.0)
    assert dampening(strength=5.0).share(1.0) == 0.5, "8 > 5, and 2 < 5 is capped"
    with pytest.raises(TrainingError, match="dampens no weight"):
        dampening(what="effect").refuse_all_or_nothing(4.0)
    store = HostTensors()
    store.put("effect", "a.up", torch.tensor([[0.0, 8.0]]))
    assert dampening(store, what="effect").share(4.0) == 1.0, "of one weight that was changed"
    with pytest.raises(TrainingError, match="dampens every weight"):
        dampening(every=(1.0, 0.0), forget=(2.0, 0.0)).refuse_all_or_nothing(1.0)
