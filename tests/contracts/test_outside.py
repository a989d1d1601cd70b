"""Plug-ins from an installed package pass the contract as the ones in mcit do; each is stopped inside and continued."""

import pytest

from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.sharded import ShardedEngine

METHODS = {
    "mcit_sample.two_views:TwoViews": {},
    "mcit_sample.hardest:Hardest": {},
    "mcit_sample.quiet_layer:QuietLayer": {},
}


def plan_with(name, **changes):
    return plan_of(defaults={"methods": [{"name": name, **METHODS[name], **changes}]})


@pytest.mark.parametrize("name", METHODS)
def test_interrupted_and_resumed_equals_straight_bitwise(name, tmp_path):
    plan = plan_with(name)
    straight = tensors_of(run_plan(plan, tmp_path / "straight"))
    assert tensors_of(run_plan(plan, tmp_path / "resumed", stop_at=(2, 2))) == straight
    assert tensors_of(run_plan(plan, tmp_path / "sharded", engine=ShardedEngine)) == straight
