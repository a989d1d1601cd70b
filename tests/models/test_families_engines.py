"""Two stages of every family on DDP and ZeRO-3 with two processes: the weight changes of one process alone."""

from __future__ import annotations

import pytest
import torch

from tests.fakes.families import table
from tests.fakes.families.make import FAMILIES, write
from tests.fakes.families.task import two_tasks
from tests.fakes.jobs import farthest, train

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]
NAMES = list(FAMILIES)
TOLERANCE = 1e-5
ULP = 2.0**-23
"""Step between fp32 numbers from 1 to 2. The weights of norms start at 1, so their changes are known to one such step."""
TITLES = {"plain": "DDP", "zero3": "ZeRO-3"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """Weight changes of all families by engine and number of processes, one job each."""
    found = {}
    home = tmp_path_factory.mktemp("engines")
    plans = {}
    for name in NAMES:
        folder = write(name, home / name / "model")
        plans[name] = {"family": [str(folder), *two_tasks(home / name, name)]}

    def of(kind, processes):
        if (kind, processes) not in found:
            folder = tmp_path_factory.mktemp(f"{kind}-{processes}")
            found[kind, processes] = train(kind, "none", folder, plans, processes=processes, cache=cache)
        return found[kind, processes]

    return of


def rounded(key, change, wanted):
    """A change; in the weights of a norm, elements within one step of what is wanted count as that."""
    return torch.where((change - wanted).abs() <= ULP, wanted, change) if key.endswith("norm.weight") else change


@pytest.mark.parametrize("kind", ["plain", "zero3"])
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_make_the_weight_changes_of_one(trained, name, kind):
    """fp32; rows with no, one and two pictures fall on the ranks as the seed deals them. What is left is the order of sums."""
    ((one, _),) = trained("plain", 1)[name]
    assert len(one) > 20 and all(float(change.norm()) > 0 for change in one.values())
    for found, _ in trained(kind, 2)[name]:
        same = {key: rounded(key, change, one[key]) for key, change in found.items()}
        assert farthest(same, one)[0] <= TOLERANCE, farthest(same, one)
    table.cell(name, TITLES[kind], "yes")
