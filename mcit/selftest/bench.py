"""How fast a base trains and answers on this device: mcit with packs, without, and plain transformers with peft.

The three sides train the same LoRA pairs from the same values on the same rows, one after the other; their first losses are
compared. Model FLOPs of a step are matrix products, convolutions and attention as torch counts them over packs, where nothing
is padded or computed twice; they are the same for every side, so that a utilisation is a speed.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig

from mcit.core.errors import TrainingError
from mcit.core.schema import AdapterConfig, OptimConfig
from mcit.core.types import Batch, JsonDict
from mcit.data.collate import collate
from mcit.engine.base import EngineSpec
from mcit.engine.flops import FlopCount, matmul_rate
from mcit.engine.linears import quick
from mcit.engine.pack import pack_rows
from mcit.engine.peak import begin_peak, peak_bytes
from mcit.engine.plain import PlainEngine
from mcit.evals.decode import decode, why_not
from mcit.models import adapters
from mcit.models.units import weight_units
from mcit.selftest.workload import Workload
from mcit.train.objective import task_loss

CHECKED = 3
"""First steps, whose losses are compared and which are not timed."""
CLOSE = {False: 1e-4, True: 2e-2}
"""Most by which a loss may differ, relative, by whether the base is bf16."""
ANSWER_TOKENS = 16
_LEAST, _MOST = 3, 30
_ALONE = 4
NOMINAL = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""FLOP/s of dense bf16 products by part of a card's name, from NVIDIA's data sheets."""
ADAPTER = AdapterConfig(rank=16, alpha=32.0, also_train=[])
OPTIM = OptimConfig(batch=1, lr=2e-4, schedule="constant", warmup=0, clip=1.0)


class Side(Protocol):
    """Something that trains."""

    def step(self, batch: Batch) -> float:
        """One step; its loss."""

    def close(self) -> None:
        """The model is as before, but for the values of what was trained."""


class Ours:
    """mcit's engine, one micro-batch a step."""

    def __init__(self, work: Workload, units: Sequence[Any], *, packs: bool) -> None:
        self._engine = PlainEngine(work.model, EngineSpec(units, OPTIM, 10**6, bf16=work.bf16))
        if packs:
            self._engine.use_packs(collate(work.train, stream="task", pad_id=work.pad_id))
        self.notes = list(self._engine.notes)

    def step(self, batch: Batch) -> float:
        """Forward, backward and update as in `train.loop`."""
        engine = self._engine
        counts = engine.target_counts([batch])
        with engine.micro_batch(last=True):
            engine.backward(task_loss(engine.forward(batch), batch, counts, replaced=False), batch)
        engine.step()
        return engine.metrics()["loss"]

    def close(self) -> None:
        """Hooks gone."""
        self._engine.finish()


class Plain:
    """What is trained with today: the model's own loss on a padded batch, autocast, torch's AdamW."""

    def __init__(self, work: Workload, device: torch.device) -> None:
        self._model, self._device, self._bf16 = work.model, device, work.bf16
        self._trained = [p for p in work.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=OPTIM.lr, betas=OPTIM.betas, eps=OPTIM.eps, weight_decay=0
        )

    def step(self, batch: Batch) -> float:
        """Forward, backward, clipping, update."""
        inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_BT, "labels": batch.labels_BT}
        inputs = {name: value.to(self._device) for name, value in {**inputs, **batch.pixels}.items()}
        with as_usual():
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
                loss = self._model(**inputs, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._trained, OPTIM.clip or 1.0)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def close(self) -> None:
        """Nothing was changed."""


@contextlib.contextmanager
def as_usual() -> Iterator[None]:
    """Torch chooses kernels freely, as it does for who says nothing; mcit's commands ask for deterministic ones."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def measure(work: Workload, *, device: torch.device, limit: float, say: Callable[[str], None]) -> JsonDict:
    """Answers per second, then training of each side, within about `limit` seconds.

    A side whose turn comes when the time is over is left out. Raises TrainingError where memory runs out.
    """
    end = time.monotonic() + limit
    try:
        say("answers")
        answers = answer_rates(work, device=device, seconds=limit / 10)
        return {"answers": answers, **training(work, device=device, end=end, say=say)}
    except torch.OutOfMemoryError as error:
        fix = "give fewer --rows, or a smaller --size"
        raise TrainingError(f"memory ran out: {str(error).splitlines()[0]}", where="bench", fix=fix) from None


# ---- training --------------------------------------------------------------------------------------------------------
def training(work: Workload, *, device: torch.device, end: float, say: Callable[[str], None]) -> JsonDict:
    """Rates of every side, first losses, model FLOPs of a step."""
    units = adapted(work.model)
    named = {n: p for n, p in work.model.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in named.items()}
    batch = collate(work.train, stream="task", pad_id=work.pad_id)
    sides: dict[str, Callable[[], Side]] = {
        "packs": lambda: Ours(work, units, packs=True),
        "padded": lambda: Ours(work, units, packs=False),
        "plain": lambda: Plain(work, device),
    }
    share = max(0.0, end - time.monotonic()) / (len(sides) + 1)
    found, losses, notes = dict[str, JsonDict](), dict[str, list[float]](), list[str]()
    flops = 0
    for name, make in sides.items():
        if found and time.monotonic() >= end:
            notes.append(f"{name}: left out, the time was over")
            continue
        say(f"training: {name}")
        with torch.no_grad():
            for n, p in named.items():
                p.copy_(start[n])
        side = make()
        notes += getattr(side, "notes", [])
        losses[name], found[name] = rated(side, batch, device, seconds=share)
        if name == "packs":
            with FlopCount() as counter:
                side.step(batch)
            flops = counter.flops
        side.close()
    rates = {"measured": matmul_rate(device, torch.bfloat16 if work.bf16 else torch.float32)}
    nominal = next((rate for part, rate in NOMINAL.items() if part in device_name(device)), None)
    if nominal and work.bf16:
        rates["nominal"] = nominal
    for entry in found.values():
        entry["utilisation"] = {kind: flops / entry["step_s"]["median"] / rate for kind, rate in rates.items()}
    return {
        "sides": found,
        "losses": losses,
        "loss_difference": difference(losses),
        "loss_allowed": CLOSE[work.bf16],
        "flops_per_step": flops,
        "peak_flops": rates,
        "positions": {"padded": batch.input_ids_BT.numel(), "rows": int(batch.attention_BT.sum()), **packed(batch)},
        "notes": notes,
    }


def adapted(model: Any) -> Sequence[Any]:
    """LoRA pairs in place on every linear of the language model, nothing else trains; returns their units."""
    adapters.add_lora(model, ADAPTER, seed=0)
    chosen = adapters.candidates(model, ADAPTER)
    adapters.set_trainable(model, chosen)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    scales = {n: float(layer.scaling[adapters.ACTIVE]) for n, layer in adapters.lora_layers(model).items()}
    return weight_units(shapes, chosen, adapter=adapters.ACTIVE, scales=scales)


def rated(side: Side, batch: Batch, device: torch.device, *, seconds: float) -> tuple[list[float], JsonDict]:
    """First losses, and rates of the steps after them for about so many seconds."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        begin_peak(device)
    end = time.monotonic() + seconds
    losses, steps = [side.step(batch) for _ in range(CHECKED)], list[float]()
    while len(steps) < _LEAST or (len(steps) < _MOST and time.monotonic() < end):
        begin = now(device)
        side.step(batch)
        steps.append(now(device) - begin)
    median, tokens = statistics.median(steps), int(batch.attention_BT.sum())
    return losses, {
        "step_s": {"median": median, "min": min(steps), "max": max(steps), "steps": len(steps)},
        "rows_per_s": len(batch.rows) / median,
        "tokens_per_s": tokens / median,
        "peak_gb": peak_bytes(device) / 1e9 if cuda else None,
    }


def now(device: torch.device) -> float:
    """The clock, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def packed(batch: Batch) -> dict[str, int]:
    """Positions of the batch as a pack; nothing where it is none."""
    pack = pack_rows(batch, whole=False, always=True)
    return {} if pack is None else {"packs": len(pack)}


def difference(losses: dict[str, list[float]]) -> float:
    """The largest relative difference of any side's first losses from those of the last side."""
    *others, reference = losses.values()
    return max((abs(a - b) / abs(b) for other in others for a, b in zip(other, reference, strict=True)), default=0.0)


def device_name(device: torch.device) -> str:
    """The card's name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


# ---- answers ---------------------------------------------------------------------------------------------------------
def answer_rates(work: Workload, *, device: torch.device, seconds: float) -> JsonDict:
    """Rows per second of packed decoding, and of ``generate`` on single rows; every answer has `ANSWER_TOKENS` tokens."""
    own = work.model.generation_config
    work.model.generation_config = GenerationConfig(do_sample=False, pad_token_id=work.pad_id)
    try:
        with torch.inference_mode(), quick(work.model):
            alone, slow = _timed(lambda: _alone(work, device), device, seconds)
            refused, _ = why_not(work.model, work.asked, pad_id=work.pad_id, device=device)
            out = {"tokens": ANSWER_TOKENS, "alone_rows_per_s": _ALONE / slow, "refused": refused}
            pack = pack_rows(collate(work.asked, stream="eval", pad_id=work.pad_id), always=True)
            if refused or pack is None:
                return out
            (written, near), fast = _timed(
                lambda: decode(work.model, pack, ends=(), limit=ANSWER_TOKENS, device=device), device, seconds
            )
        ends = [ANSWER_TOKENS if tie is None else tie for tie in near[:_ALONE]]
        equal = sum(a[:end] == b[:end] for a, b, end in zip(alone, written, ends, strict=False))
        return {**out, "rows_per_s": len(work.asked) / fast, "compared": _ALONE, "equal": equal}
    finally:
        work.model.generation_config = own


def _timed(call: Callable[[], Any], device: torch.device, seconds: float) -> tuple[Any, float]:
    """What a call returns, and the median seconds of calls after a first one."""
    found, took, end = call(), list[float](), time.monotonic() + seconds
    while not took or (len(took) < _MOST and time.monotonic() < end):
        begin = now(device)
        call()
        took.append(now(device) - begin)
    return found, statistics.median(took)


def _alone(work: Workload, device: torch.device) -> list[list[int]]:
    """Ids of the first rows, one row at a time."""
    out = []
    for sample in work.asked[:_ALONE]:
        batch = collate([sample], stream="eval", pad_id=work.pad_id)
        inputs: dict[str, Tensor] = {
            "input_ids": batch.input_ids_BT,
            "attention_mask": batch.attention_BT,
            **batch.pixels,
        }
        with as_usual():
            made = work.model.generate(
                **{name: value.to(device) for name, value in inputs.items()}, max_new_tokens=ANSWER_TOKENS
            )
        out.append(made[0, batch.input_ids_BT.shape[1] :].tolist())
    return out


# ---- in words --------------------------------------------------------------------------------------------------------
def line(found: JsonDict) -> str:
    """One line that can be reported."""
    sides, answers = found["sides"], found["answers"]
    mine = sides["packs"]
    kind = "nominal" if "nominal" in mine["utilisation"] else "measured"
    text = (
        f"{found['model']} on {found['device']}, {found['dtype']}, {found['rows']} rows a step, {found['questions']} to a "
        f"picture: {mine['tokens_per_s']:.0f} tokens/s, {mine['rows_per_s']:.2f} rows/s, "
        f"MFU {mine['utilisation'][kind]:.2f} of the {kind} rate"
    )
    with contextlib.suppress(KeyError):
        text += f", {sides['plain']['step_s']['median'] / mine['step_s']['median']:.2f} times plain transformers + peft"
        text += f" (losses within {found['loss_difference']:.1e})"
    if "rows_per_s" in answers:
        ratio = answers["rows_per_s"] / answers["alone_rows_per_s"]
        text += f"; {answers['rows_per_s']:.2f} answers/s of {answers['tokens']} tokens, {ratio:.2f} times one by one"
    return f"{text}; mcit {found['versions']['mcit']}, torch {found['versions']['torch']}"
