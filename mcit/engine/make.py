"""Which engine a config asks for."""

from __future__ import annotations

from torch import nn

from mcit.core.schema import EngineConfig
from mcit.engine.base import Engine, EngineSpec
from mcit.engine.plain import PlainEngine


def make_engine(model: nn.Module, spec: EngineSpec, config: EngineConfig) -> Engine:
    """``plain`` on one process or over DDP, or DeepSpeed's ZeRO; all ranks call it."""
    if config.kind == "plain":
        return PlainEngine(model, spec)
    from mcit.engine.zero import ZeroEngine

    return ZeroEngine(model, spec, stage=int(config.kind.removeprefix("zero")), offload=config.offload)
