"""Gold runs: the same sequence by a model that never saw what is forgotten, to compare what is left with.

TOFU (arXiv:2401.06121) calls it the retain model. A gold config has ``without``: rows of these recipes are in no stage's
training data, and stages that forget nothing but them train on what they retain and nothing else. Filters that read the state
of a method go with the last stage that lists it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core.config import suggestion
from mcit.core.errors import ConfigError, Problem, StateError
from mcit.core.schema import NOT_IDENTITY, RunConfig
from mcit.core.types import FORGET_DATA, JsonDict, MethodSpec, Plan
from mcit.evals.filtering import load_filters
from mcit.methods.check import has_to_forget
from mcit.methods.compose import make
from mcit.plan.plan import method_specs
from mcit.runs.identity import config_changes, told

_HOLDS = "retain_kl"
"""Keeps what is retained where it was instead of learning it: without anything to forget it would train on rounding errors."""
_OWN = ("name", "eval", "probes")
"""Sections in which a gold run may be another."""


def gold_config(config: RunConfig, without: Sequence[str]) -> RunConfig:
    """The config without the rows of some recipes (all that its stages forget, if none is named).

    Raises ConfigError for a recipe that no stage forgets, and when no stage is left.
    """
    named = list(dict.fromkeys(r for stage in config.stages for r in stage.recipes_of("forget")))
    wanted = list(without) or named
    if not named:
        raise ConfigError("no stage forgets", where="--without", fix="give a config with a stage that forgets")
    for recipe in wanted:
        if recipe not in named:
            raise ConfigError(f"no stage forgets '{recipe}'", where="--without", fix=suggestion(recipe, named))
    specs, problems = method_specs(config)
    if problems:
        raise ConfigError.of(problems)
    data = config.model_dump(mode="json")
    stages: list[JsonDict] = []
    used: set[str] = set()
    for stage, raw, methods in zip(config.stages, data["stages"], specs, strict=True):
        left = [recipe for recipe in stage.recipes_of("forget") if recipe not in wanted]
        if stage.recipes_of("forget") and not left:
            own = [(entry, s) for entry, s in zip(raw["methods"], methods, strict=True) if not _forgets(s)]
            if not stage.epochs and not any("weights:edit" in make(spec).claims.slots for _, spec in own):
                continue  # an edit of weights that forgets: nothing of the stage is left
            raw = {**raw, **{key: [] for key in FORGET_DATA}, "methods": [entry for entry, _ in own]}
            used |= {spec.name for _, spec in own}
        else:
            raw = {**raw, "forget": left}
            used |= {spec.name for spec in methods}
        stages.append(raw)
    if not stages:
        raise ConfigError("no stage is left without them", where="--without", fix="give a config that learns something")
    filters = config.eval.filters
    left_filters = [
        spec for spec, one in zip(filters, load_filters(filters), strict=True) if used.issuperset(one.reads)
    ]
    changed: JsonDict = {"name": f"{config.name[:90]}-gold", "stages": stages, "without": sorted(wanted)}
    changed["eval"] = {**data["eval"], "kit": None, "filters": left_filters}
    return RunConfig.model_validate({**data, **changed})


def _forgets(spec: MethodSpec) -> bool:
    return spec.name == _HOLDS or has_to_forget(make(spec).claims)


def check_gold(plan: Plan, gold: RunConfig, *, where: str) -> None:
    """Raise StateError unless `gold` is the config of a gold run of this plan, without all that it forgets."""
    asked = sorted({task.recipe for stage in plan.stages for task in stage.forget})
    if not gold.without:
        raise StateError(
            "is no gold run: its config leaves nothing out", where=where, fix="make one with: mcit gold CONFIG"
        )
    kept = [recipe for recipe in asked if recipe not in gold.without]
    if kept:
        raise StateError(
            f"was trained on '{kept[0]}', which is forgotten here", where=where, fix=f"--without {kept[0]}"
        )
    expected = gold_config(plan.config, gold.without)
    ours, theirs = (
        {k: v for k, v in config.model_dump(mode="json").items() if k not in NOT_IDENTITY and k not in _OWN}
        for config in (expected, gold)
    )
    changes = told(config_changes(ours, theirs))
    if changes:
        fix = "make it from the config of this run with: mcit gold"
        raise StateError.of([Problem(where, f"is a gold run of another lineage: {text}", fix) for text in changes])
