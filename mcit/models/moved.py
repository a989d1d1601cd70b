"""How far training moved each adapted matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from mcit.models.adapterfile import LoraPair


def moved(now: Mapping[str, LoraPair], before: Mapping[str, LoraPair]) -> dict[str, float]:
    """Root mean square change of each matrix of O x I numbers since `before`; a module that is not in there began at no effect.

    ``|s B A - s0 B0 A0|_F / sqrt(O I)``, from products of the size of the rank: the change itself is never held. Modules with
    experts, whose change depends on the input, are left out.
    """
    out = {}
    for name, pair in sorted(now.items()):
        if pair.router_EI is None:
            parts = [(pair.scale, pair), *([(-before[name].scale, before[name])] if name in before else [])]
            b_OS = torch.cat([scale * one.B_OR.double() for scale, one in parts], dim=1)
            a_SI = torch.cat([one.A_RI.double() for _, one in parts])
            square = float(((b_OS.T @ b_OS) * (a_SI @ a_SI.T)).sum())
            out[name] = math.sqrt(max(square, 0.0) / (len(b_OS) * a_SI.shape[1]))
    return out
