"""What the self-test works with: the tiny LLaVA, generated rows, an engine around it, and torch alone as the reference.

Everything is fp32 with TF32 off and eager attention, so that two ways to compute one step differ by rounding only.
"""

from __future__ import annotations

import contextlib
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mcit.core.ranks import on_first
from mcit.core.schema import AdapterConfig, BaseConfig, EngineConfig, OptimConfig
from mcit.core.types import Batch, JsonDict, Row, Turn
from mcit.data.collate import collate
from mcit.data.encode import IGNORE, Encoder
from mcit.data.ghost import Ghost
from mcit.engine import world
from mcit.engine.base import Engine, EngineSpec
from mcit.engine.make import make_engine
from mcit.models import adapters
from mcit.models.load import load_base, load_processor, materialize
from mcit.models.units import group_of, weight_units

OPTIM = OptimConfig(batch=8, lr=1e-2, lr_projector=1e-3, schedule="constant", warmup=0, clip=1.0)
ADAPTER = AdapterConfig(rank=4, alpha=8.0, also_train=["projector"])
BASE = BaseConfig(family="tiny", dtype="fp32")
SEED = 3
_WORDS = ("red", "blue square", "a green dot", "no", "seven small circles")
Edit = Callable[[Mapping[str, nn.Parameter]], None]
Named = dict[str, Tensor]


@dataclass
class Kit:
    """Builds models, rows and engines of one kind; equal on every rank."""

    path: Path
    """Folder of the tiny model."""
    device: torch.device
    encoder: Encoder
    engine: EngineConfig
    folder: Path
    """Empty, of this check alone, seen by all ranks."""
    environment: JsonDict = field(default_factory=dict)
    export: Callable[..., Any] | None = None
    """`mcit.export.export.export_stage`, which this layer may not import."""

    # ---- rows -------------------------------------------------------------------------------------------------------
    def rows(self, count: int, *, seed: int, image: Callable[[int], bool] = lambda i: True) -> list[Batch]:
        """Batches of one row each: a noise picture where `image` says so, answers of different length; by seed alone."""
        noise = random.Random(seed)
        out = []
        with tempfile.TemporaryDirectory() as folder:
            for i in range(count):
                answer = noise.choice(_WORDS)
                question = f"What is number {noise.randrange(100)}?"
                name = f"{i}.png"
                Image.frombytes("RGB", (32, 32), noise.randbytes(32 * 32 * 3)).save(Path(folder) / name)
                shown = image(i)
                turns = (Turn("user", f"<image>\n{question}" if shown else question), Turn("assistant", answer))
                row = Row(f"{seed}-{i}", (name,) if shown else (), turns, "selftest", f"selftest:{i}", root=folder)
                sample = self.encoder.encode(row)
                out.append(collate([sample], stream="task", pad_id=self.encoder.pad_id))
        return out

    def together(self, rows: Sequence[Batch]) -> Batch:
        """One batch of several one-row batches, padded to one length."""
        length = max(row.input_ids_BT.shape[1] for row in rows)

        def stacked(tensors: Sequence[Tensor], fill: int) -> Tensor:
            return torch.cat([F.pad(t, (0, length - t.shape[1]), value=fill) for t in tensors])

        keys = sorted({key for row in rows for key in row.pixels})
        return Batch(
            stream="task",
            rows=tuple(r for row in rows for r in row.rows),
            input_ids_BT=stacked([row.input_ids_BT for row in rows], self.encoder.pad_id),
            labels_BT=stacked([row.labels_BT for row in rows], IGNORE),
            attention_BT=stacked([row.attention_BT for row in rows], 0),
            pixels={key: torch.cat([row.pixels[key] for row in rows if key in row.pixels]) for key in keys},
            target_count=sum(row.target_count for row in rows),
        )

    def mine(self, rows: Sequence[Batch], size: int) -> list[Batch]:
        """This rank's rows in micro-batches of `size`."""
        own = rows[world.rank() :: world.size()]
        return [self.together(own[i : i + size]) for i in range(0, len(own), size)]

    # ---- model and engine -------------------------------------------------------------------------------------------
    def model(self, *, dropout: float = 0.0) -> Any:
        """The tiny model with a fresh adapter, projector trained."""
        model = load_base(self.path, attention="eager", device=self.device)
        config = ADAPTER.model_copy(update={"dropout": dropout})
        adapters.add_lora(model, config, seed=SEED)
        adapters.set_trainable(model, adapters.candidates(model, config))
        return model

    def build(self, *, optim: OptimConfig = OPTIM, dropout: float = 0.0) -> tuple[Any, Engine]:
        """Model and the engine under test."""
        model = self.model(dropout=dropout)
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        chosen = {n for n, p in model.named_parameters() if p.requires_grad}
        scales = {n: float(layer.scaling[adapters.ACTIVE]) for n, layer in adapters.lora_layers(model).items()}
        spec = EngineSpec(
            units=weight_units(shapes, chosen, adapter=adapters.ACTIVE, scales=scales),
            optim=optim,
            total_steps=50,
            where="self-test",
            adapter_off=lambda: adapters.disabled(model),
            is_projector=is_projector,
            is_vision=lambda name: group_of(name) in ("projector", "tower"),
            with_ghost=self._ghost() if self.engine.kind != "plain" and world.size() > 1 else None,
            seed=SEED,
        )
        return model, make_engine(model, spec, self.engine)

    def _ghost(self) -> Ghost:
        with tempfile.TemporaryDirectory() as folder:
            Image.new("RGB", (32, 32)).save(Path(folder) / "ghost.png")
            turns = (Turn("user", "<image>\n?"), Turn("assistant", "!"))
            row = Row("ghost", ("ghost.png",), turns, "selftest", "selftest", root=folder)
            return Ghost(self.encoder.encode(row), pad_id=self.encoder.pad_id)

    @property
    def tolerance(self) -> float:
        """Largest relative difference that rounding explains.

        1e-5 on a CPU. 1e-4 on a GPU, where matrix products of another shape run other kernels that sum in another
        order, and AdamW divides by the root of small second moments.
        """
        return 1e-5 if self.device.type == "cpu" else 1e-4


def is_projector(name: str) -> bool:
    """Whether a parameter has the projector's learning rate."""
    return ".lora_" not in name and group_of(name) == "projector"


def make_kit(engine: EngineConfig, folder: Path, **given: Any) -> Kit:
    """A kit on this process's device; rank 0 builds the tiny model if it is not there yet."""
    cuda = engine.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    on_first(world, lambda: str(materialize(BASE)))
    path = materialize(BASE)
    return Kit(path, device, Encoder(load_processor(path)), engine, folder, **given)


@contextlib.contextmanager
def exact_fp32() -> Iterator[None]:
    """fp32 arithmetic without TF32 for a block."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


# ---- the engine's side -----------------------------------------------------------------------------------------------
def backward(engine: Engine, batches: Sequence[Batch]) -> None:
    """One step's forward and backward passes: the mean loss over the answer tokens of all ranks."""
    counts = engine.target_counts(batches)
    for i, batch in enumerate(batches):
        with engine.micro_batch(last=i == len(batches) - 1):
            out = engine.forward(batch)
            engine.backward(out.nll_N.sum() / counts.of("task", "tokens"), batch)


def step(engine: Engine, batches: Sequence[Batch]) -> None:
    """One whole step."""
    backward(engine, batches)
    engine.step()


def weights(engine: Engine) -> Named:
    """Whole trained tensors by parameter name."""
    out: Named = {}
    for unit in engine.weights.units():
        with engine.weights.gathered(unit) as tensors:
            out |= {unit.params[role]: t.clone() for role, t in tensors.items()}
    return out


def gradients(engine: Engine) -> Named:
    """Whole gradients by parameter name."""
    grads = engine.gradients()
    return {unit.params[role]: t.clone() for unit in grads.units() for role, t in grads.full(unit).items()}


# ---- the reference ---------------------------------------------------------------------------------------------------
class Reference:
    """The same training on one process by torch alone: all rows of a step in one batch, autograd, AdamW."""

    def __init__(self, kit: Kit, optim: OptimConfig = OPTIM) -> None:
        self._kit, self._optim, self._model = kit, optim, kit.model().eval()
        self.named = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        slow = [p for n, p in self.named.items() if is_projector(n)]
        rest = [p for n, p in self.named.items() if not is_projector(n)]
        groups: list[dict[str, Any]] = [{"params": rest, "lr": optim.lr}, {"params": slow, "lr": optim.lr_projector}]
        self._adamw = torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay)

    def loss(self, rows: Sequence[Batch]) -> Tensor:
        """Mean cross-entropy over the answer tokens of all rows."""
        batch, device = self._kit.together(rows), self._kit.device
        pixels = {name: value.to(device) for name, value in batch.pixels.items()}
        ids, mask = batch.input_ids_BT.to(device), batch.attention_BT.to(device)
        logits_BTV = self._model(input_ids=ids, attention_mask=mask, use_cache=False, **pixels).logits
        targets = batch.labels_BT[:, 1:].to(device).flatten()
        return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORE)

    def penalty(self, weight: float) -> Tensor:
        """`weight` times the squares of all trained numbers."""
        return weight * torch.stack([p.pow(2).sum() for p in self.named.values()]).sum()

    def gradients(self) -> Named:
        """What backward passes have left."""
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in self.named.items()}

    def step(self, rows: Sequence[Batch], *, weight: float = 0.0, edit: Edit | None = None) -> float:
        """Backward, penalty, edit, clip, update; returns the norm before clipping."""
        loss = self.loss(rows)
        (loss + self.penalty(weight) if weight else loss).backward()
        if edit:
            edit(self.named)
        norm = torch.nn.utils.clip_grad_norm_(list(self.named.values()), self._optim.clip or math.inf)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return float(norm)

    def weights(self) -> Named:
        """Copies of the trained tensors."""
        return {n: p.detach().clone() for n, p in self.named.items()}


# ---- comparing -------------------------------------------------------------------------------------------------------
def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Named:
    """a - b in fp64 by name."""
    return {n: a[n].double() - b[n].double() for n in b}


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Norm over all tensors."""
    return math.sqrt(sum(float(t.double().norm()) ** 2 for t in tensors.values()))


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """||found - expected|| / ||expected|| (Frobenius); what is not finite is infinitely far."""
    size = norm(expected)
    far = norm(difference(found, expected)) / size if size else math.inf
    return far if math.isfinite(far) else math.inf


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether all tensors are bit for bit equal."""
    return all(torch.equal(a[n], b[n]) for n in b)
