"""PEFT adapter folders as plain tensors: read, write, join, shorten. Nothing here imports peft.

Names are those of a live transformers 5 model (``model.language_model.layers.0.self_attn.q_proj``). Folders of the
older layout (``language_model.model.layers…``, ``multi_modal_projector…``) are read too.

Shapes: R rank, I/O in/out features of the adapted matrix, E experts of a mixture (`mcit.models.experts`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import regex
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from mcit.core.errors import StateError
from mcit.core.files import read_json, write_json
from mcit.core.records import AdapterNote
from mcit.core.stored import read_record
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.core.types import JsonDict

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
EXTRA = "extra.safetensors"
"""Tensors of an export that PEFT cannot name."""
OURS = "mcit.json"
"""Written beside PEFT's two files: base checksum and the statement that names are those of the live model."""
MIXTURE = "MCIT_MOE_LORA"
"""``peft_type`` of a mixture, which only this package reads: peft has none that does the same, and refuses the folder."""
_PREFIX = "base_model.model."
_ROUTER = ".lora_router.weight"
_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<role>[AB])(?:\.[A-Za-z0-9_-]+)?\.weight$")
_SAVED = re.compile(r"\.modules_to_save\.[A-Za-z0-9_-]+(?=\.)")
_PATTERN_S = 0.2
_Pattern = Annotated[str, Field(min_length=1, max_length=1000)]
_UNREAD = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "fan_in_fan_out",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "megatron_config",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is; PiSSA and its kin change it."""


class PeftSettings(BaseModel):
    """What is read of adapter_config.json; other keys are PEFT's own."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    r: int = Field(8, ge=1)
    lora_alpha: float = 8
    use_rslora: bool = False
    rank_pattern: dict[_Pattern, Annotated[int, Field(ge=1)]] = {}
    alpha_pattern: dict[_Pattern, float] = {}

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value


@dataclass(frozen=True)
class LoraPair:
    """One adapted matrix: its weight gains ``scale * B_OR @ A_RI``; with a router the experts are weighed per token."""

    A_RI: Tensor
    B_OR: Tensor
    scale: float
    router_EI: Tensor | None = None

    @property
    def rank(self) -> int:
        """R."""
        return int(self.A_RI.shape[0])


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter folder holds."""

    lora: Mapping[str, LoraPair] = field(default_factory=dict)
    """By live module name."""
    full: Mapping[str, Tensor] = field(default_factory=dict)
    """Trained tensors outside the adapter, by live parameter name."""
    config: JsonDict = field(default_factory=dict)
    """What adapter_config.json said."""


def product(pair: LoraPair) -> Tensor:
    """What the pair adds to its matrix, (O, I) in fp32. Raises StateError for a mixture that is none."""
    pair = folded(pair)
    return pair.scale * (pair.B_OR.float() @ pair.A_RI.float())


def folded(pair: LoraPair, *, where: str = "adapter") -> LoraPair:
    """The pair without a router that does exactly the same: of a mixture that weighs all experts alike, or has no effect.

    Raises StateError for any other mixture, which no matrix does the same as.
    """
    if pair.router_EI is None:
        return pair
    if bool((pair.router_EI == pair.router_EI[:1]).all()):
        return LoraPair(pair.A_RI, pair.B_OR, pair.scale / len(pair.router_EI))
    if not pair.A_RI.any() or not pair.B_OR.any():
        return LoraPair(pair.A_RI, pair.B_OR, pair.scale)
    what = f"is a mixture of {len(pair.router_EI)} experts weighed per token, which no matrix and no PEFT adapter does"
    raise StateError(
        what, where=where, fix="evaluate it with mcit; train with adapter.kind: lora what is to be exported"
    )


def without_routers(file: AdapterFile) -> AdapterFile:
    """The adapter with every mixture folded. Raises StateError where that cannot be exact."""
    if all(pair.router_EI is None for pair in file.lora.values()):
        return file
    return replace(file, lora={module: folded(pair, where=module) for module, pair in file.lora.items()})


# ---- reading ---------------------------------------------------------------------------------------------------------
def read_adapter(folder: Path | str, *, known: Collection[str] | None = None) -> AdapterFile:
    """Read a PEFT LoRA folder, and what an export has beside it because PEFT cannot name it.

    `known` are the live model's parameter names: with them, names are matched instead of guessed from the layout.
    Raises StateError for a missing or damaged file, half a pair, or a LoRA variant whose effect is not scale * B @ A.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    peft = _settings(config, folder / CONFIG)
    _refuse_variants(config, folder / CONFIG)
    live = (folder / OURS).is_file() and read_record(folder / OURS, AdapterNote)["names"] == "live"
    halves: dict[str, dict[str, Tensor]] = {}
    routers: dict[str, Tensor] = {}
    full: dict[str, Tensor] = {}
    beside = load_tensors(folder / EXTRA) if (folder / EXTRA).is_file() else {}
    for key, tensor in {**load_tensors(folder / WEIGHTS), **beside}.items():
        name = _SAVED.sub("", key.removeprefix(_PREFIX))
        match = _LORA.match(name)
        if match:
            module = match["module"] if live else live_name(match["module"], known=known, suffix=".weight")
            halves.setdefault(module, {})[match["role"]] = tensor
        elif name.endswith(_ROUTER) and config["peft_type"] == MIXTURE:
            routers[name.removesuffix(_ROUTER)] = tensor
        elif ".lora_" in name:
            what, fix = (
                f"tensor '{key}' is of a kind of LoRA that is not supported",
                "give an adapter of plain LoRA or rsLoRA",
            )
            raise StateError(what, where=str(folder / WEIGHTS), fix=fix)
        else:
            full[name if live else live_name(name, known=known)] = tensor
    lora = {module: _pair(module, halves[module], peft, folder) for module in sorted(halves)}
    if config["peft_type"] == MIXTURE:
        lora = {
            module: replace(pair, router_EI=_router(module, pair, routers, folder)) for module, pair in lora.items()
        }
    return AdapterFile(lora, dict(sorted(full.items())), config)


def live_name(name: str, *, known: Collection[str] | None = None, suffix: str = "") -> str:
    """A parameter or module name of either layout as the live model has it."""
    if known is not None and name + suffix in known:
        return name
    new = name
    if name.startswith("language_model.model."):
        new = "model.language_model." + name.removeprefix("language_model.model.")
    elif name.startswith("language_model.lm_head"):
        new = name.removeprefix("language_model.")
    elif not name.startswith(("model.", "lm_head")):
        new = "model." + name
    return name if known is not None and new + suffix not in known else new


def _settings(config: JsonDict, path: Path) -> PeftSettings:
    try:
        return PeftSettings.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
        raise StateError(what, where=str(path), fix="restore the file that peft wrote") from None


def _refuse_variants(config: JsonDict, path: Path) -> None:
    found = config.get("peft_type")
    if found not in ("LORA", MIXTURE):
        raise StateError(
            f"peft_type is {found}, only LORA can be read", where=str(path), fix="merge it with peft first"
        )
    odd = [key for key in _UNREAD if config.get(key)]
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        odd.append("init_lora_weights")
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if odd:
        what = f"{', '.join(odd)} is set, which is not supported"
        raise StateError(what, where=str(path), fix="merge it with peft first")


def _pair(module: str, halves: Mapping[str, Tensor], peft: PeftSettings, folder: Path) -> LoraPair:
    where = f"{folder / WEIGHTS}: {module}"
    if set(halves) != {"A", "B"}:
        raise StateError(f"has lora_{next(iter(halves))} only", where=where, fix="restore the file")
    a, b = halves["A"], halves["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise StateError(f"A {tuple(a.shape)} and B {tuple(b.shape)} do not fit", where=where, fix="restore the file")
    rank = _patterned(peft.rank_pattern, module, peft.r, where=str(folder / CONFIG))
    if rank != a.shape[0]:
        raise StateError(f"rank is {a.shape[0]}, {CONFIG} says {rank}", where=where, fix="restore that file")
    alpha = _patterned(peft.alpha_pattern, module, peft.lora_alpha, where=str(folder / CONFIG))
    return LoraPair(a, b, alpha / (rank**0.5 if peft.use_rslora else rank))


def _router(module: str, pair: LoraPair, routers: Mapping[str, Tensor], folder: Path) -> Tensor:
    found = routers.get(module)
    if found is None or found.ndim != 2 or found.shape[1] != pair.A_RI.shape[1] or pair.rank % len(found):
        shape = "no router" if found is None else f"a router {tuple(found.shape)}"
        what = f"has {shape} for rank {pair.rank} and {pair.A_RI.shape[1]} inputs"
        raise StateError(what, where=f"{folder / WEIGHTS}: {module}", fix="restore the file")
    return found


def _patterned(patterns: Mapping[str, float], module: str, default: float, *, where: str) -> float:
    """PEFT's rule: the first key that matches the end of the name, at a dot. Raises StateError for one that takes too long."""
    old = module.replace("model.language_model.", "language_model.model.", 1)
    for key, value in patterns.items():
        if any(name == key or name.endswith(f".{key}") for name in (module, old)):
            return value
        if re.escape(key) == key.replace(".", "\\."):
            continue  # a plain name that is another
        try:
            if any(regex.fullmatch(rf"(.*\.)?({key})", name, timeout=_PATTERN_S) for name in (module, old)):
                return value
        except (regex.error, TimeoutError, RecursionError, OverflowError, MemoryError) as error:
            what = f"the pattern {key[:80]!r} is no regular expression that can be matched ({error or 'too slow'})"
            raise StateError(
                what, where=where, fix="write plain module names there, or merge it with peft first"
            ) from None
    return default


# ---- writing ---------------------------------------------------------------------------------------------------------
def write_adapter(
    folder: Path | str,
    file: AdapterFile,
    *,
    base: str,
    base_sha256: str,
    dropout: float = 0.0,
    note: JsonDict | None = None,
    known: Collection[str] | None = None,
    mixtures: bool = False,
) -> list[str]:
    """Write a folder that plain PEFT loads: LoRA pairs, and `full` under modules_to_save. Equal content, equal bytes.

    With `mixtures` pairs with routers stay what they are, in a folder that only `read_adapter` reads; else they are folded, or
    StateError is raised.

    `known` are all names of the model's state (parameters and buffers): a module is handed to PEFT only if `full` has
    all of it. Returns the names of `full` that PEFT cannot name, which are not written.
    """
    folder = Path(folder)
    file = file if mixtures else without_routers(file)
    modules, unnamed = modules_to_save(file.full, adapted=file.lora, known=known)
    tensors = {f"{_PREFIX}{n}": t.detach().float() for n, t in file.full.items() if n not in unnamed}
    for name, pair in file.lora.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = pair.A_RI.detach().float()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = pair.B_OR.detach().float()
        if pair.router_EI is not None:
            tensors[f"{_PREFIX}{name}{_ROUTER}"] = pair.router_EI.detach().float()
    save_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, _config(file, modules, base=base, dropout=dropout, known=known))
    write_json(folder / OURS, {"names": "live", "base_sha256": base_sha256, **(note or {})})
    return unnamed


def modules_to_save(
    full: Iterable[str], *, adapted: Iterable[str] = (), known: Collection[str] | None = None
) -> tuple[list[str], list[str]]:
    """Modules that PEFT must save whole so that every tensor of `full` is in one, and the tensors for which that fails.

    It fails for a tensor outside any module, and for a module that also holds an adapted or untrained one.
    """
    names = sorted(full)
    parents = {name.rpartition(".")[0] for name in names} - {""}
    outer = {p for p in parents if not any(p.startswith(q + ".") for q in parents)}
    have = set(names)
    bad = {p for p in outer if any(m == p or m.startswith(p + ".") for m in adapted)}
    bad |= {p for p in outer if any(n.startswith(p + ".") and n not in have for n in known or ())}
    good = outer - bad
    unnamed = [name for name in names if not any(name.startswith(p + ".") for p in good)]
    return sorted(good), unnamed


def _config(
    file: AdapterFile, modules: list[str], *, base: str, dropout: float, known: Collection[str] | None
) -> JsonDict:
    common = Counter((pair.rank, pair.scale) for pair in file.lora.values()).most_common()
    rank, scale = min((key for key, count in common if count == common[0][1]), default=(8, 1.0))
    ranks = {m: pair.rank for m, pair in sorted(file.lora.items()) if pair.rank != rank}
    alphas = {m: _alpha(p.scale, p.rank) for m, p in sorted(file.lora.items()) if (p.rank, p.scale) != (rank, scale)}
    config: JsonDict = {
        "peft_type": MIXTURE if any(pair.router_EI is not None for pair in file.lora.values()) else "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _alpha(scale, rank),
        "lora_dropout": dropout,
        "target_modules": sorted(file.lora),
        "modules_to_save": modules or None,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    if known is not None and _ties_embeddings(modules, known):
        config["ensure_weight_tying"] = True
    return config


def _ties_embeddings(modules: Iterable[str], known: Collection[str]) -> bool:
    """A trained embedding that is also the head: PEFT must be told, or it trains a copy that the head does not see."""
    embeddings = any(m.rsplit(".", 1)[-1] in ("embed_tokens", "wte") for m in modules)
    return embeddings and not any(n.startswith("lm_head.") for n in known)


def _alpha(scale: float, rank: int) -> float | int:
    alpha = scale * rank
    return int(alpha) if alpha == int(alpha) else alpha


def without_zeros(file: AdapterFile) -> tuple[AdapterFile, list[str]]:
    """The adapter without pairs whose A and B are 0 in every entry, and the modules of these.

    If all are, they stay in: a folder that adapts no module is none that PEFT loads.
    """
    zero = [m for m, pair in sorted(file.lora.items()) if not pair.A_RI.any() and not pair.B_OR.any()]
    if len(zero) == len(file.lora):
        return file, zero
    return AdapterFile({m: p for m, p in file.lora.items() if m not in zero}, file.full, file.config), zero


# ---- arithmetic ------------------------------------------------------------------------------------------------------
def concat(files: Sequence[AdapterFile]) -> AdapterFile:
    """Several adapters as one with their summed effect: ranks joined, every scale folded into B so that alpha = r.

    A tensor of `full` comes from the last file that has it. Raises StateError for a mixture that cannot be folded.
    """
    pairs: dict[str, list[LoraPair]] = {}
    full: dict[str, Tensor] = {}
    for file in map(without_routers, files):
        full.update(file.full)
        for module, pair in file.lora.items():
            pairs.setdefault(module, []).append(pair)
    lora = {
        module: LoraPair(
            torch.cat([p.A_RI.float() for p in found], dim=0),
            torch.cat([p.scale * p.B_OR.float() for p in found], dim=1),
            1.0,
        )
        for module, found in sorted(pairs.items())
    }
    return AdapterFile(lora, full, {})


def negated(file: AdapterFile) -> AdapterFile:
    """The adapter that takes the effect of the LoRA pairs away again; `full` is left out."""
    return AdapterFile({m: replace(p, scale=-p.scale) for m, p in file.lora.items()}, {}, {})


def truncate(file: AdapterFile, max_rank: int) -> tuple[AdapterFile, float]:
    """The best adapter of at most `max_rank` per module, and its relative error.

    The error is the Frobenius norm of what is lost over that of the whole, all modules together.
    """
    lost = total = 0.0
    lora = {}
    for module, pair in sorted(without_routers(file).lora.items()):
        singular_R, left_OR, right_RI = _svd(pair)
        energy_R = singular_R.square()
        total += float(energy_R.sum())
        lost += float(energy_R[max_rank:].sum())
        if pair.rank <= max_rank:
            lora[module] = pair
            continue
        root = singular_R[:max_rank].sqrt()
        lora[module] = LoraPair(
            (root[:, None] * right_RI[:max_rank]).float(), (left_OR[:, :max_rank] * root).float(), 1.0
        )
    return AdapterFile(lora, file.full, file.config), (lost / total) ** 0.5 if total else 0.0


def _svd(pair: LoraPair) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values (R), left (O, R) and right (R, I) vectors of the product, in fp64.

    Through QR of the factors: the decomposed matrix is (R, R), never (O, I).
    """
    q_left, r_left = torch.linalg.qr(pair.B_OR.double())
    q_right, r_right = torch.linalg.qr(pair.A_RI.double().T)
    u, s, vt = torch.linalg.svd(pair.scale * r_left @ r_right.T, full_matrices=False)
    return s, q_left @ u, vt @ q_right.T
