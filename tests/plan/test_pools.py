"""Pools and routers that do not go together are refused by the plan."""

import pytest

from mcit.core.errors import ConfigError
from mcit.plan.plan import make_plan, parse_run
from mcit.plan.record import plan_json
from tests.fakes.bench import TINY, config_of
from tests.train.test_routing import POOL, STAGES, pool_plan


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"router": None}, "router", "carry: pool needs one"),
        ({"defaults": {}}, "router", "no pool to choose from"),
        ({"router": {"use": "orcale"}}, "router.use", "there is no 'orcale'"),
        ({"router": {"use": "oracle", "k": 1}}, "router.k", "unknown key"),
        ({"router": {}}, "router.use", "is required"),
        ({"defaults": {**POOL, "adapter": {"carry": "pool"}}}, "stages[0].adapter.also_train", "shared by all"),
        (
            {"stages": [*STAGES[:1], {**STAGES[1], "adapter": {"carry": "merge"}}]},
            "stages[1].adapter.carry",
            "whole run",
        ),
    ],
)
def test_what_does_not_go_with_a_pool(changes, where, what):
    given = {"defaults": POOL, "stages": STAGES, "router": {"use": "oracle"}, **changes}
    config, problems = parse_run({**TINY, **config_of(**given)})
    assert not problems
    with pytest.raises(ConfigError) as caught:
        make_plan(config)
    assert any(p.where == where and what in p.what for p in caught.value.problems), caught.value


def test_the_routers_source_is_part_of_the_run():
    assert pool_plan({"use": "oracle"}).router.name == "oracle"
    assert "router oracle" in plan_json(pool_plan({"use": "oracle"}))["sources"]
