"""All known methods by name: the only global state of the package.

Built-in methods register when this package is imported. Methods of other installed packages are
found by the entry point group ``mergeloom.methods`` the first time a name is not known or all
names are wanted; a single file is loaded by :func:`load_plugin`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mergeloom.errors import Problem, RecipeError
from mergeloom.methods.declaration import Arguments, Formula, Method

ENTRY_POINTS = "mergeloom.methods"


class Registry(Mapping[str, Method]):
    """Method name → declaration, in order of registration."""

    def __init__(self) -> None:
        self._known: dict[str, Method] = {}
        self._searched = False

    def add(self, declared: Method) -> None:
        """Register a method. Raises ValueError for a name that is taken."""
        if declared.name in self._known:
            raise ValueError(f"a merge method named {declared.name!r} is already registered")
        self._known[declared.name] = declared

    def __getitem__(self, name: str) -> Method:
        if name not in self._known:
            self._search()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        self._search()
        return iter(tuple(self._known))

    def __len__(self) -> int:
        self._search()
        return len(self._known)

    def _search(self) -> None:
        """Import what other packages offer, once."""
        if self._searched:
            return
        self._searched = True
        from importlib.metadata import entry_points

        for entry in entry_points(group=ENTRY_POINTS):
            entry.load()


METHODS = Registry()
"""Every known method."""


def method(**declaration: Any) -> Callable[[Callable[[Arguments], Formula]], Method]:
    """Register a function as a merge method: ``@method(name=..., title=..., parameters=...)``.

    The keyword arguments are those of :class:`Method`. Raises ValueError for a name that is
    taken, so that a plug-in cannot silently replace a built-in.
    """

    def register(formula: Callable[[Arguments], Formula]) -> Method:
        declared = Method(formula=formula, **declaration)
        METHODS.add(declared)
        return declared

    return register


def load_plugin(path: Path) -> None:
    """Run a Python file that registers methods. Raises RecipeError if it cannot be loaded."""
    spec = importlib.util.spec_from_file_location(f"mergeloom_plugin_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise RecipeError(Problem(str(path), "is not a Python file that can be loaded"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeError(
            Problem(str(path), f"cannot be loaded: {type(error).__name__}: {error}")
        ) from error
