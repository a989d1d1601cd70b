from dataclasses import replace

import pytest
import torch

from mcit.core.types import Claims
from mcit.methods.feature_kd import FeatureKD
from mcit.methods.formulas.divergence import feature_distance
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import batch, context, output

NEW, OLD = torch.tensor([[[1.0, 2], [5, 5], [7, 7]]]), torch.tensor([[[0.0, 4], [5, 5], [0, 0]]])


def out(hidden):
    return replace(output(torch.zeros(1, 2), [0]), hidden={"last": hidden, "1": 2 * hidden}, real_rows=(0,))


def rows():
    """Three positions, the last of them padding; the token at position 1 is supervised, predicted at position 0."""
    return replace(
        batch(tokens=1),
        labels_BT=torch.tensor([[-100, 3, -100]]),
        attention_BT=torch.tensor([[1, 1, 0]]),
        input_ids_BT=torch.tensor([[1, 3, 0]]),
    )


def loss(*, index=2, stream="task", **settings):
    given = replace(rows(), stream=stream)
    return FeatureKD(FeatureKD.Config(**settings)).loss_term(out(NEW), given, context(index=index, reference=out(OLD)))


def test_distance_by_hand():
    """(1, 2) against (0, 4): 1 + 4 = 5 as a sum, 2.5 as a mean over features."""
    assert feature_distance(NEW, OLD, mean=False)[0, 0].item() == 5
    assert feature_distance(NEW, OLD, mean=True)[0, 0].item() == 2.5


def test_positions_that_predict_an_answer():
    term = loss(reduction="sum", weight=2)
    assert term.sum.item() == 10 and term.per == "tokens"


def test_all_real_positions_are_a_mean_per_row():
    """(5 + 0) / 2: padding does not count."""
    term = loss(reduction="sum", positions="all")
    assert term.sum.item() == 2.5 and term.per == "rows"


def test_layers_are_averaged_and_claimed():
    """The second layer is twice as large: (2.5 + 10) / 2."""
    assert loss(layers=["last", "1"]).sum.item() == pytest.approx(6.25)
    needs = frozenset({"reference:stage_start", "hidden:last", "hidden:1"})
    assert FeatureKD(FeatureKD.Config(layers=["last", "1"])).claims == Claims(needs=needs)


def test_nothing_in_the_first_stage_on_other_streams_or_without_weight():
    assert loss(index=1) is None and loss(stream="replay") is None and loss(weight=0) is None


def test_settings():
    assert FeatureKD.Config() == shipped_config(FeatureKD)
    assert refused(FeatureKD, layers=[]) == ["layers"]
