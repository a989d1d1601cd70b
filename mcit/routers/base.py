"""The contract of a router: which adapter of a pool a stage continues, what is learnt for choosing, who answers a row.

A run with ``adapter.carry: pool`` keeps the adapters of its stages apart and names a router (``router: {use: …}``). `route` is
a static function of plain values: an export carries its source, so that the same choice is made where mcit is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mcit.core import lookup
from mcit.core.config import Config
from mcit.core.interfaces import DataContext, PoolContext
from mcit.core.tensorstore import HostTensors
from mcit.core.types import JsonDict

if TYPE_CHECKING:
    from torch import Tensor

States = Callable[[Sequence[Mapping[str, str]], "str | None"], "Tensor"]
"""(rows, member or None for the base alone) -> last hidden state at the last prompt token of each, (B, D) fp32."""


class RouterConfig(Config):
    """Settings of a router."""


class Router:
    """Chooses one adapter of a pool per row. State is what `state_dict` returns and what lies in `tensors`."""

    Config: type[RouterConfig] = RouterConfig
    state_version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()
    """Hidden states that `learn` reads (``hidden:<layer>``), and ``members`` if it reads under earlier adapters."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.tensors = HostTensors()

    def join(self, members: Sequence[str], data: DataContext) -> str | None:
        """The member that the coming stage goes on training; None is a new one. A function of state, settings and rows."""
        return None

    def learn(self, member: str, ctx: PoolContext) -> None:
        """At the end of a stage that trained `member`: take in what choosing needs. Every rank calls it."""

    @staticmethod
    def route(
        rows: Sequence[Mapping[str, str]],
        members: Sequence[str],
        state: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        states: States,
    ) -> list[str]:
        """One member per row.

        `rows` have ``id``, ``task`` and ``question``; `state` is what `state_dict` returned, `tensors` has ``<kind>|<name>``.
        Uses its arguments and what it imports inside alone: the source of this function is exported.
        """
        raise NotImplementedError

    def state_dict(self) -> JsonDict:
        """Small state: numbers, strings, lists."""
        return {}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take back what `state_dict` returned. A key that `state_dict` does not give then is refused by who reads the file."""


def router_class(name: str) -> type[Any]:
    """The class of that name. Raises ConfigError."""
    return lookup.class_of("routers", name, base=Router)
