"""The checks of the self-test: what an engine owes the training loop, measured on the devices that are here.

Each takes a `Kit` and returns a `Finding`; all ranks call it together and decide alike. A name is what users see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mcit.core.types import Batch, WeightUnit
from mcit.engine import world
from mcit.engine.base import Engine
from mcit.selftest.export import export_differences
from mcit.selftest.kit import (
    OPTIM,
    Kit,
    Named,
    Reference,
    backward,
    difference,
    distance,
    gradients,
    is_projector,
    same,
    step,
    weights,
)


@dataclass(frozen=True)
class Finding:
    """What a check measured."""

    passed: bool
    number: float
    what: str
    """What the number is, and what was allowed."""


Check = Callable[[Kit], Finding]
CHECKS: dict[str, Check] = {}


def _check(name: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def _steps(kit: Kit, count: int) -> list[list[Batch]]:
    """Rows of so many steps, two per rank."""
    return [kit.rows(2 * world.size(), seed=i) for i in range(count)]


def _squares(weight: float) -> Callable[[WeightUnit, Mapping[str, Tensor]], dict[str, Tensor]]:
    return lambda unit, tensors: {"squares": weight * torch.stack([t.pow(2).sum() for t in tensors.values()]).sum()}


@_check("window")
def window(kit: Kit) -> Finding:
    """Gradients edited between backward and step: the projector's zeroed twice, one LoRA pair's doubled in step 2."""
    steps = _steps(kit, 2)
    _, engine = kit.build()
    start = weights(engine)
    doubled = engine.weights.units("lora")[0]
    zeroed = [n for n in start if is_projector(n)]
    for i, rows in enumerate(steps):
        backward(engine, kit.mine(rows, 1))
        grads = engine.gradients()
        for unit in grads.units("tensor"):
            grads.replace(unit, "weight", torch.zeros_like(grads.full(unit)["weight"]))
        if i == 1:
            for role, gradient in grads.full(doubled).items():
                grads.replace(doubled, role, 2 * gradient)
        engine.step()
    end = weights(engine)
    engine.finish()
    both, single = Reference(kit), Reference(kit)
    for i, rows in enumerate(steps):

        def edit(named: Mapping[str, nn.Parameter], *, double: bool) -> None:
            for name, parameter in named.items():
                if parameter.grad is not None and name in zeroed:
                    parameter.grad.zero_()
                elif parameter.grad is not None and double and name in doubled.params.values():
                    parameter.grad.mul_(2)

        both.step(rows, edit=lambda named, i=i: edit(named, double=i == 1))  # type: ignore[misc]
        single.step(rows, edit=lambda named: edit(named, double=False))
    far = distance(difference(end, start), _moved(difference(both.weights(), start), zeroed))
    effect = distance(single.weights(), both.weights())
    left = sum(not torch.equal(end[n], start[n]) for n in zeroed)
    what = f"distance of the weight changes from torch's with the same edits (allowed {kit.tolerance:.0e})"
    if left:
        return Finding(False, float(left), "tensors moved although their gradient was set to zero (allowed 0)")
    return Finding(far <= kit.tolerance < effect, far, what)


def _moved(changes: Named, zeroed: list[str]) -> Named:
    return {n: t for n, t in changes.items() if n not in zeroed}


@_check("penalty")
def penalty(kit: Kit) -> Finding:
    """0.5 * the sum of squares of all trained numbers, streamed unit by unit, on top of the loss's gradient."""
    (rows,) = _steps(kit, 1)
    _, engine = kit.build()
    backward(engine, kit.mine(rows, 2))
    totals = engine.add_penalties(_squares(0.5))
    found = gradients(engine)
    engine.discard()
    engine.finish()
    reference = Reference(kit)
    value = reference.penalty(0.5)
    (reference.loss(rows) + value).backward()
    far = distance(found, reference.gradients())
    far = max(far, abs(float(totals["squares"]) - value.item()) / value.item())
    return Finding(far <= kit.tolerance, far, f"distance from autograd's gradient (allowed {kit.tolerance:.0e})")


@_check("discard")
def discard(kit: Kit) -> Finding:
    """A rehearsal, whole gradient passes and an unfinished accumulation, all discarded, between steps."""
    steps = _steps(kit, 2)
    other = kit.rows(2 * world.size(), seed=90)
    ends = []
    for disturbed in (False, True):
        _, engine = kit.build()
        if disturbed:
            engine.rehearse(kit.mine(other, 2)[0])
        for rows in steps:
            if disturbed:
                backward(engine, kit.mine(other, 2))
                engine.add_penalties(_squares(1.0))
                engine.discard()
                with engine.micro_batch(last=False):
                    batch = kit.mine(other, 1)[0]
                    engine.backward(engine.forward(batch).nll_N.sum(), batch)
                engine.discard()
            step(engine, kit.mine(rows, 2))
        ends.append(weights(engine))
        engine.finish()
    return _bitwise(ends[1], ends[0], "an undisturbed run")


def _bitwise(found: Named, expected: Named, what: str) -> Finding:
    return Finding(
        same(found, expected), distance(found, expected), f"distance from {what} (allowed: none, bit for bit)"
    )


@_check("clipping")
def clipping(kit: Kit) -> Finding:
    """A large penalty and clip 0.01; with a large eps AdamW's first update shows the size of the gradient it was given."""
    optim = OPTIM.model_copy(update={"clip": 1e-2, "eps": 1e-2})
    (rows,) = _steps(kit, 1)
    _, engine = kit.build(optim=optim)
    start, reference = weights(engine), Reference(kit, optim)
    backward(engine, kit.mine(rows, 2))
    engine.add_penalties(_squares(10.0))
    engine.step()
    end, seen = weights(engine), engine.metrics()["grad_norm"]
    engine.finish()
    norm = reference.step(rows, weight=10.0)
    far = distance(difference(end, start), difference(reference.weights(), start))
    far = max(far, abs(seen - norm) / norm)
    what = f"distance of norm and changes from torch's, clipped after the penalty (allowed {kit.tolerance:.0e})"
    return Finding(far <= kit.tolerance, far, what)


@_check("mixed rows")
def mixed(kit: Kit) -> Finding:
    """Text on one rank (or micro-batch) and images on another; then both kinds in every batch."""
    ranks, far = world.size(), 0.0
    layouts: list[tuple[int, Callable[[int], bool]]] = [
        (1, lambda i: i % 2 == 0),
        (2, lambda i: (i // ranks) % 2 == 0),
    ]
    _, engine = kit.build()
    for size, image in layouts:
        rows = kit.rows(2 * ranks, seed=7, image=image)
        reference = Reference(kit)
        backward(engine, kit.mine(rows, size))
        reference.loss(rows).backward()
        far = max(far, distance(gradients(engine), reference.gradients()))
        engine.discard()
    engine.finish()
    return Finding(far <= kit.tolerance, far, f"distance of the gradient from torch's (allowed {kit.tolerance:.0e})")


@_check("frozen entries")
def frozen(kit: Kit) -> Finding:
    """Every third entry of every tensor in step 2, against momentum and weight decay; all others go on moving."""
    steps = _steps(kit, 2)
    _, engine = kit.build(optim=OPTIM.model_copy(update={"weight_decay": 0.1}))
    step(engine, kit.mine(steps[0], 2))
    before = weights(engine)
    backward(engine, kit.mine(steps[1], 2))
    grads, masks = engine.gradients(), {}
    for unit in grads.units():
        for role, name in unit.params.items():
            masks[name] = torch.zeros(before[name].shape, dtype=torch.bool, device=before[name].device)
            masks[name].view(-1)[::3] = True
            grads.freeze(unit, role, masks[name])
    engine.step()
    after = weights(engine)
    engine.finish()
    moved = sum(int((after[n] != before[n])[mask].sum()) for n, mask in masks.items())
    still = sum(int((after[n] == before[n])[~mask].sum()) for n, mask in masks.items())
    free = sum(int((~mask).sum()) for mask in masks.values())
    return Finding(moved == 0 and still < 0.01 * free, float(moved), "frozen entries that moved (allowed 0)")


@_check("checkpoint")
def checkpoint(kit: Kit) -> Finding:
    """Two steps, save, two steps, with dropout; and the last two again in a new engine from the checkpoint."""
    steps = _steps(kit, 4)
    torch.manual_seed(11 + world.rank())
    _, engine = kit.build(dropout=0.1)
    for i, rows in enumerate(steps):
        if i == 2:
            engine.save(kit.folder / "live")
            world.barrier()
        step(engine, kit.mine(rows, 2))
    straight = weights(engine)
    engine.finish()
    torch.manual_seed(99)
    _, engine = kit.build(dropout=0.1)
    engine.load(kit.folder / "live")
    for rows in steps[2:]:
        step(engine, kit.mine(rows, 2))
    resumed = weights(engine)
    engine.finish()
    return _bitwise(resumed, straight, "the run without a stop")


@_check("agreement")
def agreement(kit: Kit) -> Finding:
    """The change of every trained matrix over three clipped steps (scale * B @ A of a pair), the worst one."""
    steps = _steps(kit, 3)
    _, engine = kit.build()
    reference, start = Reference(kit), weights(engine)
    for rows in steps:
        step(engine, kit.mine(rows, 1))
        reference.step(rows)
    found, expected = _changes(engine, weights(engine), start), _changes(engine, reference.weights(), start)
    engine.finish()
    far, worst = max((distance({n: found[n]}, {n: expected[n]}), n) for n in expected)
    what = (
        f"distance of the weight change from one process by torch alone (allowed {kit.tolerance:.0e}); worst: {worst}"
    )
    return Finding(far <= kit.tolerance, far, what)


def _changes(engine: Engine, now: Named, start: Named) -> Named:
    out = {}
    for unit in engine.weights.units():
        if unit.kind == "lora":
            a, b = (now[unit.params[role]].double() for role in "AB")
            out[unit.name] = unit.scale * b @ a
        else:
            name = unit.params["weight"]
            out[name] = now[name].double() - start[name].double()
    return out


@_check("whole weights")
def whole(kit: Kit) -> Finding:
    """After the stage: every tensor of the model whole on every rank, trained ones as the engine held them."""
    model, engine = kit.build()
    shapes = {n: p.shape for n, p in kit.model().named_parameters()}
    (rows,) = _steps(kit, 1)
    step(engine, kit.mine(rows, 2))
    held = weights(engine)
    engine.finish()
    named: dict[str, Any] = dict(model.named_parameters())
    empty = sum(p.numel() == 0 or p.shape != shapes[n] for n, p in named.items())
    other = sum(n not in named or not torch.equal(named[n].detach(), t) for n, t in held.items())
    sums = world.gather_objects([float(named[n].detach().double().sum()) for n in held])
    unlike = sum(found != sums[0] for found in sums)
    bad = empty + other + unlike
    return Finding(bad == 0, float(bad), f"bad tensors or ranks: {empty} not whole, {other} changed, {unlike} unlike")


@_check("export")
def export(kit: Kit) -> Finding:
    """A short run, exported as adapter and merged by rank 0, both reloaded by transformers and peft alone."""
    found = export_differences(kit)
    far = max(found.values())
    listed = ", ".join(f"{kind} {value:.1e}" for kind, value in sorted(found.items()))
    what = f"largest difference of logits as a share of the largest ({listed}; allowed {kit.tolerance:.0e})"
    return Finding(far <= kit.tolerance, far, what)
