"""Orders, choices and groups of streams that do not fit are refused by the plan, all together."""

import pytest

from mcit.core.errors import PlanError
from mcit.core.types import Claims
from mcit.methods.base import Method
from tests.fakes.bench import plan_of


class Ordering(Method):
    name = "ordering"
    claims = Claims(slots=frozenset({"order:task"}), groups={"task": 4})

    def order(self, stream, epoch, count, seed):
        return [(k, 0) for k in range(count)]


class Choosing(Method):
    name = "choosing"
    claims = Claims(slots=frozenset({"choose:task", "choose:nothing"}))

    def choose(self, stream, count, size, ctx):
        return [(0, 0)] * size


class Unclaimed(Method):
    name = "unclaimed"
    claims = Claims(groups={"task": 2})

    def order(self, stream, epoch, count, seed):
        return []


class Empty(Method):
    name = "empty"
    claims = Claims(slots=frozenset({"order:task"}), groups={"task": 5})


GERE = {"name": "gere", "recipe": "general/tiny", "mix": "natural"}


@pytest.mark.parametrize(
    ("methods", "engine", "messages"),
    [
        (["Ordering"], {"micro_batch": 2}, ["4 rows of stream 'task' must share a micro-batch, which takes 2"]),
        (
            ["Ordering", "Choosing"],
            {},
            ["orders stream 'task', as '", "choose:nothing, a stream that no"],
        ),
        (["Unclaimed"], {}, ["has a hook 'order' and claims no slot", "groups stream 'task' without"]),
        (["Empty"], {}, ["has no hook 'order'", "groups of 5 rows do not divide optim.batch 8"]),
        (["Ordering", GERE], {}, ["orders the task's rows, into which 'gere' shuffles others"]),
    ],
)
def test_refused_with_every_reason(methods, engine, messages):
    given = [m if isinstance(m, dict) else {"name": f"{__name__}:{m}"} for m in methods]
    with pytest.raises(PlanError) as caught:
        plan_of(engine={"workers": 0, "micro_batch": 4, **engine}, defaults={"methods": given})
    for message in messages:
        assert any(message in problem.what for problem in caught.value.problems), caught.value
        assert all(problem.fix for problem in caught.value.problems)


def test_what_fits_is_planned():
    plan = plan_of(defaults={"methods": [{"name": f"{__name__}:Ordering"}]})
    assert plan.stages[0].methods[0].name == f"{__name__}:Ordering"
