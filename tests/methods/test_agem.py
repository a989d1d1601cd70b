import pytest
import torch

from mcit.methods.agem import AGEM, STREAM
from tests.fakes.bench import plan_of
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import context, rows
from tests.train.test_loop import Draft, Silent, train_stage, work_of


class Step:
    """Passes over given gradients by stream."""

    def __init__(self, **gradients):
        self.given, self.streams, self.now, self.order = gradients, tuple(gradients), None, []

    def accumulate(self, streams=None, *, loss=None):
        chosen = self.streams if streams is None else streams
        self.order.append(tuple(chosen))
        self.now = sum(self.given[name] for name in chosen)

    def take(self):
        held, self.now = self.now, torch.zeros(2)
        return held

    def add(self, held, factor=1.0):
        self.now = self.now + factor * held

    def dot(self, a, b):
        return a @ b


@pytest.mark.parametrize(
    "own, memory, expected", [([1.0, 1.0], [-1.0, 0.0], [0.0, 1.0]), ([2.0, -1.0], [1.0, 3.0], [2.1, -0.7])]
)
def test_the_step_is_projected_by_hand(own, memory, expected):
    """The rest of the step, here task and another stream, is one gradient; the memory is gone over alone and first."""
    step, ctx = Step(task=torch.tensor(own) - 1, other=torch.ones(2), agem=torch.tensor(memory)), context()
    AGEM(AGEM.Config()).passes(step, ctx)
    assert torch.allclose(step.now, torch.tensor(expected), atol=1e-6)
    assert step.order == [(STREAM,), ("task", "other")]
    assert float(ctx.logged["agem/projected"]) == 1 and float(ctx.logged["agem/dot"]) < 0


def test_without_a_memory_there_is_one_ordinary_pass():
    step = Step(task=torch.ones(2))
    AGEM(AGEM.Config()).passes(step, context())
    assert step.order == [("task",)] and torch.equal(step.now, torch.ones(2))


def test_the_memory_is_the_rows_of_finished_stages():
    method = AGEM(AGEM.Config(keep=2, per_step=3))
    assert method.streams(context(rows=rows("a", 4)).data) == {}
    method.on_stage_end(context(rows=rows("a", 4)))
    spec = method.streams(context(rows=rows("a", 4)).data)[STREAM]
    assert len(spec.rows) == 2 and spec.per_step == 3
    again = AGEM(AGEM.Config(per_step=0))
    again.load_state_dict(method.state_dict())
    assert again.state_dict() == method.state_dict() and again.streams(context(rows=rows("a", 4)).data) == {}


def test_a_gradient_against_the_memory_no_longer_is(tmp_path):
    """On the tiny model: rows of the task's own stream with their answers' gradient turned around are the memory."""

    class Against(AGEM):
        def passes(self, step, ctx):
            step.accumulate()
            own = step.take()
            step.add(own, -1.0)
            against = step.take()
            dot = step.dot(own, against)
            step.add(own)
            step.add(against, -dot / step.dot(against, against))
            left = step.take()
            seen.append((float(dot), float(step.norm(left)) / float(step.norm(own))))
            step.add(own)

    seen = []
    plan = plan_of(defaults={"max_steps": 1})
    work, _ = work_of(plan)
    work.methods.methods = (Against(AGEM.Config()),)
    train_stage(work, Draft(tmp_path), reporter=Silent())
    ((dot, left),) = seen
    assert dot < 0 and left < 1e-6


def test_naming_it_alone_is_using_the_shipped_settings():
    assert AGEM.Config() == shipped_config(AGEM)
    assert refused(AGEM, keep=0, per_step=-1) == ["keep", "per_step"]
