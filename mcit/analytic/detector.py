"""Does a prompt ask for what is to be forgotten: a small network, or a ridge head, on one vector per prompt.

Needs torch alone: the export of a guard carries this file. The network is ours: layer norm, one layer of ReLU units, one logit,
trained by Adam on the logistic loss with both kinds of prompts weighing the same. GUARD's own detector is an MLP on a mean of
hidden states; its sizes are not published. Shapes: N or B prompts, D features.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def fit(x_ND: Tensor, y_N: Tensor, *, width: int, steps: int, lr: float, seed: int) -> dict[str, Tensor]:
    """Tensors of a network that tells prompts with y = 1 from those with y = 0; the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    x_ND, y_N = x_ND.float().cpu(), y_N.float().cpu()
    features = x_ND.shape[1]
    made = {
        "in": torch.randn(width, features, generator=generator) / features**0.5,
        "in_bias": torch.zeros(width),
        "out": torch.randn(1, width, generator=generator) / width**0.5,
        "out_bias": torch.zeros(1),
        "shift": x_ND.mean(0),
        "scale": x_ND.std(0, correction=0).clamp(min=1e-6),
    }
    share = y_N.mean().clamp(1e-6, 1 - 1e-6)
    weight_N = torch.where(y_N > 0.5, 0.5 / share, 0.5 / (1 - share))
    trained = [made[name].requires_grad_() for name in ("in", "in_bias", "out", "out_bias")]
    optimizer = torch.optim.Adam(trained, lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            loss = F.binary_cross_entropy_with_logits(_logit(made, x_ND), y_N, weight=weight_N)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in made.items()}


def _logit(tensors: Mapping[str, Tensor], x_BD: Tensor) -> Tensor:
    x_BD = (x_BD - tensors["shift"]) / tensors["scale"]
    hidden = F.relu(F.layer_norm(x_BD, x_BD.shape[1:]) @ tensors["in"].T + tensors["in_bias"])
    return (hidden @ tensors["out"].T + tensors["out_bias"])[:, 0]


def probability(tensors: Mapping[str, Tensor], x_BD: Tensor) -> Tensor:
    """(B,) in [0, 1], by the network's tensors, or by the ``weight`` (D + 1, 2) of a ridge head with columns keep and forget.

    Of a ridge head it is ``(1 + forget - keep) / 2``, cut to the interval: above 1/2 where the forget column scores higher.
    """
    x_BD = x_BD.float().cpu()
    if "weight" not in tensors:
        return _logit(tensors, x_BD).sigmoid()
    x_BD = x_BD.double() * (x_BD.shape[1] ** 0.5 / x_BD.double().norm(dim=1, keepdim=True).clamp(min=1e-12))
    x_BD = torch.cat([x_BD, torch.ones_like(x_BD[:, :1])], 1)
    score_B2 = x_BD @ tensors["weight"].double()
    return (0.5 + (score_B2[:, 1] - score_B2[:, 0]) / 2).clamp(0, 1).float()
