"""What a plan says of SSD."""

import pytest

from mcit.core.errors import PlanError
from tests.fakes.bench import plan_of
from tests.methods.test_ssd import FORGET, LEARN


def test_plans_that_cannot_work():
    lora = {**FORGET, "adapter": {"rank": 4, "alpha": 8}, "methods": [{"use": "ssd"}]}
    with pytest.raises(PlanError, match="adapter of low rank cannot hold that"):
        plan_of(stages=[lora])
    keep = {**LEARN, "adapter": {**LEARN["adapter"], "carry": "keep"}, "methods": [{"use": "ssd", "dampen": "effect"}]}
    with pytest.raises(PlanError, match="adds up what adapters bring"):
        plan_of(stages=[keep, {"recipe": "tiny/letter", "adapter": keep["adapter"]}])
    first, second = (
        {**LEARN, "methods": [{"use": "ssd", "squares": "batches"}]},
        {**FORGET, "methods": [{"use": "ssd"}]},
    )
    with pytest.raises(PlanError, match="squares and batch differ"):
        plan_of(stages=[first, second])


def test_importances_of_less_than_a_batch_cannot_be_compared():
    few = {"use": "ssd", "squares": "batches", "batch": 8, "rows": 7}
    for stages in ([{**LEARN, "methods": [few]}], [LEARN, {**FORGET, "methods": [few]}]):
        with pytest.raises(PlanError, match="estimated on 7 rows here"):
            plan_of(stages=stages)
    plan_of(stages=[{**LEARN, "methods": [{**few, "rows": 8}]}])
    plan_of(stages=[{**LEARN, "methods": [{**few, "squares": "rows"}]}])


def test_what_was_added_must_have_been_kept():
    """By the very setting: a learned stage that lists ssd as it is shipped keeps importances alone."""
    forget = {**FORGET, "methods": [{"use": "ssd", "dampen": "effect"}]}
    kept = {**LEARN, "methods": [{"use": "ssd", "dampen": "effect"}]}
    for learned in ([LEARN], [{**LEARN, "methods": [{"use": "ssd"}]}]):
        with pytest.raises(PlanError, match="which no earlier stage keeps"):
            plan_of(stages=[*learned, forget])
    other = {**LEARN, "recipe": "tiny/letter", "methods": [{"use": "ssd"}]}
    with pytest.raises(PlanError, match="which not every earlier stage with it keeps"):
        plan_of(stages=[kept, other, forget])
