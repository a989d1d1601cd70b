"""From a run config to a Plan: every check, all problems together, no weights loaded.

Schema and reference problems come first and need no torch; then data, then composition on the model's skeleton (shapes on
the meta device), then the machine.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mcit.core import lookup, optional
from mcit.core.config import Config, MethodConfig, apply_overrides, load_yaml, parse, suggestion, without_unknown
from mcit.core.doing import doing
from mcit.core.errors import ConfigError, DataError, McitError, PlanError, Problem
from mcit.core.files import digest_of, sha256_file, sha256_tree
from mcit.core.paths import find_shipped, shipped
from mcit.core.schema import RunConfig, StageConfig
from mcit.core.seeds import seed_for
from mcit.core.types import FORGET_DATA, GateSpec, JsonDict, MethodSpec, Plan, ProbeSpec, Stage
from mcit.plan.datasets import Announce, StageData, build_pools, build_tasks, recipes_of
from mcit.plan.gates import gate_json, gate_problems, gate_specs
from mcit.plan.pools import router_spec
from mcit.plan.presets import adapter_settings, expanded, preset_file, read_preset
from mcit.plan.slices import slice_problems, slice_tasks, slices_json
from mcit.runs.run import config_digest


# ---- 1. schema -------------------------------------------------------------------------------------------------------
def read_config(name: str, overrides: list[str] | None = None) -> tuple[RunConfig, str]:
    """Config and text of a file, or of a shipped config by name.

    Raises ConfigError with every schema and reference problem.
    """
    path = find_shipped("configs", name)
    if path is None:
        known = sorted(p.stem for p in shipped("configs").glob("*.yaml"))
        if Path(name).is_dir():
            raise ConfigError("is a folder, not a config", where=name, fix="name the YAML file in it")
        raise ConfigError("no such config", where=name, fix=suggestion(name, known))
    data = lookup.anchored(apply_overrides(load_yaml(path), overrides or []), path.parent)
    return _checked(data, where=f"{path}: "), path.read_text(encoding="utf-8-sig")


def read_mapping(content: Mapping[str, Any], overrides: list[str] | None = None) -> tuple[RunConfig, str]:
    """The same of what a config file would hold; relative paths are meant from the current folder."""
    data = apply_overrides(json.loads(json.dumps(dict(content), default=str)), overrides or [])
    return _checked(lookup.anchored(data, Path.cwd())), yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _checked(data: Any, *, where: str = "") -> RunConfig:
    config, problems = parse_run(data)
    if config is not None:
        problems = problems + reference_problems(config)
    if problems or config is None:
        raise ConfigError.of([Problem(f"{where}{p.where}", p.what, p.fix) for p in problems])
    return config


def parse_run(data: Any) -> tuple[RunConfig | None, list[Problem]]:
    """Lay ``defaults`` under every stage, fetch ``{use: …}`` methods, validate."""
    if not isinstance(data, Mapping):
        return None, [Problem("config", "expected a mapping of keys to values", "see configs/ for examples")]
    raw = dict(data)
    defaults = raw.pop("defaults", None) or {}
    problems: list[Problem] = []
    if not isinstance(defaults, Mapping):
        return None, [Problem("defaults", "expected a mapping", "write keys of a stage below it, or leave it out")]
    for key in defaults:
        if key not in StageConfig.model_fields:
            problems.append(Problem(f"defaults.{key}", "unknown key", suggestion(str(key), StageConfig.model_fields)))
    stages = raw.get("stages")
    if isinstance(stages, Mapping):
        from mcit.plan.expand import expanded

        stages, found = expanded(stages, seed=raw.get("seed", 0))
        if found:
            return None, problems + found
    if isinstance(stages, list):
        merged = []
        for i, stage in enumerate(stages):
            if isinstance(stage, Mapping):
                known = {k: v for k, v in defaults.items() if k in StageConfig.model_fields}
                stage = {**known, **stage}
                stage["methods"], found = _use(stage.get("methods"), f"stages[{i}].methods")
                problems += found
                if "adapter" in stage:
                    stage["adapter"], found = adapter_settings(stage["adapter"], f"stages[{i}].adapter")
                    problems += found
            merged.append(stage)
        raw["stages"] = merged
    config, found = parse(RunConfig, raw)
    if config is None:  # an unknown key hides no wrong reference: everything is shown together
        rest, _ = parse(RunConfig, without_unknown(RunConfig, raw))
        found = found + (reference_problems(rest) if rest is not None else [])
    return config, problems + found


def _use(methods: Any, where: str) -> tuple[Any, list[Problem]]:
    if methods is None:
        return [], []
    if not isinstance(methods, list):
        return methods, []
    out: list[Any] = []
    problems: list[Problem] = []
    for i, entry in enumerate(methods):
        if isinstance(entry, Mapping) and "use" in entry:
            own = str(entry["use"]).endswith((".yaml", ".yml"))
            path = Path(str(entry["use"])) if own else preset_file(entry["use"])
            if own and not path.is_file():
                problems.append(Problem(f"{where}[{i}].use", f"there is no file {path}", "check the path"))
                continue
            if not path.is_file():
                known = [p.stem for p in (shipped("configs") / "methods").glob("*.yaml")]
                fix = suggestion(str(entry["use"]), known)
                problems.append(Problem(f"{where}[{i}].use", f"there is no configs/methods/{entry['use']}.yaml", fix))
                continue
            given = {k: v for k, v in entry.items() if k != "use"}
            found, wrong = expanded(read_preset(path), given, f"{where}[{i}]")
            out += found
            problems += wrong
            continue
        out.append(entry)
    return out, problems


# ---- 2. references ---------------------------------------------------------------------------------------------------
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
    elif before.adapter.kind != stage.adapter.kind or stage.adapter.kind == "lora" and before.adapter.carry != "keep":
        what = f"keep, but the stage before has adapter.kind: {before.adapter.kind}, carry: {before.adapter.carry}"
        found = (f"{what}, so this stage trains new tensors", f"set adapter.carry: keep there, {fix}")
    else:
        return []
    return [Problem(f"{where}.optim.moments", *found)]


def _warmup_notes(stage: Stage, where: str) -> list[Problem]:
    """A warm-up that the stage ends in, as transformers' schedules allow it: the learning rate is never reached."""
    from mcit.engine.optim import lr_factor, warmup_steps

    warm = warmup_steps(stage.optim, stage.steps)
    if not stage.steps or warm <= stage.steps:
        return []
    share = lr_factor(stage.steps - 1, stage.steps, stage.optim)
    what = f"{warm} steps, and the stage has {stage.steps}: the learning rate ends at {share:.2g} of optim.lr"
    return [Problem(f"{where}.optim.warmup", what, "use a share of the steps, such as 0.03, if not meant", "note")]


# ---- 3. the plan -----------------------------------------------------------------------------------------------------
def make_plan(config: RunConfig, *, announce: Announce | None = None, runs_dir: Path | None = None) -> Plan:
    """Resolve and check everything. Raises ConfigError, DataError or PlanError with every problem found."""
    from mcit.models.load import materialize

    methods, problems = method_specs(config)
    probes, found = probe_specs(config)
    problems += found
    router, found = router_spec(config)
    problems += found
    gates, found = gate_specs(config)
    problems += found
    if problems:  # before a base is fetched or data is built
        raise ConfigError.of(problems)
    doing("the base")
    model_path = materialize(config.base, announce=announce)
    data, problems = build_tasks(config, announce=announce)
    problems += build_pools(data, methods, announce=announce)
    if problems:
        raise DataError.of(problems)
    stages = _stages(config, data, methods, gates)
    tasks = tuple({t.name: t for stage in stages for t in stage.tasks}.values())
    forget = tuple({t.name: t for stage in stages for t in stage.forget}.values())
    plan = Plan(
        config,
        stages,
        tasks,
        model_path,
        config_digest(config.model_dump(mode="json")),
        probes=probes,
        router=router,
        forget_tasks=forget,
        slice_tasks=slice_tasks(stages),
    )
    findings = check_plan(plan, runs_dir=runs_dir)
    bad = [p for p in findings if p.level == "problem"]
    if bad:
        raise PlanError.of(bad)
    return replace(plan, notes=tuple(str(p) for p in findings))


def method_specs(config: RunConfig) -> tuple[list[list[MethodSpec]], list[Problem]]:
    """The methods of each stage with their settings checked, and what is wrong with them."""
    from mcit.methods.base import Method

    out: list[list[MethodSpec]] = []
    problems: list[Problem] = []
    for i, stage in enumerate(config.stages):
        specs = []
        for k, entry in enumerate(stage.methods):
            where = f"stages[{i}].methods[{k}]"
            cls = lookup.class_of("methods", entry["name"], base=Method)
            if not (isinstance(cls.Config, type) and issubclass(cls.Config, MethodConfig)):
                fix = "let it inherit from mcit.core.config.MethodConfig"
                problems.append(Problem(where, f"the Config of {entry['name']} is no MethodConfig", fix))
                continue
            settings, found = parse(cls.Config, {key: v for key, v in entry.items() if key != "name"}, where=where)
            problems += found
            specs.append(MethodSpec(entry["name"], settings))
        out.append(specs)
    return out, problems


def probe_specs(config: RunConfig) -> tuple[tuple[ProbeSpec, ...], list[Problem]]:
    """The run's probes with their settings checked."""
    from mcit.probes.base import Probe

    out: list[ProbeSpec] = []
    problems: list[Problem] = []
    for i, entry in enumerate(config.probes):
        where = f"probes[{i}]"
        cls = lookup.class_of("probes", entry["use"], base=Probe)
        settings, found = parse(cls.Config, {key: v for key, v in entry.items() if key != "use"}, where=where)
        if entry["use"] in {spec.name for spec in out}:
            found.append(Problem(where, f"'{entry['use']}' is listed twice", "remove one"))
        problems += found
        out.append(ProbeSpec(entry["use"], settings))
    return tuple(out), problems


def probe_problems(plan: Plan) -> list[Problem]:
    """What probes say about the plan."""
    from mcit.probes.base import Probe

    found = []
    for i, spec in enumerate(plan.probes):
        probe = lookup.class_of("probes", spec.name, base=Probe)(spec.config)
        found += [replace(p, where=f"probes[{i}].{p.where}") for p in probe.check(plan)]
    return found


def _stages(
    config: RunConfig, data: list[StageData], methods: list[list[MethodSpec]], gates: list[GateSpec | None]
) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    used: set[str] = set()
    for i, stage in enumerate(config.stages):
        tasks = data[i].tasks
        base = stage.name or stage.task or (tasks[0].name if len(tasks) == 1 else "joint")
        name, n = base, 2
        while name in used:
            name, n = f"{base}-{n}", n + 1
        used.add(name)
        rows = sum(task.rows.get("train", 0) for task in tasks)
        steps = math.ceil(stage.epochs * (rows + _mixed_rows(methods[i], data[i])) / stage.optim.batch)
        steps = min(steps, stage.max_steps) if stage.max_steps else steps
        stages.append(
            Stage(
                index=i + 1,
                name=name,
                tasks=tasks,
                methods=tuple(methods[i]),
                adapter=stage.adapter,
                optim=stage.optim,
                epochs=stage.epochs,
                steps=steps,
                rows=rows,
                seed=seed_for(config.seed, "stage", i + 1),
                gradient_order=tuple(stage.gradient_order),
                **data[i].beside,
                slices=data[i].slices,
                gate=gates[i],
                pools=data[i].pools,
            )
        )
    return tuple(stages)


def _mixed_rows(specs: list[MethodSpec], data: StageData) -> int:
    """Rows that methods shuffle into the task's order of a stage."""
    from mcit.methods.compose import make

    pools = {pool.recipe: pool.rows.get("train", 0) for pool in data.pools}
    return sum(make(spec).mixed_rows(pools) for spec in specs)


# ---- 4. checks on the resolved plan ----------------------------------------------------------------------------------
def check_plan(plan: Plan, *, runs_dir: Path | None = None) -> list[Problem]:
    """Composition, encoding of sampled rows, trainable shapes; with `runs_dir` memory and disk of this machine too."""
    from mcit.methods.check import check_stage
    from mcit.plan.forgetting import forget_problems
    from mcit.plan.precision import precision_problems
    from mcit.plan.preflight import check_rows, check_shapes, skeleton
    from mcit.plan.scoring import scoring_problems
    from mcit.plan.selection import member_problems, narrowed, selection_problems

    problems = precision_problems(plan)
    for stage in plan.stages:
        where = f"stages[{stage.index - 1}]"
        if stage.epochs and not stage.rows:
            problems.append(Problem(f"{where}.recipe", "has no training rows", "add a train split to the recipe"))
        problems += [*check_stage(stage, plan, where=where), *_warmup_notes(stage, where)]
    for name in plan.config.eval.tasks if isinstance(plan.config.eval.tasks, list) else []:
        if name not in {t.name for t in plan.tasks}:
            fix = suggestion(name, [t.name for t in plan.tasks])
            problems.append(Problem("eval.tasks", f"'{name}' is not a task of this run", fix))
    problems += scoring_problems(plan)
    problems += slice_problems(plan)
    problems += gate_problems(plan)
    problems += probe_problems(plan)
    problems += member_problems(plan)
    if any(p.level == "problem" for p in problems):
        return problems
    problems += forget_problems(plan)
    doing("checking rows and pictures")
    problems += check_rows(plan)
    doing("checking what is trained")
    shapes = check_shapes(plan)
    problems += shapes
    if not shapes and narrowed(plan):
        problems += selection_problems(plan, skeleton(plan))
    if runs_dir is not None and not any(p.level == "problem" for p in problems):
        from mcit.engine.launch import launch_of
        from mcit.plan.resources import estimate, resource_problems

        doing("estimating memory and disk")
        place = launch_of(os.environ)
        found = estimate(plan, nproc=place.size if place else 1)
        problems += resource_problems(plan, found, runs_dir)
    return problems


def plan_json(plan: Plan) -> JsonDict:
    """Content of plan.json: stages, hook table, digests of recipes, versions of method state, base checksum."""
    import mcit
    from mcit.methods.check import hook_table
    from mcit.methods.compose import make
    from mcit.models.basefiles import base_digest

    base_sha256 = base_digest(plan.model_path)
    if plan.config.base.adapter:  # the weights a run starts from include the adapter it was given
        base_sha256 = digest_of([base_sha256, sha256_tree(plan.config.base.adapter)])

    return {
        "name": plan.config.name,
        "digest": plan.digest,
        "code": mcit.__version__,
        "base": str(plan.model_path),
        "base_sha256": base_sha256,
        "chat_template_sha256": _template_digest(plan),
        "tasks": [task.name for task in plan.tasks],
        "forget_tasks": [task.name for task in plan.forget_tasks],
        "recipes": {task.recipe: task.digest for task in recipes_of(plan)},
        "scorers": {
            task.name: {"scorer": task.scorer, "style": task.style}
            for task in (*plan.tasks, *plan.forget_tasks, *plan.slice_tasks)
        },
        "sources": sources(plan),
        "stages": [
            {
                "index": stage.index,
                "name": stage.name,
                "folder": stage.folder,
                "tasks": [task.name for task in stage.tasks],
                **{key: [task.name for task in getattr(stage, key)] for key in FORGET_DATA},
                "slices": slices_json(stage, plan),
                "gate": gate_json(stage),
                "steps": stage.steps,
                "rows": stage.rows,
                "seed": stage.seed,
                "carry": stage.adapter.carry,
                "passes": max((make(spec).step_passes for spec in stage.methods), default=1.0),
                "hooks": hook_table(stage),
                "method_state": {spec.name: make(spec).state_version for spec in stage.methods},
            }
            for stage in plan.stages
        ],
        "scorer_mode": plan.config.eval.mode,
    }


def sources(plan: Plan) -> dict[str, str]:
    """Digest of the source of everything a run plugs in, by kind and name: a change of code is a change of the run."""
    from mcit.evals.filtering import name_of
    from mcit.evals.filters.base import Filter
    from mcit.evals.scorers.base import Scorer
    from mcit.methods.base import Method
    from mcit.probes.base import Probe
    from mcit.routers.base import Router

    named = {
        *(("method", "methods", spec.name, Method) for stage in plan.stages for spec in stage.methods),
        *(("probe", "probes", spec.name, Probe) for spec in plan.probes),
        *((("router", "routers", plan.router.name, Router),) if plan.router else ()),
        *(("filter", "evals.filters", name, Filter) for name in map(name_of, plan.config.eval.filters)),
        *(
            ("scorer", "evals.scorers", task.scorer, Scorer)
            for task in (*plan.tasks, *plan.forget_tasks, *plan.slice_tasks)
        ),
    }
    return {
        f"{kind} {name}": lookup.source_digest(lookup.class_of(package, name, base=base))
        for kind, package, name, base in sorted(named, key=lambda each: each[:3])
    }


def _template_digest(plan: Plan) -> str | None:
    file = plan.config.base.chat_template
    return sha256_file(Path(file).expanduser()) if file else None


def resolved(config: Config) -> JsonDict:
    """The config with every default filled in, as JSON."""
    return config.model_dump(mode="json")
