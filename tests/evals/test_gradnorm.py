import pytest
import torch

from mcit.data.encode import Encoder
from mcit.evals.gradnorm import gradient_norms
from mcit.models.load import load_processor
from mcit.models.units import group_of
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.ranks import on_ranks
from tests.fakes.rows import row


def test_by_hand_on_any_ranks_and_the_model_is_left_alone():
    model, encoder = tiny_model().train(), Encoder(load_processor(tiny_path()))
    model.requires_grad_(False)
    rows = [row("Is it red?", text, id=text) for text in ("yes", "no, it is not", "maybe")]
    with torch.no_grad():  # as an evaluation is
        found = gradient_norms(model, encoder, rows, device="cpu")
    assert model.training and not any(p.requires_grad or p.grad is not None for p in model.parameters())
    twice = on_ranks(2, lambda ranks: gradient_norms(tiny_model(), encoder, rows, device="cpu", ranks=ranks))
    assert twice == [found, found]
    model.eval()
    own = [p for n, p in model.named_parameters() if group_of(n) == "language"]
    for p in own:
        p.requires_grad_(True)
    sample = encoder.encode(rows[1])
    out = model(input_ids=sample.input_ids_T[None], labels=sample.labels_T[None])
    grads = torch.autograd.grad(out.loss, own, allow_unused=True)
    norms = [float(g.norm()) for g in grads if g is not None]
    assert found[1] == pytest.approx(sum(norms) / len(norms), rel=1e-4)
