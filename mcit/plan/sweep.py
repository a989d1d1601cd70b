"""One config in several orders of its stages and with several seeds: which runs that makes, and what they share.

A stage's seed depends on the run's seed and its place alone, so runs of one seed that begin with the same stages train them
to the same bytes: they are trained once, and the later runs branch there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcit.core.config import suggestion
from mcit.core.errors import ConfigError, Problem
from mcit.core.files import digest_of
from mcit.core.schema import RunConfig
from mcit.core.types import JsonDict
from mcit.plan.record import resolved
from mcit.plan.references import reference_problems
from mcit.runs.extend import branch_changes
from mcit.runs.run import Run, config_digest, find_run


@dataclass(frozen=True)
class Variation:
    """One run of a sweep."""

    order: tuple[int, ...]
    """Places of the config's stages, from 1."""
    config: RunConfig

    @property
    def resolved(self) -> JsonDict:
        """The config with every default filled in."""
        return resolved(self.config)

    def run(self, runs_dir: Path) -> Run:
        """Its run, which need not exist yet."""
        return find_run(runs_dir, self.config.name, config_digest(self.resolved))


def stage_labels(config: RunConfig) -> list[str]:
    """What orders call the stages: name, task, or last part of the recipe."""
    return [stage.name or stage.task or Path(stage.recipes[0]).stem for stage in config.stages]


def read_orders(config: RunConfig, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Orders from texts such as ``3,1,2`` or ``word,letter,yesno``; the config's own where none are given.

    Raises ConfigError with everything that is no order of all stages, or is given twice.
    """
    labels, count = stage_labels(config), len(config.stages)
    if not texts:
        return [tuple(range(1, count + 1))]
    problems, orders = [], []
    for text in texts:
        where = f"--orders {text}"
        order = []
        for part in (part.strip() for part in text.split(",")):
            known = [str(k) for k in range(1, count + 1)] + [x for x in labels if labels.count(x) == 1]
            if part not in known:
                fix = "number the stages: their names are not unique" if part in labels else suggestion(part, known)
                problems.append(Problem(where, f"there is no one stage '{part}'", fix))
            else:
                order.append(int(part) if part.isdigit() and int(part) <= count else labels.index(part) + 1)
        if len(order) == len(text.split(",")) and sorted(order) != list(range(1, count + 1)):
            problems.append(Problem(where, f"is no order of the {count} stages", "name every stage exactly once"))
        if tuple(order) in orders:
            problems.append(Problem(where, "is given twice", "leave one out"))
        orders.append(tuple(order))
    if problems:
        raise ConfigError.of(problems)
    return orders


def variations(config: RunConfig, orders: Sequence[tuple[int, ...]], seeds: Sequence[int]) -> list[Variation]:
    """Every order with every seed, seed by seed. Raises ConfigError for what cannot stand in some order."""
    if len(set(seeds)) != len(seeds):
        raise ConfigError("a seed is given twice", where="--seeds", fix="leave one out")
    out: list[Variation] = []
    problems: list[Problem] = []
    for seed in seeds:
        for order in orders:
            name = f"{config.name}-o{'-'.join(map(str, order))}-s{seed}"
            update = {"name": name, "seed": seed, "stages": [config.stages[k - 1] for k in order]}
            changed = config.model_copy(update=update)
            found = reference_problems(changed)
            problems += [Problem(f"{name}: {p.where}", p.what, p.fix, p.level) for p in found]
            out.append(Variation(order, changed))
    if problems:
        raise ConfigError.of(problems)
    return out


def sweep_name(config: RunConfig, orders: Sequence[tuple[int, ...]], seeds: Sequence[int]) -> str:
    """Folder of a sweep's configs and report."""
    return f"{config.name}-sweep-{digest_of([config_digest(resolved(config)), list(orders), list(seeds)])[:8]}"


def shared_with(made: Sequence[Variation], which: int) -> tuple[Variation, int] | None:
    """The earlier run of a sweep that shares most first stages with run `which`, and how many; None if none does."""
    wanted = made[which].resolved
    best: tuple[Variation, int] | None = None
    for earlier in made[:which]:
        other, count = earlier.resolved, 0
        while count < len(wanted["stages"]) and not branch_changes(other, wanted, stages=count + 1):
            count += 1
        if count > (best[1] if best else 0):
            best = earlier, count
    return best
