"""The data sets of a plan: recipes of tasks, of what is forgotten and of methods' pools, each built once."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mcit.core.doing import doing
from mcit.core.errors import McitError, Problem
from mcit.core.fetch import NeedsDownload
from mcit.core.schema import RunConfig
from mcit.core.types import FORGET_DATA, MethodSpec, Plan, Slices, Stage, TaskSpec
from mcit.plan.gone import Recorded

Announce = Callable[[str], None]
SLICES = ("neighbourhood", "rephrased", "retention")
"""Keys of a stage's `slices`, in the order of the fields of `Slices`."""


@dataclass
class StageData:
    """The data sets of one stage."""

    tasks: tuple[TaskSpec, ...]
    beside: dict[str, tuple[TaskSpec, ...]] = field(default_factory=dict)
    """By key of FORGET_DATA."""
    slices: Slices = Slices()
    pools: tuple[TaskSpec, ...] = ()


class Tasks:
    """Recipes built once each, with every problem collected."""

    def __init__(self, announce: Announce | None, known: Mapping[str, Recorded] | None = None) -> None:
        self._announce, self._known = announce, known or {}
        self._done: dict[str, TaskSpec | None] = {}
        self._found: dict[Problem, list[str]] = {}

    def of(self, recipes: Iterable[str], where: str) -> tuple[TaskSpec, ...]:
        """Tasks of some recipes; those that cannot be built become problems at `where`."""
        for name in recipes:
            if name not in self._done:
                self._done[name] = self._build(name, where)
        return tuple(task for name in recipes if (task := self._done[name]) is not None)

    def of_request(self, recipes: Iterable[str], where: str, *, stage: int) -> tuple[TaskSpec, ...]:
        """The same of the request of a stage (from 1); what was deleted after it was committed is as it was recorded."""
        out: list[TaskSpec] = []
        for name in recipes:
            known = self._known.get(name)
            if known is not None and stage <= known.stages and not self._there(name):
                out.append(known.task)
            else:
                out += self.of([name], where)
        return tuple(out)

    def _there(self, name: str) -> bool:
        """Whether a recipe can be built, without a word of why not."""
        found = dict(self._found)
        there = bool(self.of([name], ""))
        self._found = found
        if not there:
            del self._done[name]
        return there

    def less(self, stages: list[StageData], forgotten: tuple[TaskSpec, ...]) -> None:
        """Leave training rows that `forgotten` means out of the stages' tasks; a task without one row of any split goes too."""
        from mcit.plan.forgetting import to_leave_out  # knows methods, and so torch

        named = [task.recipe for task in forgotten]
        rows, stay = to_leave_out([stage.tasks for stage in stages], forgotten)
        for recipe, first in stay.items():
            what = f"rows stay that ask what {', '.join(named)} asks and answer otherwise (first {first})"
            fix = "they were taught before those rows; leave out such of them as give it away too"
            self._found.setdefault(Problem(recipe, what, fix, "note"), []).append("without")
        for i, stage in enumerate(stages):
            where, before = f"stages[{i}].recipe", stage.tasks
            left = [self._less(task, rows.get(task.recipe, ()), where) for task in before]
            stage.tasks = tuple(task for task in left if task is not None)
            if before and not stage.tasks:
                recipes = ", ".join(task.recipe for task in before)
                self._found.setdefault(Problem(recipes, *nothing_left(named)), []).append(where)

    def _less(self, task: TaskSpec, rows: Sequence[str], where: str) -> TaskSpec | None:
        if not rows or len(rows) == sum(task.rows.values()):
            return None if rows else task
        key = f"{task.recipe} without"
        if key not in self._done:
            self._done[key] = self._build(task.recipe, where, leave_out=rows)
        return self._done[key]

    @property
    def problems(self) -> list[Problem]:
        """Everything found; what several recipes have in common is said once."""
        return [Problem(f"{', '.join(places)}: {p.where}", p.what, p.fix, p.level) for p, places in self._found.items()]

    def _build(self, name: str, where: str, *, leave_out: Sequence[str] = ()) -> TaskSpec | None:
        from mcit.data.build import build
        from mcit.data.folder import DataFolder
        from mcit.data.recipe import find_recipe, load_recipe

        doing(f"data set {name}")
        try:
            recipe = load_recipe(find_recipe(name))
            if leave_out:
                recipe = recipe.followed_by("leave_out", rows=list(leave_out))
            folder = DataFolder.open(build(recipe, announce=self._announce))
        except NeedsDownload:
            raise
        except McitError as error:
            for problem in error.problems:
                self._found.setdefault(problem, []).append(f"{where} {name}")
            return None
        return TaskSpec(
            name=folder.task,
            recipe=name,
            folder=folder.path,
            digest=folder.digest,
            rows=dict(folder.counts),
            scorer=folder.eval.scorer,
            style=folder.eval.style,
            max_new_tokens=folder.eval.max_new_tokens,
        )


def nothing_left(without: Sequence[str]) -> tuple[str, str]:
    """What is said of a stage of a gold run without training rows, and the fix."""
    fix = "a gold run needs other rows in each stage: forget a part of a task, or name fewer with --without"
    return f"has no training rows left without those of {', '.join(without)}", fix


def build_tasks(
    config: RunConfig, *, announce: Announce | None, known: Mapping[str, Recorded] | None = None
) -> tuple[list[StageData], list[Problem]]:
    """Data sets of each stage, recipes built where they are not yet; recipes of methods are added later.

    `known` are data sets of requests that a run recorded, for those that were deleted.
    """
    tasks = Tasks(announce, known)
    forgotten = tasks.of(config.without, "without")
    stages = [
        StageData(
            tasks.of(stage.recipes, f"stages[{i}].recipe"),
            {k: tasks.of_request(stage.recipes_of(k), f"stages[{i}].{k}", stage=i + 1) for k in FORGET_DATA},
            Slices(*(tasks.of(getattr(stage.slices, key), f"stages[{i}].slices.{key}") for key in SLICES)),
        )
        for i, stage in enumerate(config.stages)
    ]
    if forgotten:
        tasks.less(stages, forgotten)
    return stages, tasks.problems + _name_problems(stages)


def _name_problems(stages: list[StageData]) -> list[Problem]:
    by_task: dict[str, str] = {}
    problems = []
    scored = (
        t
        for stage in stages
        for t in (
            *stage.tasks,
            *stage.beside.get("forget", ()),
            *stage.beside.get("holdout", ()),
            *stage.slices.every,
        )
    )
    for task in {t.recipe: t for t in scored}.values():
        if by_task.setdefault(task.name, task.recipe) != task.recipe:
            what = f"recipes {by_task[task.name]} and {task.recipe} both define task '{task.name}'"
            problems.append(Problem("stages", what, "give the recipes different task names"))
    return problems


def build_pools(
    stages: list[StageData], methods: list[list[MethodSpec]], *, announce: Announce | None
) -> list[Problem]:
    """Add to each stage the recipes that its methods read beside the tasks."""
    from mcit.methods.compose import make

    pools = Tasks(announce)
    for i, specs in enumerate(methods):
        for k, spec in enumerate(specs):
            stages[i].pools += pools.of(make(spec).recipes(), f"stages[{i}].methods[{k}] ({spec.name}):")
    return pools.problems


def data_notes(tasks: Iterable[TaskSpec]) -> list[Problem]:
    """What building the data sets warned of, and how many bad rows their recipes let it drop."""
    from mcit.core.records import DataManifest
    from mcit.core.stored import read_sealed

    notes = []
    for task in tasks:
        manifest = read_sealed(task.folder / "manifest.json", DataManifest)
        for found in manifest["warnings"]:
            notes.append(Problem(f"{task.recipe}: {found['where']}", found["what"], level="note"))
        if dropped := manifest["dropped"]:
            first = f"{dropped[0]['where']}: {dropped[0]['what']}"
            what = f"{len(dropped):,} bad row(s) dropped, as the recipe allows; the first: {first}"
            notes.append(Problem(task.recipe, what, f"mcit data build {shlex.quote(task.recipe)} names them", "note"))
    return notes


def recipes_of(plan: Plan) -> list[TaskSpec]:
    """Every data set that a run reads: tasks, what is forgotten, pools of methods."""
    rest = {t.recipe: t for stage in plan.stages for t in beside(stage)}
    known = {task.recipe for task in plan.tasks}
    return [*plan.tasks, *(task for recipe, task in sorted(rest.items()) if recipe not in known)]


def readable(plan: Plan) -> list[TaskSpec]:
    """Those of them that were not deleted."""
    return [task for task in recipes_of(plan) if not task.gone]


def beside(stage: Stage) -> tuple[TaskSpec, ...]:
    """Every data set that a stage reads beside its tasks."""
    return (*(task for key in FORGET_DATA for task in getattr(stage, key)), *stage.slices.every, *stage.pools)
