"""What a run keeps of its plan: the content of plan.json and the resolved config."""

from __future__ import annotations

from pathlib import Path

from mcit.core import lookup
from mcit.core.config import Config
from mcit.core.files import digest_of, sha256_file, sha256_tree
from mcit.core.types import FORGET_DATA, JsonDict, Plan
from mcit.plan.datasets import recipes_of
from mcit.plan.gates import gate_json
from mcit.plan.gone import forget_data
from mcit.plan.slices import slices_json


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
        "forget_data": forget_data(plan),
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
