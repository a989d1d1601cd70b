"""Print the memory estimates of docs/estimates.md: LLaVA-1.5 7B and 13B on every engine. Downloads and allocates nothing.

python scripts/estimates.py [--rows 4] [--text 100] [--answer 10] [--checkpointing]
"""

from __future__ import annotations

import argparse
from typing import Literal

import torch

from mcit.core.schema import AdapterConfig, BaseConfig
from mcit.engine.estimate.activations import activations
from mcit.engine.estimate.engines import StageShape, all_engines
from mcit.engine.estimate.llava import llava_batch, llava_skeleton
from mcit.models import adapters
from mcit.plan.resources import weights_of

LORA = AdapterConfig(kind="lora", rank=128, alpha=256, also_train=["projector"])
FULL = AdapterConfig(kind="none", carry="none", also_train=["projector", "embeddings", "head"])


def shape_of(
    size: Literal["7b", "13b"], adapter: AdapterConfig, *, rows: int, text: int, answer: int, checkpointing: bool
):
    """A stage on one of the two models, bf16 base, CUDA."""
    model = llava_skeleton(size)
    with torch.device("meta"):
        if adapter.kind != "none":
            adapters.add_lora(model, adapter, seed=0)
        adapters.set_trainable(model, adapters.candidates(model, adapter))
    weights = weights_of(model, BaseConfig(dtype="bf16"))
    batch = llava_batch(rows, text=text, answer=answer)
    return StageShape(weights, activations(model, batch, bf16=True, checkpointing=checkpointing))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4, help="rows of a micro-batch (default: 4)")
    parser.add_argument("--text", type=int, default=100, help="positions beside the image's 576 (default: 100)")
    parser.add_argument("--answer", type=int, default=10, help="supervised positions of a row (default: 10)")
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    args = parser.parse_args()
    for adapter, words in ((LORA, "LoRA r=128 on all language linears, and the projector"), (FULL, "full fine-tuning")):
        for size in ("7b", "13b"):
            shape = shape_of(
                size,
                adapter,
                rows=args.rows,
                text=args.text,
                answer=args.answer,
                checkpointing=args.checkpointing,
            )
            show(f"LLaVA-1.5 {size.upper()}, {words}", shape)


def show(title: str, shape: StageShape) -> None:
    """One markdown table: GiB per device, and of host memory per process where there is some."""
    peak = shape.activations.peak / 2**30
    print(f"\n### {title}\n\n{shape.trained / 1e6:,.0f} M numbers train; activations {peak:.1f} GiB per device.\n")
    print("| engine | 1 device | 4 devices | 8 devices |\n|---|---|---|---|")
    columns = [all_engines(shape, nproc=n) for n in (1, 4, 8)]
    for rows in zip(*columns, strict=True):
        cells = [f"{r.device / 2**30:.0f}" + (f" + host {r.host / 2**30:.0f}" if r.host else "") for r in rows]
        print(f"| {rows[0].name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
