"""Low-rank adapters on a live model: add, read, merge, stack, remove. Layers come from peft, weights from us.

Layers are injected in place, so the model keeps its class and its top-level forward. The adapter being trained is always
called ``default``; adapters kept frozen below it (carry ``stack``) are called ``stage01``, ``stage02``, ….
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from mcit.core.errors import PlanError, StateError
from mcit.core.optional import unseen
from mcit.core.schema import AdapterConfig
from mcit.models.adapterfile import AdapterFile, LoraPair, folded, product
from mcit.models.experts import ExpertsA, place
from mcit.models.quant import quantised_modules
from mcit.models.units import base_parameters, group_of, lora_targets

ACTIVE = "default"


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Adapted modules by their name in the model, sorted."""
    peft = sys.modules.get("peft.tuners.lora")  # a plan has no layer of it, and need not import it
    return {n: m for n, m in sorted(model.named_modules()) if isinstance(m, peft.LoraLayer)} if peft else {}


def add_lora(model: nn.Module, config: AdapterConfig, *, seed: int, name: str = ACTIVE) -> None:
    """Inject a fresh adapter (A random, B zero) on the configured targets; its values depend on `seed` alone.

    Raises PlanError when a target matches nothing.
    """
    alpha = config.alpha * config.rank**0.5 if config.rslora else config.alpha  # scale: alpha over root of rank
    targets = lora_targets(model, config.targets)
    _inject(model, name, targets, config.rank, alpha, config.dropout, seed, experts=config.experts)


def _inject(
    model: nn.Module,
    name: str,
    targets: Sequence[str],
    rank: int,
    alpha: float,
    dropout: float,
    seed: int,
    *,
    experts: int | None = None,
) -> None:
    with unseen("bitsandbytes"):
        from peft import LoraConfig, inject_adapter_in_model
    live = set(lora_layers(model))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=list(targets),
        bias="none",
    )
    config.inference_mode = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=name)
        for layer in lora_layers(model).values():
            if experts is not None and name in layer.lora_A:
                place(layer, name, experts, dropout)
    layers = lora_layers(model)
    missing = set(targets) - set(layers)
    if missing or set(layers) - live - set(targets):
        what = f"adapter landed on other modules than asked for, e.g. {sorted(missing)[:1]}"
        raise PlanError(what, where="adapter.targets", fix="list endings of module names that are linear layers")
    for layer in layers.values():
        if name in layer.lora_A:
            for part in (layer.lora_A[name], layer.lora_B[name]):
                part.weight.data = part.weight.data.float()
    _activate(model)


def _activate(model: nn.Module) -> None:
    """All adapters of every layer act, frozen ones first, in one fixed order."""
    for layer in lora_layers(model).values():
        names = sorted(layer.lora_A, key=lambda n: (n == ACTIVE, n))
        layer.set_adapter(names)
        layer.requires_grad_(False)


def attach(model: nn.Module, file: AdapterFile, *, name: str) -> None:
    """Inject an adapter with given values, frozen."""
    by_shape: dict[tuple[int, float, int | None], list[str]] = {}
    for module, pair in file.lora.items():
        experts = None if pair.router_EI is None else len(pair.router_EI)
        by_shape.setdefault((pair.A_RI.shape[0], pair.scale, experts), []).append(module)
    if len(by_shape) > 1:
        raise StateError(
            "the adapter has different ranks per module", where=name, fix="merge it instead of keeping it live"
        )
    for (rank, scale, experts), modules in by_shape.items():
        _inject(model, name, sorted(modules), rank, scale * rank, 0.0, 0, experts=experts)
    with torch.no_grad():
        for module, pair in file.lora.items():
            layer: Any = model.get_submodule(module)
            layer.lora_A[name].weight.copy_(pair.A_RI)
            layer.lora_B[name].weight.copy_(pair.B_OR)
            if pair.router_EI is not None:
                layer.lora_A[name].router.copy_(pair.router_EI)
    set_full(model, file)


def attach_groups(model: nn.Module, file: AdapterFile, *, name: str) -> None:
    """Like `attach`, for an adapter whose ranks may differ: one live adapter per rank and scale, `name`00, `name`01, …."""
    groups: dict[tuple[int, float], dict[str, LoraPair]] = {}
    for module, pair in sorted(file.lora.items()):
        groups.setdefault((pair.rank, pair.scale), {})[module] = pair
    for i, (_, pairs) in enumerate(sorted(groups.items())):
        attach(model, AdapterFile(pairs), name=f"{name}{i:02d}")
    set_full(model, file)


def set_full(model: nn.Module, file: AdapterFile) -> None:
    """Put the trained non-adapter tensors (projector, …) in place, in fp32.

    Raises StateError when a tensor is not of this model.
    """
    named = base_parameters(model)
    for name, value in file.full.items():
        parameter = named.get(name)
        if parameter is None or parameter.shape != value.shape:
            raise StateError(
                f"tensor '{name}' does not fit this model", where="adapter", fix="use the base it was made for"
            )
        parameter.data = value.to(parameter.device, torch.float32).clone()


@torch.no_grad()
def merge(model: nn.Module, file: AdapterFile) -> None:
    """Add scale * B @ A to the weights in fp32 with one cast, and put full tensors in place.

    Raises StateError when a module is not of this model, or is quantised, and for a mixture that is no matrix.
    """
    low = quantised_modules(model)
    for module, pair in sorted(file.lora.items()):
        if module in low:
            raise StateError(
                f"module '{module}' is quantised, and merging into it would lose the update in rounding",
                where="adapter",
                fix="use carry: keep or stack",
            )
        try:
            target: Any = model.get_submodule(module)
        except AttributeError:
            target = None
        weight = getattr(getattr(target, "base_layer", target), "weight", None)
        if weight is None or tuple(weight.shape) != (pair.B_OR.shape[0], pair.A_RI.shape[1]):
            raise StateError(
                f"module '{module}' does not fit this model", where="adapter", fix="use the base it was made for"
            )
        pair = folded(pair, where=module)
        delta = product(LoraPair(pair.A_RI.to(weight.device), pair.B_OR.to(weight.device), pair.scale))
        weight.copy_((weight.float() + delta).to(weight.dtype))
    set_full(model, file)


def remove(model: nn.Module, *, name: str = ACTIVE) -> None:
    """Take one adapter off every layer; layers without any adapter left become plain modules again."""
    for path, layer in lora_layers(model).items():
        if name in layer.lora_A:
            layer.delete_adapter(name)
        if not len(layer.lora_A):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    config = getattr(model, "peft_config", None)
    if isinstance(config, dict):
        config.pop(name, None)
    if not lora_layers(model):
        for attribute in ("peft_config", "_hf_peft_config_loaded"):
            if attribute in vars(model):
                delattr(model, attribute)
    else:
        _activate(model)


def read_live(model: nn.Module, *, full: Iterable[str] = (), name: str = ACTIVE) -> AdapterFile:
    """Copies of the live adapter and of the named other tensors, fp32 on the CPU."""
    lora = {
        path: LoraPair(
            layer.lora_A[name].weight.detach().float().cpu().clone(),
            layer.lora_B[name].weight.detach().float().cpu().clone(),
            float(layer.scaling[name]),
            layer.lora_A[name].router.detach().float().cpu().clone() if _mixed(layer, name) else None,
        )
        for path, layer in lora_layers(model).items()
        if name in layer.lora_A
    }
    named = base_parameters(model)
    return AdapterFile(lora, {n: named[n].detach().float().cpu().clone() for n in sorted(full)}, {})


def _mixed(layer: Any, name: str) -> bool:
    return isinstance(layer.lora_A[name], ExpertsA)


@contextlib.contextmanager
def disabled(model: nn.Module, *, name: str = ACTIVE) -> Iterator[None]:
    """Run without one adapter; the others stay active."""
    layers = [layer for layer in lora_layers(model).values() if name in layer.lora_A]
    before = [list(layer.active_adapters) for layer in layers]
    flags = {p: p.requires_grad for layer in layers for p in layer.parameters()}
    for layer, names in zip(layers, before, strict=True):
        rest = [n for n in names if n != name]
        layer._active_adapter = rest  # not set_adapter(): that would also change requires_grad
    try:
        yield
    finally:
        for layer, names in zip(layers, before, strict=True):
            layer._active_adapter = names
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def candidates(model: nn.Module, config: AdapterConfig) -> frozenset[str]:
    """Names of everything a stage with this adapter setting trains, before methods narrow it.

    Raises PlanError when a group has no parameters in this model, or a trained module is also adapted.
    """
    names: set[str] = set()
    groups: dict[str, set[str]] = {}
    for name, _ in model.named_parameters():
        if ".lora_" in name:
            if f".{ACTIVE}." in name:
                names.add(name)
        else:
            groups.setdefault(group_of(name), set()).add(name)
    if config.kind == "none":
        names |= groups.get("language", set())
    for group in config.also_train:
        if group not in groups:
            tied = " (its weights are tied to the embeddings)" if group == "head" else ""
            raise PlanError(f"the model has no '{group}' parameters{tied}", where="adapter.also_train", fix="remove it")
        clash = [n for n in groups[group] if ".base_layer." in n]
        if clash:
            raise PlanError(
                f"'{clash[0]}' is both adapted and trained", where="adapter", fix=f"remove '{group}' or the target"
            )
        names |= groups[group]
    return frozenset(names)


def set_trainable(model: nn.Module, names: frozenset[str]) -> None:
    """Exactly these parameters require gradients, and they are fp32."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if name in names:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def set_dropout(model: nn.Module, dropout: float, *, name: str = ACTIVE) -> None:
    """Dropout on the input of one adapter."""
    for layer in lora_layers(model).values():
        if name in layer.lora_A:
            made = nn.Dropout(dropout) if dropout else nn.Identity()
            if _mixed(layer, name):
                layer.lora_A[name].lora_dropout = made
            else:
                layer.lora_dropout[name] = made
