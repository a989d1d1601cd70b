"""Activation bytes of one forward and backward pass, found by running the model's own code on shapes alone.

Nothing is allocated: under torch's FakeTensorMode every operation computes shapes and dtypes only, autograd saves what it
would save, and a dispatch mode counts the storages that are alive. So checkpointing, attention kind, adapters, casts under
autocast and the architecture itself need no formula. A long decoder is run with 2 and with 6 of its layers and
continued in a straight line.
Shapes: B rows, T positions, N supervised positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcit.engine.forward import set_modes

_FEW, _MORE = 2, 6
"""Decoder layers of the two runs that a long decoder is continued from."""


@dataclass(frozen=True)
class MicroBatch:
    """Sizes of the largest micro-batch of a rank."""

    rows: int
    positions: int
    supervised: int
    """Supervised positions of all its rows together."""
    pixels: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)
    """Shape and dtype of what the processor makes of its images, by name."""


@dataclass(frozen=True)
class Activations:
    """Bytes beyond weights, gradients and optimiser."""

    forward: int
    """Alive when the forward pass ends: saved for backward."""
    peak: int
    """Most at any moment of forward and backward."""
    traced: bool = True
    """False when the model's code would not run on shapes and a rough count stands in."""
    why: str = ""


class PeakBytes(TorchDispatchMode):
    """Counts bytes of storages made inside the block, in real and in fake tensors: `now`, and most so far, `peak`."""

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}
        self._ignored = {_key(t) for t in ignore}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self._ignored:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def activations(model: nn.Module, batch: MicroBatch, *, bf16: bool, checkpointing: bool) -> Activations:
    """Bytes of a pass over `batch`, gradients of earlier micro-batches being there already.

    `model` is a skeleton on the meta device with adapters in place and `requires_grad` set; it is used up.
    """
    try:
        return _traced(model, batch, bf16=bf16, checkpointing=checkpointing)
    except Exception as error:  # someone else's forward pass may ask for values, which shapes do not have
        return rough(model, batch, bf16=bf16, checkpointing=checkpointing, why=f"{type(error).__name__}: {error}")


def _traced(model: nn.Module, batch: MicroBatch, *, bf16: bool, checkpointing: bool) -> Activations:
    decoder = model.get_decoder()  # type: ignore[operator]
    name, layers = _layers(decoder)
    parent, _, child = name.rpartition(".")
    long = layers is not None and len(layers) > _MORE and _alike(layers)
    set_modes(model, checkpointing=checkpointing)
    runs: list[tuple[int, int, int, int]] = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            for count in [_MORE, _FEW] if long else [0]:
                if layers is not None and count:
                    setattr(decoder.get_submodule(parent), child, nn.ModuleList(list(layers)[:count]))
                if not runs:
                    _place(model)
                runs.append(_pass(model, decoder, batch, bf16=bf16))
        finally:
            if layers is not None:
                setattr(decoder.get_submodule(parent), child, layers)
    rest = len(layers) - _MORE if layers is not None and long else 0
    forward, *peaks = (m + rest * (m - f) // (_MORE - _FEW) for m, f in zip(runs[0], runs[-1], strict=True))
    return Activations(forward, max(peaks))


def _place(model: nn.Module) -> None:
    """Tensors that are on the CPU as far as shapes tell, with gradients of an earlier micro-batch."""
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)


def _pass(model: nn.Module, decoder: nn.Module, batch: MicroBatch, *, bf16: bool) -> tuple[int, int, int, int]:
    """One pass on fake tensors: bytes when forward ends, and most while images are encoded, in forward, in backward.

    Each of the four grows in a straight line with the decoder's layers; their maximum does not.
    """
    known = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    ids_BT = torch.zeros(batch.rows, batch.positions, dtype=torch.long)
    is_image_BT = torch.zeros(batch.rows, batch.positions, dtype=torch.bool)
    pixels = {key: torch.zeros(shape, dtype=dtype) for key, (shape, dtype) in batch.pixels.items()}
    bytes_ = PeakBytes(known)
    with bytes_, torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        embeds_BTD = model.get_input_embeddings()(ids_BT)  # type: ignore[operator]
        images = _image_features(model, pixels, embeds_BTD) if pixels else None
        if images is not None:
            where = is_image_BT[..., None].expand_as(embeds_BTD)
            embeds_BTD = embeds_BTD.masked_scatter(where, images[0])
        image_peak, bytes_.peak = bytes_.peak, bytes_.now
        mask = _mask(decoder, embeds_BTD)
        hidden_BTD = decoder(inputs_embeds=embeds_BTD, attention_mask=mask, use_cache=False).last_hidden_state
        head = model.get_output_embeddings()  # type: ignore[operator]
        logits_NV = head(hidden_BTD.flatten(0, 1).index_select(0, torch.arange(batch.supervised)))
        targets_N = torch.zeros(batch.supervised, dtype=torch.long)
        loss = F.cross_entropy(logits_NV.float(), targets_N, reduction="none").sum()
    forward, forward_peak, bytes_.peak = bytes_.now, bytes_.peak, bytes_.now
    if loss.requires_grad:
        with bytes_:
            loss.backward()
    return forward, image_peak, forward_peak, bytes_.peak


def _image_features(model: nn.Module, pixels: Mapping[str, Tensor], like: Tensor) -> tuple[Tensor, Any]:
    """Projected features in the embeddings' dtype, and everything the model keeps alive beside them."""
    owner: Any = model if hasattr(model, "get_image_features") else model.base_model
    out = owner.get_image_features(**pixels)
    found = getattr(out, "pooler_output", out)
    features = torch.cat(list(found)) if isinstance(found, (list, tuple)) else found
    return features.to(like.dtype), out


def _mask(decoder: nn.Module, embeds_BTD: Tensor) -> Tensor:
    """The (B, 1, T, T) mask of rows that differ in length: added to scores by eager attention, boolean elsewhere."""
    rows, positions = embeds_BTD.shape[:2]
    eager = getattr(decoder.config, "_attn_implementation", "sdpa") == "eager"
    return torch.zeros(rows, 1, positions, positions, dtype=embeds_BTD.dtype if eager else torch.bool)


def _layers(decoder: nn.Module) -> tuple[str, nn.ModuleList | None]:
    """Name and modules of the longest list of layers below the decoder."""
    lists = [(n, m) for n, m in decoder.named_modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=lambda item: len(item[1]), default=("", None))


def _alike(layers: nn.ModuleList) -> bool:
    """Whether all layers have the same tensors, trained alike."""
    first, *rest = ([(n, p.shape, p.requires_grad) for n, p in layer.named_parameters()] for layer in layers)
    return all(other == first for other in rest)


def rough(model: nn.Module, batch: MicroBatch, *, bf16: bool, checkpointing: bool, why: str) -> Activations:
    """An upper count from the linear modules below the decoder: input and output of each twice, in the pass's dtype.

    With checkpointing the input of each layer and one whole layer are counted. Logits come on top, in fp32, three times.
    """
    decoder = model.get_decoder()  # type: ignore[operator]
    size, cells = (2 if bf16 else 4), batch.rows * batch.positions
    linears = [m for n, m in decoder.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in n]
    total = sum(2 * cells * size * (m.in_features + m.out_features) for m in linears)
    head = model.get_output_embeddings()  # type: ignore[operator]
    logits = 3 * 4 * batch.supervised * int(head.weight.shape[0])
    _, layers = _layers(decoder)
    if checkpointing and layers:
        total = total // len(layers) + len(layers) * cells * size * int(head.weight.shape[1])
    return Activations(total + logits, total + 2 * logits, traced=False, why=why)
