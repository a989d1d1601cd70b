"""Problems of pools of adapters and of the router that chooses among them."""

from __future__ import annotations

from mcit.core import lookup
from mcit.core.config import parse
from mcit.core.errors import Problem
from mcit.core.schema import RunConfig
from mcit.core.types import RouterSpec


def router_spec(config: RunConfig) -> tuple[RouterSpec | None, list[Problem]]:
    """The run's router with its settings checked, and what does not go with a pool."""
    pools = [i for i, stage in enumerate(config.stages) if stage.adapter.carry == "pool"]
    problems: list[Problem] = []
    if pools and len(pools) < len(config.stages):
        other = next(i for i in range(len(config.stages)) if i not in pools)
        what = f"pool in stages[{pools[0]}] and {config.stages[other].adapter.carry} here: a pool is of the whole run"
        problems.append(Problem(f"stages[{other}].adapter.carry", what, "use pool in every stage or in none"))
    for i in pools:
        if config.stages[i].adapter.also_train:
            what = "what trains beside the adapters of a pool would be shared by all of them"
            problems.append(Problem(f"stages[{i}].adapter.also_train", what, "set also_train: []"))
    if pools and config.router is None:
        problems.append(Problem("router", "carry: pool needs one", "write router: {use: oracle}, or another"))
    if config.router is None:
        return None, problems
    if not pools:
        problems.append(Problem("router", "there is no pool to choose from", "set adapter.carry: pool, or remove it"))
    name = config.router.get("use")
    if not isinstance(name, str):
        return None, [
            *problems,
            Problem("router.use", "is required", "name one of " + ", ".join(lookup.known("routers"))),
        ]
    missing = lookup.missing("routers", name, where="router.use")
    if missing:
        return None, [*problems, missing]
    from mcit.routers.base import Router

    cls = lookup.class_of("routers", name, base=Router)
    settings, found = parse(cls.Config, {k: v for k, v in config.router.items() if k != "use"}, where="router")
    spec = RouterSpec(name, settings, joins=cls.join is not Router.join, members="members" in cls.needs)
    return spec, problems + found + (_unlike(config, name) if spec.members else [])


def _unlike(config: RunConfig, name: str) -> list[Problem]:
    """Adapters that cannot take the place of one another."""
    problems = []
    for i, stage in enumerate(config.stages):
        if stage.adapter.kind == "moe_lora":
            what = f"is moe_lora, but the router {name} reads rows under earlier adapters, which must be plain LoRA"
            problems.append(Problem(f"stages[{i}].adapter.kind", what, "use kind: lora, or another router"))
        for key in ("rank", "targets"):
            mine, other = getattr(stage.adapter, key), getattr(config.stages[0].adapter, key)
            if mine != other:
                what = f"is {mine}, in stages[0] {other}, but the router {name} reads rows under earlier adapters"
                problems.append(Problem(f"stages[{i}].adapter.{key}", what, f"use one {key} in every stage"))
    return problems
