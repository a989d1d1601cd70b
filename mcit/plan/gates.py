"""Gates of stages in a plan: their files, read and hashed before anything trains, and what they cannot ask for."""

from __future__ import annotations

from pathlib import Path

from mcit.core.config import load_yaml, parse, suggestion
from mcit.core.errors import McitError, Problem
from mcit.core.files import sha256_file
from mcit.core.schema import GateConfig, RunConfig
from mcit.core.types import GateSpec, JsonDict, Plan, Stage, TaskSpec
from mcit.evals.gate import SCALE, threshold_tasks
from mcit.evals.inference import wilson
from mcit.plan.slices import slices_due, slices_json


def gate_specs(config: RunConfig) -> tuple[list[GateSpec | None], list[Problem]]:
    """The gate of each stage with its thresholds checked; None for a stage without one."""
    out: list[GateSpec | None] = []
    problems: list[Problem] = []
    for i, stage in enumerate(config.stages):
        out.append(None)
        if stage.gate is None:
            continue
        where, path = f"stages[{i}].gate", Path(stage.gate)
        if not path.is_file():
            problems.append(Problem(where, f"there is no file {path}", "check the path"))
            continue
        try:
            found, wrong = parse(GateConfig, load_yaml(path), where=str(path))
        except McitError as error:
            problems += error.problems
            continue
        problems += wrong
        if found is not None:
            out[-1] = GateSpec(str(path), sha256_file(path), found)
    return out, problems


def gate_json(stage: Stage) -> JsonDict | None:
    """What plan.json freezes of a gate."""
    if stage.gate is None:
        return None
    return {"file": stage.gate.file, "sha256": stage.gate.sha256, **stage.gate.config.model_dump(mode="json")}


def gate_problems(plan: Plan) -> list[Problem]:
    """Thresholds on something that nobody computes."""
    problems = []
    for stage in plan.stages:
        if stage.gate is None:
            continue
        where = f"stages[{stage.index - 1}].gate: {stage.gate.file}"
        if plan.config.eval.tasks == "none":
            problems.append(Problem(where, "nothing is scored in this run (eval.tasks: none)", "set eval.tasks: seen"))
            continue
        slices = {"tasks": [task.name for task in stage.tasks], **slices_json(stage, plan)}
        frozen = gate_json(stage) or {}
        for k, threshold in enumerate(frozen["thresholds"]):
            place = f"{where}: thresholds[{k}]"
            tasks = threshold_tasks(threshold, slices)
            if not tasks:
                problems.append(
                    Problem(place, f"nobody computes {threshold['metric']} here", _NEEDS[threshold["metric"]])
                )
            scored = {task.name for task in _scored(plan, stage)}
            lost = [task for task in tasks if task not in scored]
            if lost:
                what = f"nobody computes {threshold['metric']} of task '{lost[0]}' after this stage"
                problems.append(Problem(place, what, suggestion(lost[0], scored)))
            elif tasks:
                sizes = {task.name: task.rows["test"] for task in _scored(plan, stage)}
                rows = sum(min(sizes[task], plan.config.eval.rows or sizes[task]) for task in tasks)
                problems += _out_of_reach(threshold, rows, place)
        if frozen["monitor"]:
            problems += _monitor_problems(plan, stage, f"{where}: monitor")
    return problems


def _out_of_reach(threshold: JsonDict, rows: int, where: str) -> list[Problem]:
    """A note on a limit of a share that so few rows cannot pass, even if every one of them is as it should be."""
    if threshold["at_least"] is None:
        return []
    best = SCALE[threshold["unit"]] * wilson(rows, rows)[0]
    if best >= threshold["at_least"]:
        return []
    what = (
        f"can never pass: with {rows} rows the lower bound of {threshold['metric']} is at most {best:.4g} "
        f"{threshold['unit']}, the limit is {threshold['at_least']:g}"
    )
    return [Problem(where, what, "score more rows, or lower the limit, if a decision by hand is not meant", "note")]


def _monitor_problems(plan: Plan, stage: Stage, where: str) -> list[Problem]:
    """A monitor that would see nothing: no probe, or one that measures no earlier task in this stage."""
    probe = next((spec.config for spec in plan.probes if spec.name == "stability"), None)
    if probe is None:
        return [Problem(where, "nobody measures inside the stage", "add probes: [{use: stability}]")]
    leave = "leave monitor out of this stage's gate"
    own = {task.name for task in stage.tasks}
    earlier = [task for s in plan.stages if s.index < stage.index for task in s.tasks if task.name not in own]
    if not earlier:
        here = "the first stage" if stage.index == 1 else "the stage, which trains all earlier ones again,"
        return [Problem(where, f"{here} has no earlier task to watch", leave)]
    measured = [task for task in earlier if not probe.tasks or task.name in probe.tasks]
    if not measured:
        fix = f"add one of {', '.join(dict.fromkeys(task.name for task in earlier))} to tasks of the probe, or {leave}"
        return [Problem(where, "the probe stability measures none of the earlier tasks", fix)]
    if not any(task.rows.get(probe.split) or task.rows.get("test") for task in measured):
        return [Problem(where, "no earlier task has rows for the probe stability", "give one a test split")]
    return []


_NEEDS = {
    "success": "give the stage a task with test rows",
    "generalisation": "name recipes in the stage's slices.rephrased",
    "locality": "name recipes in the stage's slices.neighbourhood",
    "drawdown": "name recipes in the stage's slices.retention, or put the gate on a later stage",
    "accuracy": "say the task",
    "format_validity": "say the task",
}


def _scored(plan: Plan, stage: Stage) -> list[TaskSpec]:
    """Tasks with test rows that are scored after a stage."""
    from mcit.plan.forgetting import forget_due  # knows methods, and so torch

    setting = plan.config.eval.tasks
    seen = [task for s in plan.stages if s.index <= stage.index for task in s.tasks]
    own = (
        plan.tasks if setting == "all" else [t for t in plan.tasks if t.name in setting] if setting != "seen" else seen
    )
    every = (*own, *forget_due(plan, stage.index), *slices_due(plan, stage.index))
    return [task for task in every if task.rows.get("test")]
