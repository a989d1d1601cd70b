"""The loss in parts against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from mcit.engine import tokenloss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_equal_the_whole(dtype, monkeypatch):
    """Values and gradients; nine tokens in parts of two, targets repeated."""
    monkeypatch.setattr(tokenloss, "_LARGE", 100)
    monkeypatch.setattr(tokenloss, "_PART", 100)
    draw = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(9, 50, generator=draw)).to(dtype).requires_grad_()
    targets, weights = torch.randint(0, 50, (9,), generator=draw), torch.randn(9, generator=draw)
    found = []
    for losses in (tokenloss.token_losses(logits, targets), F.cross_entropy(logits.float(), targets, reduction="none")):
        assert losses.dtype == torch.float32
        found.append((losses.detach(), torch.autograd.grad((losses * weights).sum(), logits)[0]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert found[0][1].dtype == dtype
    assert torch.allclose(found[0][1].float(), found[1][1].float(), atol=1e-6 if dtype == torch.float32 else 1e-2)


def test_no_second_table_is_kept(monkeypatch):
    """What waits for backward beside the logits is one number per token."""
    monkeypatch.setattr(tokenloss, "_LARGE", 100)
    kept = []
    logits, targets = torch.randn(9, 50, requires_grad=True), torch.zeros(9, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        tokenloss.token_losses(logits, targets)
    assert sorted(t.numel() for t in kept if t.data_ptr() != logits.data_ptr()) == [9, 9]


def test_no_token_is_no_loss():
    assert tokenloss.token_losses(torch.zeros(0, 50), torch.zeros(0, dtype=torch.int64)).shape == (0,)
