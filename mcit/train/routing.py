"""A pool's router in a stage and at evaluation: its state on disk, the member a stage trains, who answers which row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcit.core.errors import StateError
from mcit.core.records import MethodState
from mcit.core.statefile import load_state, save_state
from mcit.core.stored import read_record
from mcit.core.tensorfile import load_tensors
from mcit.core.types import Plan, RouterSpec, Row
from mcit.data.collate import collate
from mcit.data.encode import Encoder
from mcit.engine.forward import run_model
from mcit.models.lineage import Delta, Lineage
from mcit.models.pool import ROUTER, attached, members_of, using
from mcit.routers.base import Router, router_class

_STATES = 8
"""Rows of a pass for hidden states. Fixed, so that choices depend on no setting."""


def make(spec: RouterSpec) -> Router:
    """A router with its settings and empty state."""
    router: Router = router_class(spec.name)(spec.config)
    return router


def build(spec: RouterSpec, lineage: Lineage) -> Router:
    """A router with the state that the stages below left. Raises StateError for another version's."""
    router = make(spec)
    if lineage.deltas:
        load_state(router, lineage.deltas[-1].folder / ROUTER)
    return router


def save(router: Router, folder: Path) -> None:
    """Write ``router/state.json`` and ``router/tensors.safetensors`` below `folder`."""
    save_state(router, folder / ROUTER)


class LivePool:
    """The members of a pool on a model, and the router's choice among them."""

    def __init__(self, model: Any, encoder: Encoder, live: Mapping[str, str], router: type[Any], home: Path) -> None:
        self._model, self._encoder, self._live, self._router = model, encoder, live, router
        self._state = read_record(home / ROUTER / "state.json", MethodState)["state"]
        tensors = home / ROUTER / "tensors.safetensors"
        self._tensors: Mapping[str, Tensor] = load_tensors(tensors) if tensors.is_file() else {}
        self.members = list(live)

    def choose(self, rows: Sequence[Row]) -> list[str]:
        """The member that answers each row. Raises StateError for a router that names none."""
        plain = [{"id": row.id, "task": row.task, "question": row.question} for row in rows]
        by_id = {id(item): row for item, row in zip(plain, rows, strict=True)}

        def states(asked: Sequence[Mapping[str, str]], member: str | None) -> Tensor:
            return self._states([by_id[id(item)] for item in asked], member)

        chosen = list(self._router.route(plain, self.members, self._state, self._tensors, states))
        if len(chosen) != len(rows) or not set(chosen) <= set(self.members):
            what = (
                f"the router chose {sorted(set(chosen) - set(self.members))[:1]} for {len(chosen)} of {len(rows)} rows"
            )
            raise StateError(what, where="router", fix=f"choose one of {self.members} for each row")
        return chosen

    def using(self, member: str | None) -> contextlib.AbstractContextManager[None]:
        """That member acts, or none."""
        return using(self._model, None if member is None else self._live[member])

    def _states(self, rows: Sequence[Row], member: str | None) -> Tensor:
        parts = []
        with torch.no_grad(), self.using(member):
            for start in range(0, len(rows), _STATES):
                samples = [self._encoder.prompt(row) for row in rows[start : start + _STATES]]
                batch = collate(samples, stream="router", pad_id=self._encoder.pad_id, side="left")
                out = run_model(self._model, batch, device=self._model.device, layers={"last"})
                parts.append(out.hidden_BTD[:, -1].float().cpu())
        return torch.cat(parts)


@contextlib.contextmanager
def pooled(plan: Plan, model: Any, encoder: Encoder, lineage: Lineage) -> Iterator[LivePool | None]:
    """The pool after the last stage on a model; None where the run keeps none."""
    members: dict[str, Delta] = members_of(lineage)
    if not members or plan.router is None:
        yield None
        return
    with attached(model, members) as live:
        yield LivePool(model, encoder, live, router_class(plan.router.name), lineage.deltas[-1].folder)
