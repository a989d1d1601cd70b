import torch

from mcit.models.families.embedded_llava import Lite0VisionConfig, Lite0VisionModel


def test_tokens_are_cells_row_by_row_with_their_place():
    """128 px: 4 x 4 cells of 320 + 4 * 112 = 768 features and 4 + 4 place numbers; cell 6 is row 1, column 2."""
    model = Lite0VisionModel(Lite0VisionConfig()).eval()
    with torch.no_grad():
        out = model(torch.randn(2, 3, 128, 128), output_hidden_states=True, return_dict=True)
    tokens = out.hidden_states[-1]
    assert tokens.shape == (2, 16, 776) and out.last_hidden_state is tokens
    assert tokens[1, 6, 768:].tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


def test_standardisation_acts_per_channel():
    model = Lite0VisionModel(Lite0VisionConfig()).eval()
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        raw = model(x).last_hidden_state[..., :768]
        model.feature_scale.fill_(2.0)
        model.feature_shift.fill_(1.0)
        assert torch.allclose(model(x).last_hidden_state[..., :768], 2 * raw + 1, atol=1e-5)


def test_the_middle_map_is_the_stride_16_one():
    """A change inside one 16-pixel quarter moves the folded middle channels of that quarter more than of far cells."""
    model = Lite0VisionModel(Lite0VisionConfig()).eval()
    a = torch.zeros(1, 3, 128, 128)
    b = a.clone()
    b[..., :16, :16] = 1.0
    with torch.no_grad():
        change = (model.features(a) - model.features(b)).abs().sum(-1)[0]
    assert change[0, 0] > change[3, 3]
