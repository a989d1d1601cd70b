"""What greedy decoding is told, and how a batch is divided; what it answers is in test_generate.py and test_decode.py."""

from types import SimpleNamespace

import torch

from mcit.core.schema import EvalConfig
from mcit.evals.generator import _parts, end_tokens, sharing
from tests.fakes.rows import row


def test_end_tokens_of_all_sources() -> None:
    """7 and 8 from the model, 5 from the tokenizer, 9 from the template."""
    encoder = SimpleNamespace(processor=SimpleNamespace(tokenizer=SimpleNamespace(eos_token_id=5)), end_token_id=9)
    assert end_tokens(SimpleNamespace(eos_token_id=[8, 7]), encoder) == [5, 7, 8, 9]
    assert end_tokens(SimpleNamespace(eos_token_id=None), encoder) == [5, 9]


def test_settings_of_a_config() -> None:
    assert sharing(EvalConfig()) == {"tokens": EvalConfig().tokens, "share": True}
    assert sharing(EvalConfig(tokens=7, share_prefix="off")) == {"tokens": 7, "share": False}


def test_parts_count_a_picture_of_several_rows_once() -> None:
    """Prompts of 10 tokens, 6 of them the picture's, and 2 new ones: 12, and 6 for each further row of the picture."""

    def sample(images, tokens=10):
        image_T = torch.arange(tokens) < 6 if images else None
        return SimpleNamespace(row=row("?", "a", images=images), input_ids_T=torch.zeros(tokens), image_T=image_T)

    rows = [sample(("a",)), sample(("a",)), sample(("a",)), sample(("b",)), sample(()), sample(())]
    assert list(_parts(rows, limit=2, tokens=None)) == [(0, 6)]
    assert list(_parts(rows, limit=2, tokens=24)) == [(0, 3), (3, 5), (5, 6)]
    assert list(_parts(rows, limit=2, tokens=23)) == [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    assert list(_parts(rows, limit=2, tokens=1)) == [(k, k + 1) for k in range(6)]
    assert list(_parts([], limit=2, tokens=1)) == []
