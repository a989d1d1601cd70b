"""What a plan says of group sparsity."""

from types import SimpleNamespace

import pytest

from tests.fakes.forgetting import stage
from tests.methods.test_group_sparse import method


def found(settings, **changes):
    given = stage()
    for key, value in changes.items():
        setattr(given.optim if key == "weight_decay" else given.adapter, key, value)
    return [(p.level, p.what) for p in method(**settings).check(given, SimpleNamespace())]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"treatment": "proximal", "groups": "matrix"}, "groups: matrix"),
        ({"size_weights": True, "groups": "pair"}, "weighs blocks only"),
        ({"alpha_epoch": 10}, "not reached in 100 steps"),
    ],
)
def test_settings_that_do_not_go_together(settings, words):
    (one,) = found(settings)
    assert one[0] == "problem" and words in one[1]


def test_notes():
    assert found({}) == [] and found({"alpha_epoch": 9.9}) == [] and found({"alpha": 0, "alpha_epoch": 99}) == []
    assert [level for level, _ in found({"treatment": "proximal"}, weight_decay=0.05)] == ["note"]
    assert found({}, weight_decay=0.05) == []
    (one,) = found({}, also_train=["projector", "head"])
    assert one[0] == "note" and one[1].startswith("projector and head train too")
