"""Proof that what a stage freezes stays as it is: one integer per frozen tensor, at its start and at its end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mcit.core.errors import TrainingError
from mcit.models.quant import scale_tensors

_CHUNK = 1 << 14
_PRIME = 2_147_483_647
_MASK = (1 << 64) - 1


def checksum(tensor: Tensor) -> int:
    """A number that any change of one 8-byte word changes: words times odd weights, modulo 2^64; made where the tensor lies.

    Word i of chunk k counts ``(2 k + 1) (2 p i + 1)`` times, p = 2^31 - 1; the last bytes are filled up with zeros.
    """
    flat = tensor.detach().contiguous().view(-1)
    if not flat.numel():
        return 0
    octets = flat.view(torch.uint8)
    whole = len(octets) // 8 * 8
    tail = torch.zeros(8, dtype=torch.uint8, device=octets.device)
    tail[: len(octets) - whole] = octets[whole:]
    words = octets[:whole].view(torch.int64) if octets.data_ptr() % 8 == 0 else octets[:whole].clone().view(torch.int64)
    weights = 2 * _PRIME * torch.arange(_CHUNK, dtype=torch.int64, device=words.device) + 1
    sums = [_dot(part, weights[: len(part)]) for part in words.split(_CHUNK)]
    sums.append(tail.view(torch.int64).sum())
    return sum((2 * k + 1) * value for k, value in enumerate(torch.stack(sums).tolist())) & _MASK


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a, b) if a.device.type == "cpu" else (a * b).sum()


def frozen_checksums(model: nn.Module) -> dict[str, int]:
    """Checksum of every parameter that does not train, of every buffer and of the scales of quantised weights, by name."""
    found = {name: checksum(p) for name, p in model.named_parameters() if not p.requires_grad}
    scales = {f"scale {name}": checksum(t) for name, t in scale_tensors(model).items()}
    return {**found, **scales, **{f"buffer {name}": checksum(b) for name, b in model.named_buffers()}}


def check_frozen(model: nn.Module, before: Mapping[str, int], *, where: str) -> None:
    """Raises TrainingError naming the first frozen tensor that changed, and how many did."""
    now = frozen_checksums(model)
    changed = [name for name in before if now.get(name) != before[name]]
    if changed:
        raise TrainingError(
            f"{len(changed)} frozen tensor(s) changed during the stage, the first is '{changed[0]}'",
            where=where,
            fix="the stage is not committed; please report it with the config, and resume from the last checkpoint",
        )
