import dataclasses
from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import DataError
from mcit.methods.ce_u import CEU
from tests.fakes import steps
from tests.fakes.forgetting import batch_of, output, step_context
from tests.fakes.settings import shipped_config


def loss(**settings):
    """Two rows of two and three tokens, all logits alike over 8 words: ln 8 a token whatever the truth is."""
    out = dataclasses.replace(output([1.0, 1.0], [1.0, 1.0, 1.0]), logits_NV=torch.zeros(5, 8))
    return CEU(CEU.Config(**settings)).loss_term(out, batch_of(2), step_context(rows=2, tokens=5))


def test_the_first_token_of_each_answer_does_not_count():
    """The mean over three tokens and over five is the same here; what is summed is not."""
    ln8 = 2.0794415
    assert loss().per == "rows" and loss().sum.item() / 2 == pytest.approx(ln8)
    assert loss(skip_first=False).sum.item() / 2 == pytest.approx(ln8)
    out = dataclasses.replace(output([1.0, 1.0]), logits_NV=torch.tensor([[9.0, 0.0], [0.0, 0.0]]))
    first = CEU(CEU.Config()).loss_term(out, batch_of(1), step_context(rows=1, tokens=2))
    assert first.sum.item() == pytest.approx(0.6931472)


def test_rows_with_several_answers_are_refused_while_first_tokens_are_skipped():
    row = steps.batch("forget").rows[0]
    talk = dataclasses.replace(row, turns=(*row.turns, *row.turns))
    ctx = SimpleNamespace(forget_rows=lambda: [row, talk])
    with pytest.raises(DataError, match="several answers") as caught:
        CEU(CEU.Config()).streams(ctx)
    assert caught.value.problems[0].fix.endswith("skip_first: false")
    assert len(CEU(CEU.Config(skip_first=False)).streams(ctx)["forget"].rows) == 2


def test_settings():
    assert shipped_config(CEU) == CEU.Config()
