"""Tiny models by family, built once per session."""

import functools

from mcit.core.schema import AdapterConfig, BaseConfig
from mcit.models import adapters
from mcit.models.families import tiny
from mcit.models.load import load_base
from mcit.models.units import weight_units


def tiny_path(seed=0):
    return tiny.materialize(BaseConfig(family="tiny", seed=seed))


def tiny_model(*, dtype="fp32", seed=0):
    return load_base(tiny_path(seed), dtype=dtype)


def adapted(model, *, rank=4, alpha=8.0, also_train=("projector",), seed=3, only=None, **kwargs):
    """Add LoRA, set what trains; returns the units."""
    config = AdapterConfig(rank=rank, alpha=alpha, also_train=list(also_train), **kwargs)
    if config.kind != "none":
        adapters.add_lora(model, config, seed=seed)
    names = adapters.candidates(model, config)
    if only is not None:
        names = frozenset(n for n in names if only(n))
    adapters.set_trainable(model, names)
    return units_of(model, names)


def units_of(model, names):
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    scales = {
        n: float(layer.scaling[adapters.ACTIVE])
        for n, layer in adapters.lora_layers(model).items()
        if adapters.ACTIVE in layer.lora_A
    }
    return weight_units(shapes, names, adapter=adapters.ACTIVE, scales=scales)


def off(model):
    return functools.partial(adapters.disabled, model)
