import pytest
import torch

from mcit.engine.estimate.llava import llava_batch, llava_skeleton


@pytest.mark.parametrize(
    ("size", "tower", "projector", "language"), [("7b", 303.5, 20.98, 6738), ("13b", 303.5, 31.47, 13016)]
)
def test_parameters_in_millions(size, tower, projector, language):
    """Projector of 7B: 1024 x 4096 + 4096 + 4096 x 4096 + 4096 = 20,979,712; Llama 7B has 6,738 M with 32,000 words."""
    model = llava_skeleton(size)
    counts = {}
    for name, parameter in model.named_parameters():
        assert parameter.is_meta and not parameter.requires_grad and parameter.dtype == torch.bfloat16
        group = next((g for g in ("vision_tower", "projector") if g in name), "language")
        counts[group] = counts.get(group, 0) + parameter.numel() / 1e6
    assert counts["projector"] == pytest.approx(projector, rel=1e-3)
    assert counts["vision_tower"] == pytest.approx(tower, rel=1e-2)
    assert counts["language"] == pytest.approx(language, rel=2e-3)


def test_a_row_has_an_image_of_576_positions():
    """336 / 14 = 24 patches a side."""
    batch = llava_batch(4, text=100, answer=10)
    assert (batch.rows, batch.positions, batch.supervised) == (4, 24 * 24 + 100, 40)
