"""What a config names and is not there, or does not go together: found before torch is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mcit.core import lookup, optional
from mcit.core.errors import McitError, Problem
from mcit.core.schema import AdapterConfig, RunConfig, StageConfig
from mcit.core.types import FORGET_DATA
from mcit.plan.presets import preset_file


def reference_problems(config: RunConfig) -> list[Problem]:
    """Recipes, families, methods and filters that do not exist. Needs no torch."""
    from mcit.data.recipe import find_recipe
    from mcit.evals.filtering import filter_problems

    problems = []
    found = lookup.missing("models.families", config.base.family, where="base.family")
    problems += [found] if found else []
    if config.base.family == "hf" and not config.base.model:
        problems.append(Problem("base.model", "is required for family hf", "give a folder in HF layout"))
    if config.base.adapter and not (Path(config.base.adapter) / "adapter_config.json").is_file():
        fix = "give a folder written by peft's save_pretrained, or by mcit export --as adapter"
        problems.append(Problem("base.adapter", f"'{config.base.adapter}' holds no adapter_config.json", fix))
    if config.base.chat_template and not Path(config.base.chat_template).expanduser().is_file():
        fix = "give a text file that holds a Jinja chat template"
        problems.append(Problem("base.chat_template", f"'{config.base.chat_template}' is no file", fix))
    problems += filter_problems(config.eval.filters)
    for i, tracker in enumerate(config.track):
        problems += optional.missing(tracker, where=f"track[{i}]")
    for i, entry in enumerate(config.probes):
        if "use" not in entry:
            problems.append(Problem(f"probes[{i}]", "has no use", "write {use: …} and the probe's settings"))
            continue
        found = lookup.missing("probes", str(entry["use"]), where=f"probes[{i}].use")
        problems += [found] if found else []
    for i, recipe in enumerate(config.without):
        try:
            find_recipe(recipe)
        except McitError as error:
            problems.append(Problem(f"without[{i}]", error.what, error.fix))
    names: dict[str, int] = {}
    for i, stage in enumerate(config.stages):
        where = f"stages[{i}]"
        for key in ("recipe", *FORGET_DATA):
            for recipe in stage.recipes_of(key):
                try:
                    find_recipe(recipe)
                except McitError as error:
                    problems.append(Problem(f"{where}.{key}", error.what, error.fix))
        for k, method in enumerate(stage.methods):
            if "name" not in method:
                problems.append(Problem(f"{where}.methods[{k}]", "has no name", "write {name: …} or {use: …}"))
                continue
            found = lookup.missing("methods", str(method["name"]), where=f"{where}.methods[{k}].name")
            if found and preset_file(method["name"]).is_file():
                fix = f"write {{use: {method['name']}}}: it is a preset of several methods"
                found = replace(found, fix=fix)
            problems += [found] if found else []
        if stage.name:
            if stage.name in names:
                problems.append(
                    Problem(f"{where}.name", f"is also the name of stages[{names[stage.name]}]", "rename one")
                )
            names.setdefault(stage.name, i)
        if stage.adapter.dora:
            what = (
                "DoRA divides by the norm of weight plus update, so what a stage adds is no B A that could be exported"
            )
            fix = "leave it out; adapter.rslora: true is exact"
            problems.append(Problem(f"{where}.adapter.dora", what, fix))
        problems += _moments_problems(config.stages[i - 1] if i else None, stage, where)
        following = config.stages[i + 1 : i + 2]
        if stage.adapter.carry == "keep" and following and following[0].adapter.kind == "none":
            problems.append(
                Problem(f"{where}.adapter.carry", "keep, but the next stage trains no adapter", "use carry: merge")
            )
        elif stage.adapter.carry == "keep" and following and stage.adapter.experts != following[0].adapter.experts:
            kinds = " and ".join(f"{s.adapter.experts or 'no'} experts" for s in (stage, *following))
            what = f"keep, but an adapter with {kinds} in the next stage are two"
            problems.append(
                Problem(f"{where}.adapter.carry", what, "use one kind and number of experts, or carry: stack")
            )
        elif stage.adapter.carry == "keep" and following:
            problems += _shape_problems(stage.adapter, following[0].adapter, f"stages[{i + 1}].adapter", i)
    return problems


def _shape_problems(kept: AdapterConfig, own: AdapterConfig, where: str, before: int) -> list[Problem]:
    """Settings that an adapter which goes on training cannot change."""
    problems = []
    for key in ("rank", "alpha", "rslora", "targets"):
        mine, other = (sorted(v) if isinstance(v := getattr(a, key), list) else v for a in (own, kept))
        if mine != other:
            what = f"is {mine}, but the adapter that goes on from stages[{before}] has {other}"
            problems.append(Problem(f"{where}.{key}", what, f"use one {key}, or another carry in stages[{before}]"))
    return problems


def _moments_problems(before: StageConfig | None, stage: StageConfig, where: str) -> list[Problem]:
    """An optimiser that goes on from a stage that leaves none, of another kind, or under names that are of new tensors."""
    if before is None or stage.optim.moments == "reset":
        return []
    fix = "or set optim.moments: reset here"
    if before.optim.moments == "reset":
        found = ("keep, but the stage before leaves no moments", f"set optim.moments: keep there too, {fix}")
    elif before.optim.kind != stage.optim.kind:
        found = (f"keep, but the stage before trains with {before.optim.kind}", f"use one optim.kind, {fix}")
    elif before.adapter.kind != stage.adapter.kind or stage.adapter.kind != "none" and before.adapter.carry != "keep":
        what = f"keep, but the stage before has adapter.kind: {before.adapter.kind}, carry: {before.adapter.carry}"
        found = (f"{what}, so this stage trains new tensors", f"set adapter.carry: keep there, {fix}")
    else:
        return []
    return [Problem(f"{where}.optim.moments", *found)]
