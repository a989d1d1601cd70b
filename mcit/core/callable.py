"""Packages that can be called: ``mcit.plan(config)`` beside ``mcit.plan.plan``.

Three verbs of the Python interface have the names of packages. A call of the package is a call of the function of its name
in `mcit.api`; for type checkers ``mcit/__init__.py`` declares the functions themselves.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from mcit import api

        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)


def callable_package(name: str) -> None:
    """Let the imported package `name` be called."""
    sys.modules[name].__class__ = _CallablePackage
