"""Adapters of several stages as one, by PEFT's own functions: added up, TIES, DARE.

Each stage's own effect is taken, whatever its ``carry``. ``linear``, ``ties`` and ``dare`` work on the factors A and B, as
PEFT does for adapters of one rank: (sum of B)(sum of A) holds products of one stage's B with another's A. The kinds that
end in ``_svd`` work on the updates B A themselves and shorten the result to a rank. Tensors trained whole (projector, …)
are combined by the same rule as differences to what their stage began with.

TIES: Yadav et al. 2023, arXiv:2306.01708, algorithm 1. DARE: Yu et al. 2023, arXiv:2311.03099, section 3.2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import merge_utils
from torch import Tensor, nn

from mcit.core.errors import ConfigError, StateError
from mcit.core.files import digest_of
from mcit.core.types import JsonDict
from mcit.models import adapters
from mcit.models.adapterfile import AdapterFile, LoraPair, concat, negated, without_routers
from mcit.models.lineage import Delta, Lineage
from mcit.models.quant import is_quantised

PEFT_TYPES = {
    "linear": "linear",
    "ties": "ties",
    "dare": "dare_linear",
    "linear_svd": "svd",
    "ties_svd": "ties_svd",
    "dare_svd": "dare_linear_svd",
}
"""Our name to PEFT's ``combination_type``."""
_MADE = "combined"


@dataclass(frozen=True)
class Combination:
    """Which stages are combined and how."""

    how: str
    stages: tuple[int, ...]
    """Numbers from 1."""
    weights: tuple[float, ...]
    density: float
    """Share of the values that TIES or DARE keep."""
    rank: int | None = None
    """Of the result of the kinds on updates; None is the largest rank combined."""
    seed: int = 0
    """Of the values that DARE drops."""

    def json(self) -> JsonDict:
        """For records; the same content, the same result."""
        found = {"how": self.how, "stages": list(self.stages), "weights": list(self.weights), "density": self.density}
        return {**found, "rank": self.rank, "seed": self.seed}

    @property
    def name(self) -> str:
        """Of folders: kind, stages, and a checksum of everything."""
        stages = "-".join(f"{k:02d}" for k in self.stages)
        return f"{self.how}-{stages}-{digest_of(self.json())[:6]}"


def combination(
    how: str,
    *,
    committed: Sequence[int],
    stages: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    density: float | None = None,
    rank: int | None = None,
    seed: int = 0,
) -> Combination:
    """A checked combination; all of the `committed` stages, weights 1 and density 0.5 where nothing else is said.

    Raises ConfigError for what cannot be combined.
    """
    where = f"--combine {how}"
    chosen = tuple(stages if stages is not None else committed)
    wrong = [k for k in chosen if k not in committed]
    if wrong or len(set(chosen)) != len(chosen) or len(chosen) < 2:
        what = f"stage {wrong[0]} is not committed" if wrong else "needs at least two different stages"
        there = ", ".join(map(str, committed)) or "none yet"
        raise ConfigError(what, where="--stages", fix=f"choose at least two of {there}")
    given = tuple(float(w) for w in weights) if weights is not None else (1.0,) * len(chosen)
    if len(given) != len(chosen):
        raise ConfigError(f"{len(given)} weights for {len(chosen)} stages", where="--weights", fix="give one per stage")
    if not all(map(math.isfinite, given)):
        raise ConfigError("a weight is not finite", where="--weights", fix="give numbers such as 1,0.5")
    if density is not None and (how.startswith("linear") or not 0 < density <= 1):
        what = "goes with ties and dare" if how.startswith("linear") else "is no share above 0, up to 1"
        raise ConfigError(what, where="--density", fix="leave it out, or give for example --density 0.5")
    if rank is not None and (not how.endswith("_svd") or rank < 1):
        raise ConfigError(
            "goes with the kinds that end in _svd, and is at least 1", where=where, fix="leave --rank out"
        )
    return Combination(how, chosen, given, 1.0 if how.startswith("linear") else density or 0.5, rank, seed)


def combined_digest(lineage: Lineage, spec: Combination) -> str:
    """Identity of the combined weights."""
    chosen = Lineage(lineage.base, lineage.base_sha256, _up_to(lineage, max(spec.stages)))
    return digest_of([chosen.digest, spec.json()])


def _up_to(lineage: Lineage, number: int) -> tuple[Delta, ...]:
    return lineage.deltas[: lineage.position(number) + 1]


def _below(lineage: Lineage, number: int) -> Delta | None:
    """The stage that the one of this number was trained on; None for the first."""
    at = lineage.position(number)
    return lineage.deltas[at - 1] if at else None


def own_effect(lineage: Lineage, stage: int) -> AdapterFile:
    """What the stage of this number itself added; where it went on training the adapter below, that one is taken off.

    Raises StateError when the stage trained whole weights, or a mixture that no plain pair does the same as.
    """
    delta, before = lineage.deltas[lineage.position(stage)], _below(lineage, stage)
    if delta.kind == "none":
        fix = "choose other stages, or export it with --as merged"
        raise StateError("the stage trained whole weights, which no adapter can hold", where=str(delta.folder), fix=fix)
    file = without_routers(delta.read())
    return concat([negated(before.read()), file]) if before is not None and before.carry == "keep" else file


def combine(model: nn.Module, lineage: Lineage, spec: Combination) -> AdapterFile:
    """The combined adapter of some stages, relative to `model`: the weights that the first stage began with.

    `model` is as before afterwards. Raises StateError for a stage without an adapter, ConfigError for adapters whose
    factors cannot be combined, or a model with a live adapter.
    """
    if adapters.lora_layers(model):
        what = "base.adapter lives beside a quantised base, and stages are combined on a base without adapters"
        raise ConfigError(what, where=f"--combine {spec.how}", fix="combine the stages of a run on an unquantised base")
    effects = [own_effect(lineage, stage) for stage in spec.stages]
    if not spec.how.endswith("_svd"):
        _refuse_factors(lineage, effects, spec)
    elif spec.rank is not None:
        _refuse_rank(effects, spec.rank)
    begin = {name: value.detach().float().cpu() for name, value in adapters.base_parameters(model).items()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(spec.seed)
        lora = _pairs(model, effects, spec)
        full = _whole(begin, lineage, spec)
    return AdapterFile(lora, full)


def place(model: nn.Module, file: AdapterFile) -> None:
    """Put a combination into the weights, or frozen beside them where they are quantised."""
    if is_quantised(model):
        adapters.attach_groups(model, file, name="combined")
    else:
        adapters.merge(model, file)


def _refuse_factors(lineage: Lineage, effects: Sequence[AdapterFile], spec: Combination) -> None:
    ranks = sorted({pair.rank for effect in effects for pair in effect.lora.values()})
    kept = [k for k in spec.stages if (before := _below(lineage, k)) and before.carry == "keep"]
    if kept or len(ranks) > 1:
        what = f"the adapters have ranks {', '.join(map(str, ranks))}, and {spec.how} adds factors of one rank"
        if kept:
            what = f"stage {kept[0]} went on training the adapter below it, so its own effect has no factors of its own"
        fix = f"use {spec.how}_svd, which combines the updates themselves"
        raise ConfigError(what, where=f"--combine {spec.how}", fix=fix)


def _refuse_rank(effects: Sequence[AdapterFile], rank: int) -> None:
    pairs = [pair for effect in effects for pair in effect.lora.values()]
    most = min((min(pair.A_RI.shape[1], pair.B_OR.shape[0]) for pair in pairs), default=rank)
    if rank > most:
        what = f"the smallest matrix that is adapted has no rank above {most}"
        raise ConfigError(what, where=f"--rank {rank}", fix=f"give at most --rank {most}")


def _pairs(model: nn.Module, effects: Sequence[AdapterFile], spec: Combination) -> dict[str, LoraPair]:
    """`add_weighted_adapter` on live adapters with the stages' values."""
    names = [f"stage{stage:02d}" for stage in spec.stages]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by older names, and tells about several adapters
        live: Any = get_peft_model(model, _config(effects[0]), adapter_name=names[0])
        for name, effect in zip(names[1:], effects[1:], strict=True):
            live.add_adapter(name, _config(effect))
        layers = {n: m for n, m in live.get_base_model().named_modules() if isinstance(m, LoraLayer)}
        for name, effect in zip(names, effects, strict=True):
            for module, pair in effect.lora.items():
                layer: Any = layers[module]
                layer.lora_A[name].weight.data.copy_(pair.A_RI)
                layer.lora_B[name].weight.data.copy_(pair.B_OR)
        live.add_weighted_adapter(
            names,
            list(spec.weights),
            _MADE,
            combination_type=PEFT_TYPES[spec.how],
            svd_rank=spec.rank,
            density=None if spec.how.startswith("linear") else spec.density,
        )
    found = {}
    for module, layer in sorted(layers.items()):
        if _MADE in layer.lora_A:
            a, b = (part[_MADE].weight.detach().float().cpu().clone() for part in (layer.lora_A, layer.lora_B))
            found[module] = LoraPair(a, b, float(layer.scaling[_MADE]))
    live.unload()
    return found


def _config(effect: AdapterFile) -> LoraConfig:
    """PEFT's settings of an adapter: rank and alpha per module as they are."""
    pairs = sorted(effect.lora.items())
    return LoraConfig(
        r=pairs[0][1].rank,
        target_modules=[module for module, _ in pairs],
        rank_pattern={module: pair.rank for module, pair in pairs},
        alpha_pattern={module: pair.scale * pair.rank for module, pair in pairs},
    )


def _whole(begin: Mapping[str, Tensor], lineage: Lineage, spec: Combination) -> dict[str, Tensor]:
    """Tensors trained whole: what the run began with plus the combined differences that the chosen stages made."""
    now = dict(begin)
    changes: dict[str, list[tuple[Tensor, float]]] = {}
    for delta in _up_to(lineage, max(spec.stages)):
        for name, value in delta.read().full.items():
            if delta.index in spec.stages:
                weight = spec.weights[spec.stages.index(delta.index)]
                changes.setdefault(name, []).append((value.float() - now[name], weight))
            now[name] = value.float()
    out = {}
    for name, given in sorted(changes.items()):
        tensors, weights = [tensor for tensor, _ in given], torch.tensor([weight for _, weight in given])
        out[name] = begin[name].float() + _combined(tensors, weights, spec)
    return out


def _combined(tensors: list[Tensor], weights: Tensor, spec: Combination) -> Tensor:
    kind = spec.how.removesuffix("_svd")
    if kind == "ties":
        return merge_utils.ties(tensors, weights, spec.density)
    if kind == "dare":
        return merge_utils.dare_linear(tensors, weights, spec.density)
    return merge_utils.task_arithmetic(tensors, weights)
