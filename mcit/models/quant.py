"""Bases stored in 4 or 8 bits: which modules are quantised, how they multiply, and their bytes by name.

Only linears below the language decoder are quantised; tower, projector, embeddings and head never are.
``nf4``: Dettmers et al., "QLoRA", NeurIPS 2023, arXiv:2305.14314, section 3: blocks of 64 values, 16 levels, one scale per
block, and with double quantisation the scales in 8 bits. ``int8``: one scale per row, ``w = code * scale / 127``, as in
Dettmers et al., "LLM.int8()", NeurIPS 2022, arXiv:2208.07339. Both multiply with the dequantised weights. LLM.int8()'s own
product also rounds the inputs to 8 bits and picks its outlier columns over the whole batch, so that a row's result would
depend on the rows beside it; that product is not used.
Shapes: B… leading axes, O out features, I in features.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcit.core.errors import StateError
from mcit.models.basefiles import read_mapping
from mcit.models.units import group_of, lora_targets

QUANTISED = frozenset({"nf4", "int8"})


def full_dtype(dtype: str, device: torch.device | str) -> torch.dtype:
    """Storage of what is not quantised, which is also the dtype of products: on a quantised base bf16 on CUDA, fp32 on a CPU.

    A CPU gains nothing from bf16 there, and fp32 makes training, merging order and export comparable to rounding.
    """
    if dtype in QUANTISED:
        return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]


def runs_bf16(dtype: str, device: torch.device | str) -> bool:
    """Whether forward passes run under bf16 autocast."""
    return full_dtype(dtype, device) is torch.bfloat16


def quantised_already(path: Path | str) -> str | None:
    """The quantisation method that a model folder's own config names, or None. Raises ConfigError for no mapping."""
    file = Path(path) / "config.json"
    config = read_mapping(file) if file.is_file() else {}
    inner = config.get("text_config")
    found = config.get("quantization_config") or (inner.get("quantization_config") if isinstance(inner, dict) else None)
    if not found:
        return None
    return str(found.get("quant_method", "unknown")) if isinstance(found, dict) else "unknown"


def language_linears(model: nn.Module) -> list[str]:
    """Names of the modules that are quantised, sorted; `model` may be a skeleton without weights.

    Raises PlanError when the model does not say what its decoder is.
    """
    return [n for n in lora_targets(model, "language-linear") if group_of(f"{n}.weight") == "language"]


def settings(skeleton: nn.Module, *, dtype: str, double_quant: bool, compute: torch.dtype) -> Any:
    """The ``BitsAndBytesConfig`` that quantises exactly `language_linears`: every other linear is listed as skipped."""
    from transformers import BitsAndBytesConfig

    chosen = set(language_linears(skeleton))
    skip = sorted(n for n, m in skeleton.named_modules() if isinstance(m, nn.Linear) and n not in chosen)
    if dtype == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=skip,
    )


def quantised_modules(model: nn.Module) -> dict[str, Any]:
    """Modules whose weight is quantised, by their name without adapters, sorted."""
    found = {n: m for n, m in model.named_modules() if _kind(m)}
    return {n.removesuffix(".base_layer").replace(".base_layer.", "."): found[n] for n in sorted(found)}


def is_quantised(model: nn.Module) -> bool:
    """Whether any weight is."""
    return any(_kind(m) for m in model.modules())


def _kind(module: nn.Module) -> str:
    weight = getattr(module, "weight", None) if isinstance(module, nn.Linear) else None
    if getattr(weight, "quant_state", None) is not None:
        return "nf4"
    return "int8" if getattr(weight, "SCB", None) is not None else ""


def prepare(model: nn.Module, expected: list[str]) -> None:
    """Make freshly loaded modules compute the same whatever their mode and batch.

    Raises StateError when other modules than `expected` were quantised.
    """
    found = quantised_modules(model)
    if list(found) != expected:
        odd = sorted(set(found) ^ set(expected))
        raise StateError(
            f"{len(odd)} modules were quantised against the plan, or were not, the first is '{odd[0]}'",
            where="base.dtype",
            fix="set base.dtype: bf16 and report the model's architecture",
        )
    for module in found.values():
        if _kind(module) == "int8":
            module.forward = types.MethodType(_int8_forward, module)
        else:  # else a CPU with bf16 instructions rewrites the frozen weights in the first pass without gradients
            module.support_avx512bf16_for_cpu = False


def _int8_forward(self: Any, x: Tensor) -> Tensor:
    """``x @ w.T + bias``, (B…, I) to (B…, O), in autocast's dtype or that of `x`; weights stay int8 between passes."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    out = _Int8Product.apply(x.to(dtype), self.weight.data, self.weight.SCB)
    return out if self.bias is None else out + self.bias.to(dtype)


class _Int8Product(torch.autograd.Function):
    """Product with a frozen int8 matrix; backward dequantises again instead of keeping the matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes_OI: Tensor, scale_O: Tensor) -> Tensor:
        ctx.save_for_backward(codes_OI, scale_O)
        return F.linear(x, dequantised(codes_OI, scale_O, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        codes_OI, scale_O = ctx.saved_tensors
        return gradients[0] @ dequantised(codes_OI, scale_O, gradients[0].dtype), None, None


def dequantised(codes_OI: Tensor, scale_O: Tensor, dtype: torch.dtype) -> Tensor:
    """``code * scale / 127`` as (O, I), multiplied in fp32 and rounded once."""
    out_OI = torch.empty(codes_OI.shape, dtype=dtype, device=codes_OI.device)
    return torch.mul(codes_OI, scale_O.float()[:, None] / 127.0, out=out_OI)


def scale_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What quantised weights need besides their codes, by name: scales, levels, and their settings as bytes."""
    out: dict[str, Tensor] = {}
    for name, module in quantised_modules(model).items():
        weight = module.weight
        parts = weight.quant_state.as_dict(packed=True) if _kind(module) == "nf4" else {"SCB": weight.SCB}
        out.update({f"{name}.weight.{key}": tensor for key, tensor in parts.items()})
    return out


def stored_bytes(module: nn.Module) -> int:
    """Bytes of one quantised module: codes, scales and levels, without its bias."""
    weight: Any = module.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return int(weight.nbytes + weight.SCB.nbytes)
    tensors = [weight.data, state.absmax, state.code]
    if state.nested:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    return sum(int(t.nbytes) for t in tensors)


@contextlib.contextmanager
def rounded_to_4bit(model: nn.Module) -> Iterator[None]:
    """A block in which the language model's linears hold what nf4 leaves of their weights; bit for bit back afterwards.

    Modules that are quantised already stay as they are.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    found = [model.get_submodule(name) for name in language_linears(model)]
    modules: list[Any] = [getattr(module, "base_layer", module) for module in found]
    plain = [module for module in modules if not _kind(module)]
    kept = [module.weight.detach().clone() for module in plain]
    try:
        with torch.no_grad():
            for module in plain:
                packed, state = quantize_4bit(module.weight.detach(), quant_type="nf4")
                module.weight.copy_(dequantize_4bit(packed, state))
        yield
    finally:
        with torch.no_grad():
            for module, weight in zip(plain, kept, strict=True):
                module.weight.copy_(weight)
