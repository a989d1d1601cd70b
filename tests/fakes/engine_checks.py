"""What every engine owes, as functions that measure and return plain numbers; run in-process or by every rank of a job.

Each check takes `kit`, whose `build` makes a model and an engine of the kind under test. References are computed by hand on
a model of their own: the whole step in one forward, torch's autograd, torch's AdamW.
"""

import dataclasses
import math
from pathlib import Path

import torch

from mcit.core.errors import McitError
from mcit.core.schema import OptimConfig
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.core.types import Sample
from mcit.data.ghost import Ghost
from mcit.engine import world
from mcit.engine.base import EngineSpec
from mcit.engine.checkpoint import read_moments, write_moments
from mcit.engine.forward import run_model, set_modes
from mcit.engine.optim import build_optimizer
from mcit.models.frozen import frozen_checksums
from tests.fakes.models import adapted, off, tiny_model
from tests.fakes.toy import toy_batch

OPTIM = OptimConfig(batch=4, lr=1e-2, lr_projector=1e-3, schedule="constant", warmup=0)
CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def is_vision(name):
    return "projector" in name or "vision" in name


def is_projector(name):
    return "projector" in name and ".lora_" not in name


class ToyGhost(Ghost):
    """A ghost made of one row of a toy batch."""

    def __init__(self, model):
        batch = toy_batch(model, rows=1, seed=77)
        ids_T = batch.input_ids_BT[0]
        super().__init__(Sample(batch.rows[0], ids_T, ids_T, batch.pixels), pad_id=0)


class Kit:
    """`make(model, spec)` is the engine under test."""

    def __init__(self, make, folder, given, kind="plain"):
        self.make, self.folder, self.given, self.kind = make, Path(folder), Path(given), kind

    def build(self, *, optim=OPTIM, dtype="fp32", model=None, adapter=None, **spec):
        model = model or tiny_model(dtype=dtype)
        units = adapted(model, **(adapter or {}))
        fresh = off(model) if (adapter or {}).get("kind") != "none" else None
        spec = {"with_ghost": ToyGhost(model), "adapter_off": fresh, "bf16": dtype == "bf16", **spec}
        spec = EngineSpec(units, optim, 50, is_projector=is_projector, is_vision=is_vision, **spec)
        return model, self.make(model, spec)


# ---- helpers ---------------------------------------------------------------------------------------------------------
def part(batch, rows):
    """Some rows of a batch."""
    rows = list(rows)
    labels = batch.labels_BT[rows]
    return dataclasses.replace(
        batch,
        rows=tuple(batch.rows[i] for i in rows),
        input_ids_BT=batch.input_ids_BT[rows],
        labels_BT=labels,
        attention_BT=batch.attention_BT[rows],
        pixels={k: v[rows] for k, v in batch.pixels.items()},
        target_count=int((labels[:, 1:] != -100).sum()),
    )


def uneven(model, seed=0, images=True):
    """Four rows with 5, 3, 2 and 1 supervised tokens."""
    batch = toy_batch(model, rows=4, seed=seed, images=images)
    for row, hidden in enumerate((0, 2, 3, 4)):
        if hidden:
            batch.labels_BT[row, -5 : -5 + hidden] = -100
    return part(batch, range(4))


def mine(batch, size, rank=None):
    """This rank's rows in micro-batches of `size`."""
    rows = range(world.rank() if rank is None else rank, len(batch.rows), world.size())
    return [part(batch, rows[i : i + size]) for i in range(0, len(rows), size)]


def everyones(batch, size):
    """The micro-batches of all ranks."""
    return [micro for rank in range(world.size()) for micro in mine(batch, size, rank)]


def backward(engine, batches):
    counts = engine.target_counts(batches)
    for i, batch in enumerate(batches):
        with engine.micro_batch(last=i == len(batches) - 1):
            out = engine.forward(batch)
            engine.backward(out.nll_N.sum() / counts.of("task", "tokens"), batch)


def step(engine, batches):
    backward(engine, batches)
    engine.step()


def gradients(engine):
    grads = engine.gradients()
    return {unit.params[r]: t.clone() for unit in grads.units() for r, t in grads.full(unit).items()}


def weights(engine):
    out = {}
    for unit in engine.weights.units():
        with engine.weights.gathered(unit) as tensors:
            out |= {unit.params[role]: t.clone() for role, t in tensors.items()}
    return out


def by_hand(batches, *, dtype="fp32", adapter=None, prepare=None):
    """Loss and gradients of all rows together on a model of its own."""
    model = tiny_model(dtype=dtype)
    adapted(model, **(adapter or {}))
    if prepare:
        prepare(model)
    count = sum(batch.target_count for batch in batches)
    model.eval()
    total = 0.0
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            out = run_model(model, batch, device=torch.device("cpu"))
        loss = out.nll_N.sum() / count
        loss.backward()
        total += float(loss.detach())
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return total, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}


def trained_by_hand(steps, optim=OPTIM, edit=None):
    """Weights after torch's AdamW over whole steps (lists of batches); a tensor without gradient is passed over."""
    model = tiny_model()
    adapted(model)
    model.eval()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(named, optim, is_projector=is_projector)
    for batches in steps:
        count = sum(batch.target_count for batch in batches)
        for batch in batches:
            out = run_model(model, batch, device=torch.device("cpu"))
            (out.nll_N.sum() / count).backward()
        if edit:
            edit(named)
        if optim.clip is not None:
            torch.nn.utils.clip_grad_norm_([p for p in named.values() if p.grad is not None], optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {n: p.detach().clone() for n, p in named.items()}


def distance(a, b):
    """||a - b|| / ||b|| over all tensors."""
    difference = math.sqrt(sum(float((a[n].double() - b[n].double()).norm() ** 2) for n in b))
    return difference / math.sqrt(sum(float(b[n].double().norm() ** 2) for n in b))


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in b)


def moments(engine, folder):
    """What the optimiser holds, through a checkpoint."""
    engine.save(folder)
    world.barrier()
    return load_tensors(folder / "optimizer.safetensors")


# ---- checks ----------------------------------------------------------------------------------------------------------
@check
def loss_is_the_same_for_any_split(kit):
    """Relative distance of the step's gradient to that of all rows in one forward; of the loss too."""
    out = {}
    for size in (2, 1):
        model, engine = kit.build()
        batch = uneven(model)
        loss, reference = by_hand([batch])
        backward(engine, mine(batch, size))
        out[f"gradient {size}"] = distance(gradients(engine), reference)
        engine.step()
        out[f"loss {size}"] = abs(engine.metrics()["loss"] - loss) / loss
        out[f"tokens {size}"] = engine.metrics()["tokens"]
        engine.finish()
    return out


@check
def an_edit_reaches_the_weights(kit):
    model, engine = kit.build()
    before = weights(engine)
    backward(engine, mine(toy_batch(model), 1))
    grads = engine.gradients()
    for unit in grads.units("tensor"):
        grads.replace(unit, "weight", torch.zeros_like(grads.full(unit)["weight"]))
    lora = grads.units("lora")[0]
    full = grads.full(lora)
    grads.scale(lora, 0.5)
    scaled = max(float((grads.full(lora)[r] - 0.5 * full[r]).abs().max()) for r in full)
    engine.step()
    after = weights(engine)
    edited = [unit.name for unit in grads.units("tensor")]
    moved = sum(not torch.equal(before[n], after[n]) for n in before if n not in edited)
    engine.finish()
    return {"edited moved": sum(not torch.equal(before[n], after[n]) for n in edited), "moved": moved, "scaled": scaled}


@check
def a_streamed_penalty_is_autograd(kit):
    """penalty = sum of squares of every trained tensor: its gradient is 2 w on top of the loss's."""
    model, engine = kit.build()
    backward(engine, mine(toy_batch(model), 2))
    plain, now = gradients(engine), weights(engine)
    totals = engine.add_penalties(lambda unit, tensors: {"sq": sum((t**2).sum() for t in tensors.values())})
    expected = {n: plain[n] + 2 * now[n] for n in now}
    value = sum(float((t.double() ** 2).sum()) for t in now.values())
    out = {"gradient": distance(gradients(engine), expected), "value": abs(float(totals["sq"]) - value) / value}
    engine.finish()
    return out


@check
def discard_leaves_no_trace(kit):
    """A rehearsal, gradient passes with edits, and an unfinished accumulation before each step: weights bit for bit."""
    runs = []
    for disturb in (False, True):
        model, engine = kit.build()
        if disturb:
            engine.rehearse(toy_batch(model, seed=9))
        for i in range(3):
            if disturb:
                backward(engine, mine(toy_batch(model, seed=50), 1))
                engine.add_penalties(lambda unit, tensors: {"sq": sum((t**2).sum() for t in tensors.values())})
                engine.discard()
                with engine.micro_batch(last=False):
                    other = mine(toy_batch(model, seed=51), 1)[0]
                    engine.backward(engine.forward(other).nll_N.sum(), other)
                engine.discard()
            step(engine, mine(toy_batch(model, seed=i), 1))
        runs.append(weights(engine))
        engine.finish()
    return {"same": same(*runs)}


@check
def gradients_do_not_pile_up(kit):
    """In a stage without images a penalty on the projector is each step's own, not the sum since the stage began."""
    model, engine = kit.build(with_ghost=None)
    out = {}
    for i in range(3):
        batch = toy_batch(model, images=False, seed=i)
        backward(engine, mine(batch, 2))
        now = weights(engine)
        engine.add_penalties(lambda unit, tensors: {"sq": sum((t**2).sum() for t in tensors.values())})
        found = gradients(engine)
        names = [n for n in now if "projector" in n]
        out[str(i)] = max(float((found[n] - 2 * now[n]).abs().max()) for n in names)
        engine.step()
    engine.finish()
    return out


@check
def clipping_comes_after_the_edits(kit):
    """A large penalty and clip 1e-3: after one step the first moments are (1 - 0.9) of a gradient of norm 1e-3."""
    model, engine = kit.build(optim=OPTIM.model_copy(update={"clip": 1e-3}))
    backward(engine, mine(toy_batch(model), 2))
    engine.add_penalties(lambda unit, tensors: {"sq": 100 * sum((t**2).sum() for t in tensors.values())})
    norm = math.sqrt(sum(float(g.double().norm() ** 2) for g in gradients(engine).values()))
    engine.step()
    found = moments(engine, kit.folder / "clip")
    first = math.sqrt(sum(float(t.double().norm() ** 2) for n, t in found.items() if n.startswith("exp_avg|")))
    out = {"reported": abs(engine.metrics()["grad_norm"] - norm) / norm, "clipped": abs(first / 1e-4 - 1), "norm": norm}
    engine.finish()
    return out


@check
def gradient_checkpointing_changes_nothing(kit):
    found = []
    for checkpointing in (False, True):
        model, engine = kit.build(checkpointing=checkpointing)
        backward(engine, mine(toy_batch(model), 1))
        found.append(gradients(engine))
        running = any(getattr(m, "gradient_checkpointing", False) and m.training for m in model.modules())
        engine.finish()
    return {"gradient": distance(found[1], found[0]), "on": running}


@check
def text_and_images_on_different_ranks(kit):
    """Rank 0 holds only text, the others images; with one process both are micro-batches of one step."""
    out = {}
    for order in (0, 1):
        model, engine = kit.build()
        kinds = [toy_batch(model, rows=2, seed=3, images=False), toy_batch(model, rows=2, seed=4)]
        loss, reference = by_hand(kinds)
        batches = kinds if world.size() == 1 else [kinds[(world.rank() + order) % 2]]
        backward(engine, batches if order == 0 else batches[::-1])
        out[f"gradient {order}"] = distance(gradients(engine), reference)
        engine.step()
        out[f"loss {order}"] = abs(engine.metrics()["loss"] - loss) / loss
        with torch.no_grad():  # validation on unlike batches
            logits = engine.forward(batches[0]).logits_NV
            out[f"finite {order}"] = bool(torch.isfinite(logits).all())
        engine.finish()
    return out


@check
def steps_without_images_leave_the_projector(kit):
    """Text, image, text, image with weight decay: torch's AdamW passes over tensors without a gradient."""
    optim = OPTIM.model_copy(update={"weight_decay": 0.1, "eps": 1e-4})  # a larger eps: rounding is not amplified
    model, engine = kit.build(optim=optim)
    steps = [toy_batch(model, seed=i, images=bool(i % 2)) for i in range(4)]
    start = weights(engine)
    step(engine, mine(steps[0], 2))
    unmoved = all(torch.equal(start[n], w) for n, w in weights(engine).items() if "projector" in n)
    for batch in steps[1:]:
        step(engine, mine(batch, 2))
    expected = trained_by_hand([[batch] for batch in steps], optim)
    now = weights(engine)
    change = {n: expected[n] - start[n] for n in start}
    out = {"unmoved": unmoved, "change": distance({n: now[n] - start[n] for n in start}, change)}
    engine.finish()
    return out


@check
def steps_without_images_leave_a_trained_tower(kit):
    """An image step gives the tower moments; a text step then moves nothing that only images reach, and everything else."""
    model, engine = kit.build(adapter={"also_train": ("projector", "tower")})
    step(engine, mine(toy_batch(model, seed=1), 2))
    before = weights(engine)
    step(engine, mine(toy_batch(model, seed=2, images=False), 2))
    after = weights(engine)
    engine.finish()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    return {
        "vision": sum(map(is_vision, before)),
        "moved": sum(map(is_vision, moved)),
        "others still": sum(not is_vision(n) for n in before.keys() - moved),
    }


@check
def a_rank_without_rows_takes_part(kit):
    """Rank 0 has an unsupervised row (N = 0): the gradient is that of the other ranks' rows."""
    model, engine = kit.build()
    real = toy_batch(model, rows=2, seed=3)
    empty = part(real, [0])
    empty = dataclasses.replace(empty, labels_BT=torch.full_like(empty.labels_BT, -100), target_count=0)
    _, reference = by_hand([real])
    batches = [empty, real] if world.size() == 1 else [empty if world.rank() == 0 else real]
    counts = engine.target_counts(batches)
    rows = counts.of("task", "rows")
    backward(engine, batches)
    out = {
        "gradient": distance(gradients(engine), reference),
        "rows": rows,
        "expected rows": 2 * max(1, world.size() - 1),
    }
    engine.step()
    engine.finish()
    return out


@check
def a_loss_that_skips_the_head_or_everything(kit):
    """Losses on hidden states only, and a constant in the last window of a step: no rank waits, the sum is right."""
    model, engine = kit.build(adapter={"also_train": ("projector", "head")})
    batch = toy_batch(model, rows=2, seed=1)
    text = toy_batch(model, rows=2, seed=2, images=False)
    needs = frozenset({"hidden:last"})
    with engine.micro_batch(last=False):
        out = engine.forward(text, needs)
        shape = list(out.hidden_BTD.shape)
        engine.backward(out.hidden_BTD.float().pow(2).mean() / world.size(), text)
    with engine.micro_batch(last=True):
        out = engine.forward(batch, needs)
        engine.backward(torch.zeros(()), batch)
    found = gradients(engine)
    engine.step()
    hand = tiny_model()
    adapted(hand, also_train=("projector", "head"))
    hand.eval()
    run_model(hand, text, device=torch.device("cpu"), layers={"last"}).hidden_BTD.float().pow(2).mean().backward()
    reference = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in hand.named_parameters()}
    result = {"gradient": distance(found, {n: reference[n] for n in found}), "shape": shape}
    engine.finish()
    return result


@check
def inner_states_and_passes_that_end_early(kit):
    """A loss on states in the middle of rows whose pass ends there, in the last window of a step after a whole pass."""
    model, engine = kit.build()
    whole, short = toy_batch(model, rows=2, seed=1), toy_batch(model, rows=2, seed=2, images=False)
    short = dataclasses.replace(short, until="1")
    needs = frozenset({"hidden:1", "hidden:last"})
    with engine.micro_batch(last=False):
        engine.backward(engine.forward(whole, needs).nll_N.sum() / 10 / world.size(), whole)
    with engine.micro_batch(last=True):
        out = engine.forward(short, needs)
        layers, tokens = sorted(out.hidden), len(out.nll_N)
        shape = list(out.hidden["1"].shape)
        engine.backward(out.hidden["1"].float().pow(2).mean() / world.size(), short)
    found = gradients(engine)
    engine.step()
    with engine.micro_batch(last=True):  # a whole pass after one that ended early
        engine.backward(engine.forward(whole, needs).nll_N.sum() / world.size(), whole)
    after = all(bool(torch.isfinite(t).all()) for t in gradients(engine).values())
    hand = tiny_model()
    adapted(hand)
    hand.eval()
    cpu = torch.device("cpu")
    (run_model(hand, whole, device=cpu).nll_N.sum() / 10).backward()
    run_model(hand, dataclasses.replace(short, until=""), device=cpu, layers={"1"}).hidden["1"].pow(2).mean().backward()
    reference = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in hand.named_parameters()}
    distances = distance(found, {n: reference[n] for n in found})
    engine.discard()
    engine.finish()
    return {"gradient": distances, "layers": layers, "tokens": tokens, "shape": shape, "after": after}


@check
def frozen_entries_stay_exactly(kit):
    model, engine = kit.build(optim=OPTIM.model_copy(update={"weight_decay": 0.1}))
    for i in range(2):  # momentum first
        step(engine, mine(toy_batch(model, seed=i), 2))
    before = weights(engine)
    backward(engine, mine(toy_batch(model, seed=2), 2))
    grads = engine.gradients()
    masks = {}
    for unit in grads.units():
        for role, name in unit.params.items():
            masks[name] = torch.zeros(before[name].shape, dtype=torch.bool)
            masks[name].view(-1)[::3] = True
            grads.freeze(unit, role, masks[name])
    engine.step()
    after = weights(engine)
    kept = all(torch.equal(after[n][m], before[n][m]) for n, m in masks.items())
    moved = min(float((after[n][~m] != before[n][~m]).float().mean()) for n, m in masks.items())
    with torch.no_grad(), torchs_linears():
        out = engine.forward(toy_batch(model, seed=8)).nll_N.sum()
    engine.finish()
    named = dict(model.named_parameters())
    live = same({n: named[n].detach() for n in after}, after)  # what forward passes use was put back too
    with torch.no_grad(), torchs_linears():
        again = run_model(model, toy_batch(model, seed=8), device=torch.device("cpu")).nll_N.sum()
    return {"kept": kept, "moved": moved, "live": live and torch.equal(out, again)}


@check
def a_group_set_to_zero_stays_there(kit):
    """After a step a unit is put to zero and its moments forgotten; without a gradient the next step leaves it."""
    model, engine = kit.build()
    for i in range(2):
        step(engine, mine(toy_batch(model, seed=i), 2))
    unit = engine.weights.units("lora")[1]
    with torch.no_grad():
        before = float(engine.forward(toy_batch(model, seed=8)).nll_N.sum())
    with engine.weights.edit(unit) as tensors:
        for tensor in tensors.values():
            tensor.zero_()
    with torch.no_grad():
        seen = float(engine.forward(toy_batch(model, seed=8)).nll_N.sum())
    engine.weights.forget_moments(unit)
    backward(engine, mine(toy_batch(model, seed=3), 2))
    grads = engine.gradients()
    for role, gradient in grads.full(unit).items():
        grads.replace(unit, role, torch.zeros_like(gradient))
    engine.step()
    after = weights(engine)
    found = moments(engine, kit.folder / "zeroed")
    largest = max(float(after[n].abs().max()) for n in unit.params.values())
    left = max(float(t.abs().max()) for n, t in found.items() if n.split("|")[1] in unit.params.values())
    others = sum(float(t.abs().max()) > 0 for n, t in found.items() if n.split("|")[1] not in unit.params.values())
    engine.finish()
    return {"weight": largest, "moments": left, "others": others, "seen": abs(seen - before)}


@check
def a_checkpoint_continues_bitwise(kit):
    """Two steps, save, two steps; and from the checkpoint in a new engine. Also: random state, step, moments."""
    folder = kit.folder / "same"
    model, engine = kit.build()
    for i in range(4):
        if i == 2:
            engine.save(folder)
            world.barrier()
            draw = torch.rand(3)
        step(engine, mine(toy_batch(model, seed=i), 1))
    straight = weights(engine)
    if world.rank() == 0:
        save_tensors(kit.folder / "straight.safetensors", straight)
    held = moments(engine, kit.folder / "held")
    engine.finish()
    model, engine = kit.build()
    torch.manual_seed(99)
    engine.load(folder)
    drawn = torch.equal(torch.rand(3), draw)
    for i in range(2, 4):
        step(engine, mine(toy_batch(model, seed=i), 1))
    resumed = weights(engine)
    again = moments(engine, kit.folder / "again")
    notes = list(engine.notes)
    engine.finish()
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return {"same": same(resumed, straight), "moments": same(again, held), "rng": drawn, "notes": notes, "files": files}


@check
def the_next_stage_goes_on_with_the_moments(kit):
    """Four steps at once; two and two, the latter in an engine that takes the moments over, and in one that begins anew."""
    ends = {}
    for how in ("straight", "kept", "anew"):
        model, engine = kit.build()
        for i in range(4):
            if i == 2 and how != "straight":
                left = engine.moments()
                if world.rank() == 0:
                    write_moments(kit.folder, left)
                world.barrier()
                engine.finish()
                engine = kit.make(model, engine.spec)
                if how == "kept":
                    engine.take_over(read_moments(kit.folder))
            step(engine, mine(toy_batch(model, seed=i), 1))
        ends[how] = weights(engine)
        notes = list(engine.notes)
        engine.finish()
    moved = distance(ends["anew"], ends["straight"])
    return {"same": same(ends["kept"], ends["straight"]), "anew": moved, "notes": notes}


@check
def a_full_model_checkpoint_continues_bitwise(kit):
    """Full fine-tuning of decoder and projector."""
    folder, adapter = kit.folder / "full", {"kind": "none"}
    model, engine = kit.build(adapter=adapter)
    for i in range(4):
        if i == 2:
            engine.save(folder)
            world.barrier()
        step(engine, mine(toy_batch(model, seed=i), 1))
    straight = weights(engine)
    engine.finish()
    live = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    model, engine = kit.build(adapter=adapter)
    engine.load(folder)
    for i in range(2, 4):
        step(engine, mine(toy_batch(model, seed=i), 1))
    out = {"same": same(weights(engine), straight), "finished": same(live, straight), "tensors": len(straight)}
    engine.finish()
    return out


@check
def a_checkpoint_of_plain_continues(kit):
    """Steps 3 and 4 after a checkpoint that one plain process wrote; distance of the change to its own straight run."""
    model, engine = kit.build()
    engine.load(kit.given / "plain")
    start = weights(engine)
    for i in range(2, 4):
        step(engine, mine(toy_batch(model, seed=i), 1))
    now = weights(engine)
    expected = load_tensors(kit.given / "straight.safetensors")
    change = {n: expected[n] - start[n] for n in start}
    out = {"change": distance({n: now[n] - start[n] for n in start}, change), "notes": len(engine.notes)}
    engine.finish()
    return out


@check
def several_passes_of_a_step(kit):
    """A gradient taken, one at weights moved along it, half of the first added: by hand, and the weights bit for bit back."""
    model, engine = kit.build(optim=OPTIM.model_copy(update={"clip": 1e9}))
    batch = uneven(model)
    _, first = by_hand(everyones(batch, 1))

    def along(named):
        with torch.no_grad():
            for name, gradient in first.items():
                named.get_parameter(name).add_(0.1 * gradient)

    _, second = by_hand(everyones(batch, 1), prepare=along)
    before = {n: t.clone() for n, t in engine.weights.local().items()}
    micros = mine(batch, 1)
    engine.begin_pass()
    backward(engine, micros)
    held = engine.take()
    cleared = max(float(t.abs().max()) for t in gradients(engine).values())

    def climb(unit, tensors):
        for role, gradient in held.full(unit).items():
            tensors[role] += 0.1 * gradient

    with engine.moved(climb):
        moved = sum(float((t - before[n]).abs().sum()) for n, t in engine.weights.local().items())
        engine.begin_pass()
        backward(engine, micros)
    out = {"back": same(engine.weights.local(), before), "moved": moved, "cleared": cleared}
    square = sum(float((g.double() ** 2).sum()) for g in first.values())
    out["dot"] = abs(float(engine.dot(held, held)) / square - 1)
    engine.add(held, torch.tensor(0.5, dtype=torch.float64))
    wanted = {n: second[n] + 0.5 * first[n] for n in first}
    out["gradient"] = distance(gradients(engine), wanted)
    engine.step()
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in wanted.values()))
    out["norm"] = abs(engine.metrics()["grad_norm"] / norm - 1)
    out["tokens"] = engine.metrics()["tokens"]
    engine.finish()
    return out


@check
def effective_gradients_are_those_of_the_matrix(kit):
    """Over ranks and with B away from zero, against autograd on the base weights of a model of its own."""
    model, engine = kit.build()
    batch = uneven(model)

    def spread(tensor):
        return 0.1 * torch.linspace(-1, 1, tensor.numel()).view_as(tensor)

    for unit in engine.weights.units("lora"):
        with engine.weights.edit(unit) as tensors:
            tensors["B"].copy_(spread(tensors["B"]))
    whole = {}

    def prepare(named):
        for name, parameter in named.named_parameters():
            if name.endswith(".lora_B.default.weight"):
                parameter.data.copy_(spread(parameter))
            if name.endswith(".base_layer.weight"):
                whole[name.removesuffix(".base_layer.weight")] = parameter.requires_grad_(True)

    by_hand(everyones(batch, 1), prepare=prepare)
    with engine.quiet(), engine.traced():
        backward(engine, mine(batch, 4))
    grads = engine.gradients()
    found = {unit.name: grads.effective(unit) for unit in grads.units("lora")}
    engine.discard()
    engine.finish()
    return {"gradient": distance(found, {n: whole[n].grad for n in found}), "matrices": len(found)}


@check
def the_reference_is_the_stage_start(kit):
    """After 5 steps with the projector trained: exactly the logits of before, and training goes on as if not asked."""
    model, engine = kit.build(needs=frozenset({"reference:stage_start"}))
    batch = toy_batch(model, rows=2, seed=20)
    with torch.no_grad():
        start = engine.forward(batch).logits_NV
    for i in range(5):
        step(engine, mine(toy_batch(model, seed=i), 2))
    with torch.no_grad():
        moved = float((engine.forward(batch).logits_NV - start).abs().max())
    now = weights(engine)
    out = {"same": torch.equal(engine.reference(batch).logits_NV, start), "moved": moved}
    with torch.no_grad():
        back = engine.forward(batch).logits_NV
    out["back"] = same(weights(engine), now) and float((back - start).abs().max()) == moved
    engine.finish()
    return out


def torchs_linears():
    """Products in torch's own order on every processor: what an engine holds and what it leaves are compared bit for bit."""
    return torch.backends.mkldnn.flags(enabled=False)


@check
def finish_leaves_a_plain_model(kit):
    """Whole fp32 weights in the model, no hook, no wrapper's attribute, frozen tensors untouched; three stages in a row."""
    model = tiny_model()
    untouched = {n: p.detach().clone() for n, p in model.named_parameters()}
    adapted(model)
    set_modes(model, checkpointing=False)
    run_model(model, toy_batch(model), device=torch.device("cpu"))  # transformers adds hooks of its own on first use
    modules = {n: (set(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    marks = {n: set(vars(p)) for n, p in model.named_parameters()}
    out = {"empty": 0, "hooks": 0, "attributes": 0, "equal": True, "frozen": True, "ranks": True}
    for i in range(3):
        units = engine_units(model)
        spec = EngineSpec(units, OPTIM, 10, is_projector=is_projector, is_vision=is_vision, with_ghost=ToyGhost(model))
        engine = kit.make(model, spec)
        for j in range(2):
            step(engine, mine(toy_batch(model, seed=10 * i + j), 2))
        held = weights(engine)
        with torch.no_grad(), torchs_linears():
            before = engine.forward(toy_batch(model, seed=70)).logits_NV
        engine.finish()
        named = dict(model.named_parameters())
        with torch.no_grad(), torchs_linears():
            after = run_model(model, toy_batch(model, seed=70), device=torch.device("cpu")).logits_NV
        out["equal"] &= torch.equal(before, after) and same({n: named[n].detach() for n in held}, held)
        out["empty"] += sum(p.numel() == 0 for p in named.values())
        out["hooks"] += sum(p._backward_hooks is not None and len(p._backward_hooks) > 0 for p in named.values())
        for name, module in model.named_modules():
            known, hooks, pre = modules[name]
            out["hooks"] += len(module._forward_hooks) - hooks + len(module._forward_pre_hooks) - pre
            out["attributes"] += len(set(vars(module)) - known) + (type(module._parameters) is not dict)
        out["attributes"] += sum(set(vars(p)) != marks[n] for n, p in named.items())
        out["frozen"] &= all(
            torch.equal(p, untouched[n.replace(".base_layer", "")]) for n, p in named.items() if not p.requires_grad
        )
        sums = world.gather_objects([float(named[n].detach().double().sum()) for n in held])
        out["ranks"] &= all(s == sums[0] for s in sums)
        out["dtypes"] = sorted({str(named[n].dtype) for n in held})
    return out


def engine_units(model):
    from tests.fakes.models import units_of

    return units_of(model, frozenset(n for n, p in model.named_parameters() if p.requires_grad))


@check
def a_bf16_base_trains_fp32_tensors(kit):
    """Base stays bf16 bit for bit, trained tensors are fp32; gradient under autocast as by hand."""
    model, engine = kit.build(dtype="bf16")
    batch = toy_batch(model)
    _, reference = by_hand(everyones(batch, 2), dtype="bf16")  # the same cut: bf16 rounds by the shape of a batch
    backward(engine, mine(batch, 2))
    found = distance(gradients(engine), reference)
    engine.step()
    for i in range(3):
        step(engine, mine(toy_batch(model, seed=i + 1), 2))
    held = weights(engine)
    engine.finish()
    named = dict(model.named_parameters())
    base = tiny_model(dtype="bf16")
    frozen = all(
        torch.equal(p, dict(base.named_parameters())[n.replace(".base_layer", "")])
        for n, p in named.items()
        if not p.requires_grad
    )
    dtypes = sorted({str(named[n].dtype) for n in held})
    return {"gradient": found, "frozen": frozen, "dtypes": dtypes, "equal": same({n: named[n] for n in held}, held)}


@check
def a_quantised_base_trains(kit):
    """Base bits as loaded after three steps, the gradient as by hand, and trained tensors in fp32."""
    out = {}
    if kit.kind == "zero3":  # the plan refuses it
        return out
    for dtype in ("nf4", "int8"):
        model, engine = kit.build(dtype=dtype)
        batch = toy_batch(model)
        loss, reference = by_hand(everyones(batch, 2), dtype=dtype)
        backward(engine, mine(batch, 2))
        out[f"{dtype} gradient"] = distance(gradients(engine), reference)
        engine.discard()
        untouched = tiny_model(dtype=dtype)
        adapted(untouched)
        before, start = frozen_checksums(untouched), weights(engine)
        for i in range(3):
            step(engine, mine(toy_batch(model, seed=i), 2))
        held = weights(engine)
        engine.finish()
        named = dict(model.named_parameters())
        out[f"{dtype} frozen"] = frozen_checksums(model) == before and len(before) > 14
        out[f"{dtype} moved"] = float(distance(held, start))
        out[f"{dtype} whole"] = same({n: named[n] for n in held}, held)
        out[f"{dtype} dtypes"] = sorted({str(t.dtype) for t in held.values()})
    return out


@check
def local_parts_cover_every_tensor_once(kit):
    _, engine = kit.build()
    local = engine.weights.local()
    whole = weights(engine)
    counts = world.gather_objects({n: t.numel() for n, t in local.items()})
    sizes = {n: sum(c[n] for c in counts) for n in whole}
    shared = all(sizes[n] == t.numel() for n, t in whole.items())
    replicated = all(local[n].numel() == t.numel() for n, t in whole.items())
    engine.finish()
    return {"covered": shared or replicated, "detached": not any(t.requires_grad for t in local.values())}


@check
def a_bad_row_is_named_on_every_rank(kit):
    model, engine = kit.build()
    step(engine, mine(toy_batch(model), 2))
    before = weights(engine)
    batches = mine(toy_batch(model, seed=1), 2)
    if world.rank() == world.size() - 1:
        nan = torch.full_like(batches[-1].pixels["pixel_values"], float("nan"))
        batches[-1] = dataclasses.replace(batches[-1], pixels={"pixel_values": nan})
    backward(engine, batches)
    text = ""
    try:
        engine.step()
    except McitError as error:
        text = str(error)
    bad = world.gather_objects([row.where for row in batches[-1].rows])[-1]
    unchanged = same(weights(engine), before)
    step(engine, mine(toy_batch(model, seed=2), 2))
    finite = all(bool(torch.isfinite(t).all()) for t in weights(engine).values())
    engine.finish()
    return {"named": bool(text) and all(w in text for w in bad), "unchanged": unchanged, "goes on": finite}


@check
def one_engine_twice_is_bitwise(kit):
    runs = []
    for _ in range(2):
        model, engine = kit.build()
        for i in range(3):
            step(engine, mine(uneven(model, seed=i, images=i != 1), 1))
        runs.append(weights(engine))
        engine.finish()
    return {"same": same(*runs)}


def run_all(make, folder, given, only=None, kind="plain"):
    """Every check's numbers, or the error it ended with."""
    import traceback

    results = {}
    for name, function in CHECKS.items():
        if only and name not in only:
            continue
        home = Path(folder) / name
        home.mkdir(parents=True, exist_ok=True)
        try:
            results[name] = function(Kit(make, home, given, kind))
        except Exception:
            results[name] = {"error": traceback.format_exc()}
            if world.size() > 1:
                break  # the ranks may no longer be together
    return results
