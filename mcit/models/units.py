"""What the weights are called: parameter groups, LoRA targets, and the units that methods are handed.

Groups are found from the model's own accessors (`get_decoder`, output and input embeddings) and from the names that
transformers gives vision towers and projectors, so that any image-text-to-text model is covered without a list of models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from mcit.core.config import suggestion
from mcit.core.errors import PlanError
from mcit.core.types import WeightUnit

PROJECTOR = re.compile(r"(?:^|[._])(?:projector|merger|connector|aligner|embed_vision)(?=[._]|$)")
"""Between tower and language model, also in parts: Qwen3-VL has a ``merger`` and a ``deepstack_merger_list``."""
TOWER = frozenset({"vision_tower", "vision_model", "visual", "vision_encoder", "image_tower", "vision_embed_tokens"})
_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<role>[AB])\.(?P<adapter>[^.]+)\.weight$")


def group_of(name: str) -> str:
    """Group of a parameter by name: projector, tower, head, embeddings or language."""
    parts = set(name.split("."))
    if PROJECTOR.search(name):
        return "projector"
    if parts & TOWER:
        return "tower"
    if "lm_head" in parts:
        return "head"
    if parts & {"embed_tokens", "wte"}:
        return "embeddings"
    return "language"


def outermost(model: nn.Module, *groups: str) -> list[nn.Module]:
    """The largest modules whose parameters belong to one of these groups."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if name and not inside and group_of(f"{name}.weight") in groups:
            found[name] = module
    return list(found.values())


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the model itself by the names they have without adapters (tied ones once)."""
    return {n.replace(".base_layer.", "."): p for n, p in model.named_parameters() if ".lora_" not in n}


def decoder_prefix(model: nn.Module) -> str:
    """Qualified name of the language decoder. Raises PlanError if the model does not say which it is."""
    decoder = model.get_decoder()  # type: ignore[operator]
    for name, module in model.named_modules():
        if module is decoder and name:
            return name
    raise PlanError("the model has no separate decoder", where=type(model).__name__, fix="list adapter.targets by name")


def lora_targets(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Sorted full names of the linear modules to adapt.

    ``language-linear`` is every linear below the decoder. A list holds name endings matched at a dot; each must match
    something, and the vision tower is matched only by an ending that names it.

    Raises PlanError for an ending that matches no linear module.
    """
    linears = [n for n, m in model.named_modules() if _is_linear(m) and ".lora_" not in n and ".base_layer" not in n]
    if targets == "language-linear":
        prefix = decoder_prefix(model) + "."
        found = [n for n in linears if n.startswith(prefix)]
        if not found:
            raise PlanError("no linear module below the decoder", where="adapter.targets", fix="list them by name")
        return sorted(found)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    out: set[str] = set()
    for ending in wanted:
        matches = {n for n in linears if n == ending or n.endswith("." + ending)}
        if not any(part in TOWER for part in ending.split(".")):
            matches = {n for n in matches if group_of(n) != "tower"}
        if not matches:
            endings = {n.rsplit(".", 1)[-1] for n in linears}
            raise PlanError(
                f"'{ending}' matches no linear module", where="adapter.targets", fix=suggestion(ending, endings)
            )
        out |= matches
    return sorted(out)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or hasattr(module, "base_layer") and isinstance(module.base_layer, nn.Linear)


def weight_units(
    shapes: Mapping[str, tuple[int, ...]], trainable: Iterable[str], *, adapter: str, scales: Mapping[str, float]
) -> list[WeightUnit]:
    """Units of everything trainable, sorted by name: one per LoRA pair, one per other tensor.

    A mixture of experts has a unit for each of its tensors: no product of two of them is what it does.
    `shapes` by parameter name as the model reports them, `scales` alpha/rank by module name.
    """
    pairs: dict[str, dict[str, str]] = {}
    units: list[WeightUnit] = []
    for name in trainable:
        match = _LORA.match(name)
        if match and f"{match['module']}.lora_A.{match['adapter']}.router" in shapes:
            match = None
        if match and match["adapter"] == adapter:
            pairs.setdefault(match["module"], {})[match["role"]] = name
        elif not match:
            units.append(WeightUnit(name, "tensor", {"weight": name}, shapes[name], block=block_of(name)))
    for module, roles in pairs.items():
        rank_in = {role: shapes[name] for role, name in roles.items()}
        shape = (rank_in["B"][0], rank_in["A"][1]) if len(roles) == 2 else ()
        units.append(WeightUnit(module, "lora", dict(sorted(roles.items())), shape, scales[module], block_of(module)))
    return sorted(units, key=lambda unit: unit.name)


def block_units(units: Iterable[WeightUnit], shapes: Mapping[str, tuple[int, ...]]) -> list[WeightUnit]:
    """One unit of kind ``block`` per transformer block with LoRA pairs, sorted by name.

    `shapes` by parameter name. A pair outside numbered blocks belongs to the block of its parent module.
    """
    blocks: dict[str, dict[str, str]] = {}
    for unit in sorted(units, key=lambda unit: unit.name):
        if unit.kind == "lora":
            roles = {f"{unit.name}:{role}": name for role, name in unit.params.items()}
            blocks.setdefault(unit.block, {}).update(roles)
    return [
        WeightUnit(name, "block", roles, (sum(math.prod(shapes[p]) for p in roles.values()),), block=name)
        for name, roles in sorted(blocks.items())
    ]


def block_of(name: str) -> str:
    """Name up to the first number (``….layers.3``), or the parent module for tensors outside numbered blocks."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ".".join(parts[:-1])


def audit(model: nn.Module) -> list[dict[str, object]]:
    """Trained and frozen parameter counts and dtypes per group, for the table at the start of a stage."""
    rows: dict[str, dict[str, object]] = {}
    for name, parameter in model.named_parameters():
        group = "adapter" if ".lora_" in name else group_of(name)
        row = rows.setdefault(group, {"group": group, "trained": 0, "frozen": 0, "dtypes": set()})
        key = "trained" if parameter.requires_grad else "frozen"
        numbers, stored = stored_as(parameter)
        row[key] = int(str(row[key])) + numbers
        dtypes = row["dtypes"]
        if isinstance(dtypes, set):
            dtypes.add(f"{key} {stored}")
    order = ["tower", "projector", "language", "embeddings", "head", "adapter"]
    table = [rows[g] for g in order if g in rows]
    return [{**row, "dtypes": sorted(row["dtypes"])} for row in table]  # type: ignore[call-overload]


def stored_as(parameter: nn.Parameter) -> tuple[int, str]:
    """How many numbers a parameter stands for, and how they are stored (``float32``, ``nf4``, …)."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:  # two 4-bit codes to a byte
        return math.prod(state.shape), str(state.quant_type)
    return parameter.numel(), str(parameter.dtype).removeprefix("torch.")


def dtype_problems(model: nn.Module) -> list[str]:
    """Names of trained tensors that are not fp32 (a small learning rate would be lost in their rounding)."""
    return [n for n, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
