"""Reload what was written and compare its logits with the trained model's on a probe batch.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mcit.core.errors import StateError
from mcit.core.types import Batch, JsonDict, Row, Turn
from mcit.data.collate import collate
from mcit.data.encode import Encoder

TOLERANCE = 1e-5
"""fp32: the largest difference as a share of the largest logit (at least 1)."""
TOLERANCE_BF16 = 0.1
"""bf16: the norm of the difference as a share of the logits' norm. Rounding gives one or two percent, a missing stage
or projector far more."""
_QUESTIONS = ("What is shown?", "Is there a red square in the picture? Answer yes or no.", "Name one colour.")


@dataclass(frozen=True)
class Difference:
    """How far two models' logits are apart on the probe batch."""

    absolute: float
    """The largest single difference."""
    scale: float
    """The largest logit of the trained model, at least 1."""
    share: float
    """Norm of the difference over the norm of the trained model's logits."""


def probe(processor: Any) -> Batch:
    """Three questions of different length with generated pictures, where the processor takes pictures.

    Prompts only: a comparison needs no answer, so nothing is asked of how the tokenizer joins prompt and answer. The
    same on every machine.
    """
    encoder = Encoder(processor)
    sees = getattr(processor, "image_processor", None) is not None
    noise = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        samples = []
        for i, question in enumerate(_QUESTIONS):
            Image.frombytes("RGB", (48, 48), noise.randbytes(48 * 48 * 3)).save(Path(folder) / f"{i}.png")
            images = (f"{i}.png",) if sees else ()
            turns = (Turn("user", f"<image>\n{question}" if sees else question), Turn("assistant", "yes"))
            samples.append(encoder.prompt(Row(f"probe-{i}", images, turns, "probe", "probe", root=folder)))
    return collate(samples, stream="probe", pad_id=encoder.pad_id)


@torch.no_grad()
def logits(model: Any, batch: Batch, *, device: torch.device, autocast: bool = False, float64: bool = False) -> Tensor:
    """Logits at every position that is not padding, (positions, V) in fp32 on the CPU.

    With `float64` the model itself becomes float64, and so do the logits.
    """
    model.eval()
    kind = torch.float64 if float64 else torch.float32
    pixels = {name: value.to(device) for name, value in batch.pixels.items()}
    if float64:
        model.double()
        pixels = {name: value.double() if value.is_floating_point() else value for name, value in pixels.items()}
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        out_BTV = model(
            input_ids=batch.input_ids_BT.to(device),
            attention_mask=batch.attention_BT.to(device),
            use_cache=False,
            **pixels,
        ).logits
    return out_BTV.to(kind).cpu()[batch.attention_BT.bool()]


def difference(expected: Tensor, found: Tensor) -> Difference:
    """How far `found` is from `expected`; a value that is not finite counts as infinitely far."""
    gap = expected - found
    if not bool(torch.isfinite(gap).all()):
        return Difference(float("inf"), 1.0, float("inf"))
    largest = float(gap.abs().max())
    return Difference(
        largest, max(1.0, float(expected.abs().max())), float(gap.norm() / expected.norm().clamp_min(1e-30))
    )


def stated(expected: Tensor, found: Tensor, *, trained_on: str, written: str) -> JsonDict:
    """What a record says where weights were trained quantised and are written in full: a difference, not a failure."""
    apart = difference(expected, found)
    return {
        "trained_on": trained_on,
        "written_as": written,
        "quantised_difference": apart.absolute,
        "quantised_difference_share": apart.share,
    }


def is_equal(found: Difference, *, bf16: bool) -> bool:
    """Whether rounding explains the difference."""
    return found.share <= TOLERANCE_BF16 if bf16 else found.absolute / found.scale <= TOLERANCE


def require_equal(found: Difference, *, bf16: bool, what: str) -> None:
    """Raise StateError when the reloaded model is further from the trained one than rounding explains."""
    far, allowed = (found.share, TOLERANCE_BF16) if bf16 else (found.absolute / found.scale, TOLERANCE)
    if not is_equal(found, bf16=bf16):
        raise StateError(
            f"the reloaded {what} differs from the trained model by {found.absolute:.2e} on logits up to "
            f"{found.scale:.3g}: a share of {far:.2e}, allowed is {allowed:.0e}",
            where="export",
            fix="nothing was written; if versions of transformers or peft changed, restore those of the run",
        )
