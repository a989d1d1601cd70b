"""Every method on every engine: the weight changes of one process, over the files in mcit/methods, some other settings and
the sample package.

Two stages of four steps on the tiny model, two processes. One job per engine trains all plans.
"""

import os

import pytest

from tests.fakes.jobs import farthest, train
from tests.fakes.method_plans import NAMES, OUTSIDE, VARIANTS

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]
TOLERANCE = 1e-5
EVERY = {name: {"method": name} for name in [*NAMES, *VARIANTS, *OUTSIDE]}
PART, PARTS = map(int, os.environ.get("MCIT_METHODS_PART", "0/1").split("/"))
"""Which of how many parts of the methods; CI takes another one with each commit."""
PLANS = dict(list(EVERY.items())[PART::PARTS])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """By engine: weight changes by plan and rank; jobs run when first asked for."""
    found = {}

    def of(kind, processes):
        if (kind, processes) not in found:
            folder = tmp_path_factory.mktemp(f"{kind}-{processes}")
            found[kind, processes] = train(kind, "none", folder, PLANS, processes=processes, cache=cache)
        return found[kind, processes]

    return of


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("kind", ["ddp", "zero1", "zero2", "zero3"])
def test_a_method_does_the_same_on_every_engine(kind, name, trained):
    ((one, steps),) = trained("plain", 1)[name]
    assert len(steps) == (7 if name == "early end" else 8) and sum(float(t.norm()) > 0 for t in one.values()) > 15
    for found, _ in trained({"ddp": "plain"}.get(kind, kind), 2)[name]:
        assert farthest(found, one)[0] <= TOLERANCE, farthest(found, one)
