"""The vision tower of a model whose features are kept: what a frozen tower makes of a picture is computed once.

The tower's own ``forward`` is replaced by one that hands the model's code the same named outputs and makes or finds a part
when it is read. What is kept is what the projector is given, so the projector may train. Features are computed picture by
picture and the same way for whoever asks, whatever is kept already: a run has the same bytes with an empty cache, a full one
and one that was lost.

Kept parts are named by the picture as the processor made it (and so by picture, processor and what was done to the picture),
by the tower's weights, config and code, by library versions and by what else last bits follow from. A tower that trains,
carries an adapter or takes more than pictures runs as it is.

Shapes: N pictures (or tiles), C channels, H and W pixels.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mcit.core.entries import code_digest, versions
from mcit.core.errors import TrainingError
from mcit.core.files import canonical_json, digest_of
from mcit.core.profile import timed
from mcit.core.types import JsonDict
from mcit.engine import linears
from mcit.engine.features import FeatureStore
from mcit.engine.flops import FlopCount

_PLAIN = (bool, int, float, str, type(None))
_NAMELESS = "the tower's output has no named parts"
_CLOSE, _CLOSE_LOW = 1e-3, 0.05
"""Most by which a feature may differ between a picture alone and beside another, of the largest, in fp32 and lower."""


Parts = Mapping[str, Tensor | None]
"""The tensors of an output by name, those of layers with a number: ``hidden_states.3``; None for one that was not asked for."""


def keep_features(tower: nn.Module, limit: int, *, told: Callable[[str], None] = lambda line: None) -> None:
    """Keep what this tower makes of pictures, in at most `limit` bytes; `told` gets a line where that turns out not to go."""
    tower.forward = KeptTower(tower, limit, told)


class KeptTower:
    """Stands for the ``forward`` of a tower."""

    def __init__(self, tower: nn.Module, limit: int, told: Callable[[str], None]) -> None:
        self._tower = weakref.ref(tower)  # a model is freed when nobody has it, not by a search for circles
        self._limit, self._told = limit, told
        self._said: set[str] = set()
        self._tried: dict[str, str | Parts] = {}
        """By the settings of a call, why it cannot be kept, or an output of two pictures."""
        self._weights: list[tuple[Tensor, int]] = []
        self._store: FeatureStore | None = None
        self.found = self.computed = 0
        """Parts that were there, pictures that were computed."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the tower's own code gives, with parts made or found when they are read."""
        given = {**kwargs, "pixel_values": args[0]} if args else dict(kwargs)
        reason = call_refusal(given, more=len(args) > 1) or tower_refusal(self._own)
        parts = reason or self._trial(given)
        if isinstance(parts, str):
            self._say("the vision cache is not used", parts)
            return run_tower(self._own, *args, **kwargs)
        store = self._opened()
        pixels_NCHW: Tensor = given.pop("pixel_values")
        part = functools.partial(self._part, store, pixels_NCHW, given, self._keys(pixels_NCHW, given), {})
        return Features(parts, part)

    def _trial(self, given: Mapping[str, Any]) -> str | Parts:
        settings = canonical_json([{**given, "pixel_values": None}, _numerics(given["pixel_values"])])
        if settings not in self._tried:
            self._tried[settings] = trial(self._own, **given)
        return self._tried[settings]

    # ---- parts ------------------------------------------------------------------------------------------------------
    def _part(
        self,
        store: FeatureStore,
        pixels_NCHW: Tensor,
        rest: Mapping[str, Any],
        keys: Sequence[str],
        made: dict[str, Parts],
        name: str,
    ) -> Tensor:
        """A part for all pictures; one that is shown twice is computed once. `made` is what was computed for other parts."""
        parts: dict[str, Tensor] = {}
        with timed("vision"):
            for key, picture_CHW in zip(keys, pixels_NCHW, strict=True):
                if key in parts:
                    continue
                value = None if key in made else store.get(f"{key}-{name}")
                self.found += value is not None
                if value is None:
                    if key not in made:
                        made[key] = self._alone(picture_CHW, rest)
                    value = made[key][name]
                    if value is None:
                        raise TrainingError(
                            f"the vision tower gives no {name} for this picture",
                            where="engine.vision_cache",
                            fix="set it to off",
                        )
                    value = value.contiguous()  # as it is read again
                    store.put(f"{key}-{name}", value.cpu())
                parts[key] = value.to(pixels_NCHW.device)
        if store.note:
            self._say("the vision cache takes no more pictures", store.note)
        return torch.cat([parts[key] for key in keys])

    def _alone(self, picture_CHW: Tensor, rest: Mapping[str, Any]) -> Parts:
        """With the faster linears and MLPs, which only some who ask have switched on for their whole model."""
        from mcit.engine.gated import gated  # needs peft, which a plan can do without

        self.computed += 1
        with torch.no_grad(), linears.quick(self._own), gated(self._own):
            return parts_of(run_tower(self._own, picture_CHW[None].clone(), **rest))

    def _keys(self, pixels_NCHW: Tensor, rest: Mapping[str, Any]) -> list[str]:
        """A name for each picture as the processor made it, and for how it is computed."""
        about = canonical_json([list(pixels_NCHW.shape[1:]), str(pixels_NCHW.dtype), rest, _numerics(pixels_NCHW)])
        pictures = pixels_NCHW.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
        return [hashlib.blake2b(about.encode() + picture.tobytes(), digest_size=20).hexdigest() for picture in pictures]

    # ---- the tower --------------------------------------------------------------------------------------------------
    @property
    def _own(self) -> nn.Module:
        tower = self._tower()
        if tower is None:
            raise TrainingError("the vision tower is gone", where="engine.vision_cache", fix="keep the model it is of")
        return tower

    def _opened(self) -> FeatureStore:
        """The folder of the weights as they are; what they were is held, so that no new tensor can have its place."""
        tensors = [*self._own.parameters(), *self._own.buffers()]
        same = len(tensors) == len(self._weights) and all(
            now.data_ptr() == old.data_ptr() and now._version == version
            for now, (old, version) in zip(tensors, self._weights, strict=True)
        )
        if self._store is None or not same:
            self._weights = [(tensor.detach(), tensor._version) for tensor in tensors]
            self._store = FeatureStore(identity(self._own), self._limit)
        return self._store

    def _say(self, what: str, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            self._told(f"{what}: {reason}")


class Features:
    """The output of a tower by its named parts: each is asked for when it is read. What is set stays as it is set."""

    def __init__(self, parts: Parts, part: Callable[[str], Tensor]) -> None:
        """`parts` say which there are, as an output of other pictures had them."""
        self._parts, self._part = parts, part

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        depth = sum(part.startswith(f"{name}.") for part in self._parts)
        value = Layers(name, depth, self._of) if depth else self._of(name)
        setattr(self, name, value)
        return value

    def _of(self, name: str) -> Tensor | None:
        return None if self._parts.get(name) is None else self._part(name)

    def __getitem__(self, key: int | str) -> Any:
        names = list(dict.fromkeys(part.partition(".")[0] for part in self._parts))
        return getattr(self, key if isinstance(key, str) else names[key])


class Layers(Sequence[Tensor | None]):
    """A part that has a tensor per layer, or None."""

    def __init__(self, name: str, depth: int, part: Callable[[str], Tensor | None]) -> None:
        self._name, self._depth, self._part = name, depth, part

    def __len__(self) -> int:
        return self._depth

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(self[k] for k in range(*place.indices(self._depth)))
        if not -self._depth <= place < self._depth:
            raise IndexError(place)
        return self._part(f"{self._name}.{place % self._depth}")


def run_tower(tower: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the tower's own code gives."""
    return type(tower).forward(tower, *args, **kwargs)


def parts_of(out: Any) -> Parts:
    """Tensors of an output by name, those of a tuple as ``name.place``; empty for an output without names."""
    return dict(_named(out)) if isinstance(out, Mapping) else {}


def _named(out: Mapping[str, Any]) -> Iterator[tuple[str, Tensor | None]]:
    for name, value in out.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple):
            yield from (
                (f"{name}.{k}", layer) for k, layer in enumerate(value) if layer is None or isinstance(layer, Tensor)
            )


def trial(tower: nn.Module, pixel_values: Tensor, **rest: Any) -> str | Parts:
    """Why pictures cannot be computed one by one: outputs of two of them, together and alone, are compared. Or the output.

    The second picture is the first with noise on it.
    """
    try:
        return _tried(tower, pixel_values, rest)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _tried(tower: nn.Module, pixel_values: Tensor, rest: Mapping[str, Any]) -> str | Parts:
    first_CHW = pixel_values[0]
    noise_CHW = torch.randn(first_CHW.shape, generator=torch.Generator().manual_seed(0))
    pair = torch.stack([first_CHW, first_CHW + noise_CHW.to(first_CHW)])
    with torch.no_grad():
        together, *alone = (parts_of(run_tower(tower, x, **rest)) for x in (pair, *pair.clone().split(1)))
    if not together or any(one.keys() != together.keys() for one in alone):
        return _NAMELESS
    close = _CLOSE if pixel_values.dtype == torch.float32 and not _autocast(pixel_values) else _CLOSE_LOW
    for name, both in together.items():
        parts = [one[name] for one in alone]
        if both is None or any(part is None for part in parts):
            continue
        if not both.ndim:
            return f"the tower's {name} is one number for all pictures"
        apart = torch.cat([part for part in parts if part is not None])
        if apart.shape != both.shape or not _alike(apart, both, close):
            return "what the tower makes of a picture depends on the pictures beside it"
    return {name: None if part is None else part.new_empty(0) for name, part in together.items()}


def _alike(one: Tensor, other: Tensor, close: float) -> bool:
    if one.dtype == torch.bool:
        return torch.equal(one, other)
    return bool((one - other).abs().max() <= close * other.abs().max())


class _Refused(Exception):
    """A call of the tower whose features cannot be kept by picture."""


@dataclass(frozen=True)
class Reading:
    """What a model's code reads of its tower for some pictures."""

    numbers: int
    """Numbers in the parts that are read."""
    flops: int
    """What the tower takes for them."""


def reading(model: nn.Module, tower: nn.Module, pixels: Mapping[str, Tensor]) -> Reading | str:
    """What the projector is given of these pictures, or why that cannot be kept by picture. A skeleton will do.

    An error of the model's code, which may ask for values that shapes do not have, is passed on.
    """
    read: dict[str, int] = {}
    flops = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal flops
        reason = call_refusal({**kwargs, "pixel_values": args[0]} if args else kwargs, more=len(args) > 1)
        if reason:
            raise _Refused(reason)
        with FlopCount() as count:
            parts = parts_of(run_tower(tower, *args, **kwargs))
        flops += count.flops
        if not parts:
            raise _Refused(_NAMELESS)

        def part(name: str) -> Tensor:
            value = parts[name]
            if value is None:  # `Features` asks for what there is alone
                raise KeyError(name)
            read[name] = read.get(name, 0) + value.numel()
            return value

        return Features(parts, part)

    tower.forward = forward
    try:
        with torch.no_grad():
            owner: Any = model if hasattr(model, "get_image_features") else model.base_model
            owner.get_image_features(**pixels)
    except _Refused as refused:
        return str(refused)
    finally:
        del tower.forward
    return Reading(sum(read.values()), flops)


def call_refusal(given: Mapping[str, Any], *, more: bool = False) -> str:
    """Why features of a call cannot be kept by picture; empty when they can. Pictures must come on an axis of their own."""
    pixels = given.get("pixel_values")
    odd = [name for name, value in given.items() if name != "pixel_values" and not _is_plain(value)]
    if more or odd or given.get("return_dict") is False:
        return f"the tower is given more than pictures ({', '.join(odd) or 'by place'})"
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or not pixels.is_floating_point() or not len(pixels):
        return "the tower does not take pictures one beside the other"
    return "gradients of pictures are wanted" if pixels.requires_grad else ""


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or isinstance(value, (list, tuple)) and all(isinstance(x, _PLAIN) for x in value)


def tower_refusal(tower: nn.Module) -> str:
    """Why features of a tower cannot be kept as it stands; empty when they can."""
    if any(parameter.requires_grad for parameter in tower.parameters()):
        return "the tower trains"
    if any(hasattr(module, "base_layer") for module in tower.modules()):
        return "the tower carries an adapter"
    if any(module.training and not getattr(module, "gradient_checkpointing", False) for module in tower.modules()):
        return "the tower is in training mode"
    if any(not parameter.is_floating_point() for parameter in tower.parameters()):
        return "the tower is quantised"
    return ""


def identity(tower: nn.Module) -> JsonDict:
    """Everything that features follow from beside the picture, down to their last bits."""
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in (*tower.named_parameters(), *tower.named_buffers()):
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    device = next(tower.parameters()).device
    return {
        "weights": digest.hexdigest(),
        "class": f"{type(tower).__module__}.{type(tower).__qualname__}",
        "config": digest_of(repr(sorted(vars(getattr(tower, "config", tower)).items(), key=str))),
        "libraries": versions(("torch", "transformers", "timm")),
        "code": code_digest("engine", "models"),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
    }


def _processor() -> list[Any]:
    return [platform.machine(), linears.processor() or platform.processor(), torch.backends.cpu.get_cpu_capability()]


def _numerics(like: Tensor) -> list[str | int | bool]:
    """Settings of the process that last bits follow from, as they are now."""
    onednn = bool(torch.backends.mkldnn.enabled)
    precision = torch.get_float32_matmul_precision()
    return [_autocast(like), onednn, onednn and linears.pays(), precision, torch.get_num_threads()]


def _autocast(like: Tensor) -> str:
    """The type that products are computed in; empty where it is that of their inputs."""
    kind = like.device.type
    return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""
