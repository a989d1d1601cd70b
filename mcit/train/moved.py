"""How far training moved each adapted matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mcit.methods.formulas.lowrank import product_distance2
from mcit.models.adapterfile import LoraPair


def moved(now: Mapping[str, LoraPair], before: Mapping[str, LoraPair]) -> dict[str, float]:
    """Root mean square change of each matrix of O x I numbers since `before`; a module that is not in there began at no effect.

    ``|s B A - s0 B0 A0|_F / sqrt(O I)``, in fp64. Modules with experts, whose change depends on the input, are left out.
    """
    out = {}
    for name, pair in sorted(now.items()):
        if pair.router_EI is None:
            old = before.get(name, pair)
            scale = old.scale if name in before else 0.0
            b_OR, a_RI = pair.scale * pair.B_OR.double(), pair.A_RI.double()
            square = float(product_distance2(b_OR, a_RI, scale * old.B_OR.double(), old.A_RI.double()))
            out[name] = math.sqrt(max(square, 0.0) / (len(b_OR) * a_RI.shape[1]))
    return out
