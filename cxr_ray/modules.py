"""Modules that can be called: ``cxr_ray.measure`` is a folder too, ``cxr_ray.verdict`` a command line too."""

from __future__ import annotations

import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    """A module that calls the library's function of its name."""

    def __call__(self, *args: Any, **about: Any) -> Any:
        from cxr_ray import library

        return getattr(library, self.__name__.rpartition(".")[2])(*args, **about)


def make_callable(module: str) -> None:
    """Let an imported module be called as the library's function of the same name."""
    sys.modules[module].__class__ = _Callable
