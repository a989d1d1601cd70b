from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import TrainingError
from mcit.core.types import Counts
from mcit.methods.group_mask import GroupMask, masked_nll
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import batch, context, output


def method(**settings):
    return GroupMask(GroupMask.Config(**settings))


def test_logits_outside_the_group_get_no_gradient():
    """Classes 2 and 5 of six: -log softmax over the two, and zeros elsewhere."""
    logits = torch.tensor([[9.0, 9, 1, 9, 9, 0]], requires_grad=True)
    loss = masked_nll(logits, torch.tensor([2]), torch.tensor([2, 5]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(torch.log(1 + torch.exp(torch.tensor(-1.0))).item())
    assert logits.grad[0, [0, 1, 3, 4]].abs().max() == 0 and logits.grad[0, 2] < 0
    assert logits.grad[0, 5].item() == pytest.approx(-logits.grad[0, 2].item())


def test_the_tasks_tokens_are_collected_without_running_a_block():
    given = replace(batch(), labels_BT=torch.tensor([[-100, 5, 2], [-100, -100, 5]]))
    asked = []

    def forward_pass(stream, change):
        asked.append((stream, change(given).until))
        yield change(given), None

    ctx = context()
    ctx.forward_pass = forward_pass
    own = method()
    own.on_stage_start(ctx)
    assert asked == [("task", "0")] and own.tensors.get("tokens", "task").tolist() == [2, 5]
    term = own.loss_term(output(torch.tensor([[9.0, 9, 0, 9, 9, 0]]), [5]), batch(), ctx)
    assert term.sum.item() == pytest.approx(torch.log(torch.tensor(2.0)).item()) and term.per == "tokens"


def by_batch(rows):
    ctx = context()
    ctx.counts = Counts({"task": 2}, {"task": rows})
    out = replace(output(torch.tensor([[0.0, 0, 9], [0, 0, 9]]), [0, 1]), real_rows=(0, 1))
    return method(by="batch").loss_term(out, batch(), ctx)


def test_the_mask_of_a_batch_takes_whole_steps():
    assert by_batch(2).sum.item() == pytest.approx(2 * torch.log(torch.tensor(2.0)).item())
    with pytest.raises(TrainingError, match="whole step in one micro-batch"):
        by_batch(4)
    plan = SimpleNamespace(config=SimpleNamespace(engine=SimpleNamespace(micro_batch=2)))
    (problem,) = method(by="batch").check(SimpleNamespace(optim=SimpleNamespace(batch=4)), plan)
    assert "cut into parts of 2" in problem.what
    assert method().check(SimpleNamespace(optim=SimpleNamespace(batch=4)), plan) == []


def test_weight_zero_holds_nothing_and_half_is_a_mixture():
    assert method(weight=0).loss_term(None, batch(), None) is None and not method(weight=0).claims.slots
    own = method(weight=0.5)
    own.tensors.put("tokens", "task", torch.tensor([0, 1]))
    out = output(torch.tensor([[0.0, 0, 0, 0]]), [1])
    assert own.loss_term(out, batch(), context()).sum.item() == pytest.approx(
        (0.5 * torch.tensor([2.0, 4.0]).log()).sum().item()
    )


def test_settings():
    assert GroupMask.Config() == shipped_config(GroupMask)
    assert refused(GroupMask, by="class") == ["by"]
