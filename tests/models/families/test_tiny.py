import torch

from mcit.models.load import load_base, load_processor
from tests.fakes.models import tiny_path


def test_same_seed_same_weights_other_seed_other_weights():
    a, b, c = load_base(tiny_path(0)), load_base(tiny_path(0)), load_base(tiny_path(1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)


def test_template_and_image_tokens():
    processor = load_processor(tiny_path())
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
    ]
    assert processor.apply_chat_template(messages) == "USER: <image>\nQ ASSISTANT: A</s>"
    ids = processor(text="<image>", images=[torch.zeros(3, 32, 32).numpy()])["input_ids"]
    assert len(torch.tensor(ids).flatten()) == 16  # (32 / 8)^2
