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
