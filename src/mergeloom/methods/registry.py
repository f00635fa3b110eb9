"""All known methods by name: the only global state of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mergeloom.methods.declaration import Arguments, Formula, Method

_METHODS: dict[str, Method] = {}

METHODS: Mapping[str, Method] = MappingProxyType(_METHODS)
"""Every registered method, in order of registration."""


def method(**declaration: Any) -> Callable[[Callable[[Arguments], Formula]], Method]:
    """Register a function as a merge method: ``@method(name=..., title=..., parameters=...)``.

    The keyword arguments are those of :class:`Method`. Raises ValueError for a name that is
    taken, so that a plug-in cannot silently replace a built-in.
    """

    def register(formula: Callable[[Arguments], Formula]) -> Method:
        declared = Method(formula=formula, **declaration)
        if declared.name in _METHODS:
            raise ValueError(f"a merge method named {declared.name!r} is already registered")
        _METHODS[declared.name] = declared
        return declared

    return register
