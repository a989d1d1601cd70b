"""``mcit run --profile``: what machine it is, hooks that tell vision from language, and the file in the run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import torch
from torch import nn

from mcit.core.errors import StateError
from mcit.core.profile import Profile, current
from mcit.core.ranks import on_first
from mcit.core.types import JsonDict, Plan
from mcit.engine import world
from mcit.engine.flops import FlopCount, matmul_rate
from mcit.engine.peak import peak_bytes
from mcit.models.quant import runs_bf16
from mcit.models.units import outermost
from mcit.runs.profile import read_profile, write_profile
from mcit.runs.run import Run


@contextlib.contextmanager
def kept(plan: Plan, run: Run, device: torch.device) -> Iterator[Callable[[], None]]:
    """In this block the profile, if one is taken, goes to the run's file: when what is yielded is called, and at the end.

    Raises StateError for a file of earlier commands that is damaged, before anything is trained, profile or not.
    """
    earlier = on_first(run.ranks, lambda: read_profile(run.layout))
    profile = current()
    if profile is None:
        yield lambda: None
        return
    about = _begin(profile, device, bf16=runs_bf16(plan.config.base.dtype, device))

    def write() -> None:
        if run.ranks.rank() == 0:
            write_profile(run.layout, [*earlier, {**about, "stages": profile.json()}])

    try:
        yield write
    except BaseException:
        with contextlib.suppress(StateError, OSError):  # the error on its way out says more
            write()
        raise
    write()


def _begin(profile: Profile, device: torch.device, *, bf16: bool) -> JsonDict:
    if device.type == "cuda":
        profile.wait = functools.partial(torch.cuda.synchronize, device)
    profile.counting = FlopCount
    dtype = torch.bfloat16 if bf16 else torch.float32
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": "bf16" if bf16 else "fp32",
        "threads": torch.get_num_threads(),
        "processes": world.size(),
        "matmul_flops": round(matmul_rate(device, dtype)),
    }


@contextlib.contextmanager
def watched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """In this block time in vision tower and projector is theirs, and the stage's peak of memory is noted."""
    profile = current()
    if profile is None:
        yield
        return
    handles = []
    for module in outermost(model, "tower", "projector"):
        handles.append(module.register_forward_pre_hook(lambda *given: profile.enter("vision"), prepend=True))
        handles.append(module.register_forward_hook(lambda *given: profile.leave()))
    try:
        yield
    finally:
        profile.times.peak_bytes = max(profile.times.peak_bytes or 0, peak_bytes(device))
        for handle in handles:
            handle.remove()
