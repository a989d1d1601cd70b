"""Rank and world size, and the few collectives that need no model, from torch.distributed in this one place.

With one process every function is a no-op that returns what went in. Objects travel as canonical JSON.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mcit.core.errors import PlanError
from mcit.core.files import canonical_json

_timeout: timedelta | None = None
"""Of collectives; None is torch's default."""


def rank() -> int:
    """This process's rank; 0 when nothing is distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    """Number of processes; 1 when nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_rank() -> int:
    """This process's rank on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def init(timeout: float = 1800.0, *, cpu: bool = False) -> None:
    """Join the process group that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Without RANK nothing is distributed and nothing happens. `timeout` in seconds holds for every collective. GPUs use
    NCCL for their tensors and gloo for everything in host memory; `cpu` leaves GPUs out. Raises PlanError when fewer
    processes came together than WORLD_SIZE says.
    """
    global _timeout
    if dist.is_initialized() or "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return
    cuda = torch.cuda.is_available() and not cpu
    if cuda:
        if local_rank() >= torch.cuda.device_count():
            raise PlanError(
                f"is {local_rank()}, but this machine has {torch.cuda.device_count()} GPUs",
                where="LOCAL_RANK",
                fix="start at most one process per GPU",
            )
        torch.cuda.set_device(local_rank())
    _timeout = timedelta(seconds=timeout)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_timeout)
    asked = int(os.environ["WORLD_SIZE"])
    if size() != asked:
        raise PlanError(
            f"{asked} processes were asked for and {size()} came together",
            where="WORLD_SIZE",
            fix="start all of them with one launcher",
        )


def new_group(ranks: list[int]) -> Any:
    """A process group of some ranks with the time-out that `init` was given."""
    return dist.new_group(ranks, timeout=_timeout)


def alone(device: torch.device) -> None:
    """A process group of this process only, for libraries that need one, where nothing is distributed."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def shutdown() -> None:
    """Leave the process group."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if size() > 1:
        gather_objects(None)


def all_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in place; every rank gets the same bits."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_object(obj: Any, source: int = 0) -> Any:
    """The object of rank `source`, on every rank; anything JSON can hold."""
    if size() == 1:
        return obj
    data = _bytes(obj) if rank() == source else torch.zeros(0, dtype=torch.uint8)
    length = torch.tensor([len(data)])
    dist.broadcast(length, source)
    if rank() != source:
        data = torch.zeros(int(length), dtype=torch.uint8)
    dist.broadcast(data, source)
    return json.loads(data.numpy().tobytes())


def gather_objects(obj: Any) -> list[Any]:
    """The objects of all ranks in rank order, on every rank; anything JSON can hold."""
    if size() == 1:
        return [obj]
    data = _bytes(obj)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    dist.all_gather(lengths, torch.tensor([len(data)]))
    longest = int(max(lengths))
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    dist.all_gather(parts, torch.cat([data, torch.zeros(longest - len(data), dtype=torch.uint8)]))
    return [json.loads(part[: int(n)].numpy().tobytes()) for part, n in zip(parts, lengths, strict=True)]


def _bytes(obj: Any) -> Tensor:
    return torch.frombuffer(bytearray(canonical_json(obj).encode()), dtype=torch.uint8)
