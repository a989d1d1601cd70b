"""Which half of a decoder trains: pure draws over parameter names and sizes, and masks inside one tensor.

Shapes: O output rows, I in features. A draw depends on its seed and on the names alone, so every process makes the
same one.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mcit.core.seeds import seed_for

T = TypeVar("T")
_ADAPTER = re.compile(r"\.lora_[AB]\.[^.]+(?=\.)")
_ENDING = re.compile(r"(\.weight|\.bias|_bias|\.router)$")
_EMBEDDINGS = ("embed_tokens", "wte")
_OUTSIDE = (*_EMBEDDINGS, "lm_head")


@dataclass(frozen=True, slots=True)
class Part:
    """What is trained or frozen as a whole: a matrix with its bias, a norm, or a LoRA pair."""

    name: str
    """Module name, adapter and wrapper left out."""
    block: int
    member: str
    """Name inside its block."""
    category: str
    """attention, ffn, norm; other for matrices outside the blocks."""
    size: int
    """Numbers of its matrices (of a norm: of its vectors); biases do not count."""


def part_name(parameter: str) -> str:
    """Module that a parameter belongs to: ``a.base_layer.bias`` and ``a.lora_A.default.weight`` are both of ``a``."""
    return _ENDING.sub("", _ADAPTER.sub("", parameter.replace(".base_layer.", ".")))


def decoder_container(names: Iterable[str]) -> str | None:
    """The list of decoder blocks, such as ``model.layers``: the longest numbered list beside the text embeddings."""
    names = list(names)
    homes = set()
    for name in names:
        parts = name.split(".")
        homes |= {".".join(parts[:i]) for i, part in enumerate(parts) if part in _EMBEDDINGS}
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for home in homes:
            depth = len(home.split(".")) if home else 0
            if ".".join(parts[:depth]) == home and len(parts) > depth + 2 and parts[depth + 1].isdigit():
                found.update([".".join(parts[: depth + 1])])
    return min(found, key=lambda c: (-found[c], c)) if found else None


def block_parts(shapes: Mapping[str, Sequence[int]], container: str) -> list[Part]:
    """Parts of the blocks below `container`, sorted by name, from the shapes of the parameters to choose from."""
    members: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for name, shape in shapes.items():
        if name.startswith(container + "."):
            members[part_name(name)].append(tuple(shape))
    parts = []
    for name, found in sorted(members.items()):
        number, _, member = name[len(container) + 1 :].partition(".")
        if not number.isdigit() or not member:
            continue
        matrices = [s for s in found if len(s) > 1]
        size = sum(_numel(s) for s in matrices or found)
        parts.append(Part(name, int(number), member, _category(member, bool(matrices)), size))
    return parts


def _category(member: str, is_matrix: bool) -> str:
    if not is_matrix:
        return "norm"
    return "attention" if any("attn" in p or "attention" in p for p in member.split(".")) else "ffn"


def _numel(shape: Sequence[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def draw_category(parts: Sequence[Part], *, seed: int) -> frozenset[str]:
    """Half of the parts of equal size in every category of every block.

    Of an odd number n, (n + 1) / 2 train in a random half of the blocks and (n - 1) / 2 in the others; an odd number of
    blocks is halved by a coin. With four attention matrices of one size two train; where K and V are smaller than Q
    and O, one of {Q, O} and one of {K, V}, so that half of the numbers train whatever is drawn.
    """
    groups: dict[tuple[int, str, int], list[Part]] = defaultdict(list)
    for part in parts:
        groups[part.block, part.category, part.size].append(part)
    odd: dict[tuple[str, ...], list[list[Part]]] = defaultdict(list)
    chosen: set[str] = set()
    for key, group in sorted(groups.items()):
        group = sorted(group, key=lambda p: p.name)
        if len(group) % 2:
            odd[group[0].category, *(p.member for p in group)].append(group)
        else:
            chosen |= _sample(group, len(group) // 2, seed_for(seed, *key))
    for kind, alike in sorted(odd.items()):
        more = _half(range(len(alike)), seed_for(seed, *kind, "blocks"))
        for i, group in enumerate(alike):
            first = group[0]
            count = len(group) // 2 + (i in more)
            chosen |= _sample(group, count, seed_for(seed, first.block, first.category, first.size))
    return _never_empty(chosen, parts, seed)


def draw_layer(parts: Sequence[Part], *, seed: int) -> frozenset[str]:
    """All parts of half of the blocks."""
    blocks = _half(sorted({p.block for p in parts}), seed_for(seed, "layers"))
    return _never_empty({p.name for p in parts if p.block in blocks}, parts, seed)


def draw_model(parts: Sequence[Part], *, seed: int) -> frozenset[str]:
    """Half of all matrices whatever they are, and half of all norms."""
    norms = {p.name for p in parts if p.category == "norm"}
    matrices = {p.name for p in parts} - norms
    chosen = _half(sorted(matrices), seed_for(seed, "matrices")) | _half(sorted(norms), seed_for(seed, "norms"))
    return _never_empty(chosen, parts, seed)


DRAWS = {"category": draw_category, "layer": draw_layer, "model": draw_model}
"""By selection."""


def outside_parts(shapes: Mapping[str, Sequence[int]]) -> list[Part]:
    """Embeddings and head among these parameters, each a block of its own; the draw over all matrices looks at names alone."""
    found = {part_name(n): n for n in sorted(shapes) if len(shapes[n]) > 1 and set(n.split(".")) & set(_OUTSIDE)}
    return [
        Part(part, place, part, "other", _numel(shapes[name]))
        for place, (part, name) in enumerate(sorted(found.items()))
    ]


def _half(items: Sequence[T], seed: int) -> set[T]:
    rng = random.Random(seed)
    count = len(items) // 2 + (rng.random() < 0.5 if len(items) % 2 else 0)
    return set(rng.sample(items, count))


def _sample(group: Sequence[Part], count: int, seed: int) -> set[str]:
    return set(random.Random(seed).sample([p.name for p in group], count))


def _never_empty(chosen: set[str], parts: Sequence[Part], seed: int) -> frozenset[str]:
    if parts and not chosen:
        chosen = _sample(sorted(parts, key=lambda p: p.name), 1, seed_for(seed, "one"))
    return frozenset(chosen)


def row_mask(rows: int, *, seed: int) -> Tensor:
    """True on a random half of `rows`, shape (O,); the odd one falls by a coin."""
    mask_O = torch.zeros(rows, dtype=torch.bool)
    mask_O[sorted(_half(range(rows), seed))] = True
    return mask_O


def element_mask(shape: Sequence[int], *, seed: int) -> Tensor:
    """True with probability 1/2 for each entry, independently."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, tuple(shape), generator=generator, dtype=torch.uint8).bool()


def spread(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask of rows (O,) or of entries as a mask of `shape`."""
    if mask.ndim == len(shape):
        return mask
    return mask.view(-1, *[1] * (len(shape) - 1)).expand(*shape)


def half_reset(tuned: Tensor, base: Tensor, keep: Tensor) -> Tensor:
    """`tuned` where `keep` is true, `base` elsewhere: the pilot experiment of the paper."""
    return torch.where(keep, tuned, base)


def matmul_share(frozen: float, *, checkpointing: bool) -> float:
    """Matmul work left when a share `frozen` of the matrices needs no weight gradient.

    Forward, input gradient and weight gradient count 1 each, recomputation under checkpointing 1 more.
    """
    parts = 4 if checkpointing else 3
    return (parts - frozen) / parts
