"""Sizes for a plan's estimate, from the shapes of what trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mcit.methods.formulas.importances import ends_with


def matrix_numbers(shapes: Mapping[str, tuple[int, ...]], endings: Sequence[str] = ()) -> int:
    """Numbers in the whole matrices of LoRA pairs and in tensors that train whole, together.

    `shapes` are by parameter name. With `endings` only of modules whose name ends so, matched at a dot.
    """
    total = 0
    for name, shape in shapes.items():
        before, is_b, after = name.partition(".lora_B.")
        module = before if is_b else name.removesuffix(".weight")
        if ".lora_A." in name or (endings and not ends_with(module, endings)):
            continue
        total += shape[0] * shapes[f"{before}.lora_A.{after}"][1] if is_b else math.prod(shape)
    return total
