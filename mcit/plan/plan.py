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

from mcit.core import lookup
from mcit.core.config import MethodConfig, apply_overrides, load_yaml, parse, suggestion, without_unknown
from mcit.core.doing import doing
from mcit.core.errors import ConfigError, DataError, PlanError, Problem
from mcit.core.paths import find_shipped, shipped, where_looked
from mcit.core.schema import RunConfig, StageConfig
from mcit.core.seeds import seed_for
from mcit.core.types import GateSpec, MethodSpec, Plan, ProbeSpec, Stage
from mcit.plan.datasets import Announce, StageData, build_pools, build_tasks, data_notes, nothing_left, readable
from mcit.plan.gates import gate_problems, gate_specs
from mcit.plan.gone import Recorded
from mcit.plan.pools import router_spec
from mcit.plan.presets import adapter_settings, expanded, preset_file, read_preset
from mcit.plan.references import reference_problems
from mcit.plan.slices import slice_problems, slice_tasks
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
        fix = where_looked(name) if Path(name).suffix in (".yaml", ".yml") else suggestion(name, known)
        raise ConfigError("no such config", where=name, fix=fix)
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


# ---- 2. the plan -----------------------------------------------------------------------------------------------------
def make_plan(
    config: RunConfig,
    *,
    announce: Announce | None = None,
    runs_dir: Path | None = None,
    begun: Path | None = None,
    known: Mapping[str, Recorded] | None = None,
) -> Plan:
    """Resolve and check everything; with `runs_dir` memory and disk of this machine too, less what a run `begun` has.

    `known` are data sets of requests to forget that a run recorded; those that were deleted are not read.
    Raises ConfigError, DataError or PlanError with every problem found.
    """
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
    data, problems = build_tasks(config, announce=announce, known=known)
    problems += build_pools(data, methods, announce=announce)
    if any(p.level == "problem" for p in problems):
        raise DataError.of([p for p in problems if p.level == "problem"])
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
    findings = problems + _passed(check_plan(plan))
    if runs_dir is not None:
        found, roomy = check_machine(plan, runs_dir, begun)
        findings, plan = findings + _passed(found), replace(plan, roomy=roomy)
    return replace(plan, notes=tuple(str(p) for p in findings))


def _passed(findings: list[Problem]) -> list[Problem]:
    """Notes alone. Raises PlanError for problems."""
    bad = [p for p in findings if p.level == "problem"]
    if bad:
        raise PlanError.of(bad)
    return findings


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


# ---- 3. checks on the resolved plan ----------------------------------------------------------------------------------
def check_plan(plan: Plan) -> list[Problem]:
    """Composition, encoding of sampled rows, trainable shapes."""
    from mcit.methods.check import check_stage
    from mcit.plan.forgetting import forget_problems
    from mcit.plan.precision import precision_problems
    from mcit.plan.preflight import check_rows, check_shapes, skeleton
    from mcit.plan.scoring import option_notes, scoring_problems
    from mcit.plan.selection import member_problems, narrowed, selection_problems
    from mcit.plan.vision import vision_problems

    problems = precision_problems(plan)
    for stage in plan.stages:
        where = f"stages[{stage.index - 1}]"
        if stage.epochs and not stage.rows:
            what, fix = "has no training rows", "add a train split to the recipe"
            if plan.config.without:
                what, fix = nothing_left(plan.config.without)
            problems.append(Problem(f"{where}.recipe", what, fix))
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
    problems += data_notes(readable(plan))
    problems += forget_problems(plan)
    doing("checking rows and pictures")
    problems += check_rows(plan)
    problems += option_notes(plan)
    doing("checking what is trained")
    shapes = check_shapes(plan)
    problems += shapes
    if not shapes:
        problems += vision_problems(plan)
    if not shapes and narrowed(plan):
        problems += selection_problems(plan, skeleton(plan))
    return problems


def check_machine(plan: Plan, runs_dir: Path, begun: Path | None) -> tuple[list[Problem], bool]:
    """Memory and disk of this machine; and whether its memory surely suffices (see `Plan.roomy`)."""
    from mcit.engine.launch import launch_of
    from mcit.plan.resources import estimate, resource_problems, roomy

    doing("estimating memory and disk")
    place = launch_of(os.environ)
    found = estimate(plan, nproc=place.size if place else 1)
    return resource_problems(plan, found, runs_dir, begun=begun), roomy(plan, found)


def _warmup_notes(stage: Stage, where: str) -> list[Problem]:
    """A warm-up that the stage ends in, as transformers' schedules allow it: the learning rate is never reached."""
    from mcit.engine.optim import lr_factor, warmup_steps

    warm = warmup_steps(stage.optim, stage.steps)
    if not stage.steps or warm <= stage.steps:
        return []
    share = lr_factor(stage.steps - 1, stage.steps, stage.optim)
    what = f"{warm} steps, and the stage has {stage.steps}: the learning rate ends at {share:.2g} of optim.lr"
    return [Problem(f"{where}.optim.warmup", what, "use a share of the steps, such as 0.03, if not meant", "note")]
