"""mergeloom: merge pre-trained language models in weight space.

>>> import mergeloom
>>> mergeloom.merge("recipe.yml", "out/")                       # doctest: +SKIP
>>> print(mergeloom.plan("recipe.yml").bytes_out)               # doctest: +SKIP

Names are imported when they are first used, so that importing the package, or asking the command
line for help, costs nothing; torch is imported when a merge runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mergeloom._version import __version__

if TYPE_CHECKING:
    from mergeloom.api import Merged, load_recipe, merge, merge_state_dicts, plan
    from mergeloom.errors import (
        CheckpointError,
        MergeError,
        MergeloomError,
        OutputError,
        Problem,
        RecipeError,
    )
    from mergeloom.inspection import Inspection, inspect
    from mergeloom.methods import method
    from mergeloom.planning import Job, Options, Plan
    from mergeloom.types import Recipe

_HOMES = {
    "mergeloom.api": ("Merged", "load_recipe", "merge", "merge_state_dicts", "plan"),
    "mergeloom.errors": (
        "CheckpointError",
        "MergeError",
        "MergeloomError",
        "OutputError",
        "Problem",
        "RecipeError",
    ),
    "mergeloom.inspection": ("Inspection", "inspect"),
    "mergeloom.methods": ("method",),
    "mergeloom.planning": ("Job", "Options", "Plan"),
    "mergeloom.types": ("Recipe",),
}

__all__ = [
    "CheckpointError",
    "Inspection",
    "Job",
    "MergeError",
    "Merged",
    "MergeloomError",
    "Options",
    "OutputError",
    "Plan",
    "Problem",
    "Recipe",
    "RecipeError",
    "__version__",
    "inspect",
    "load_recipe",
    "merge",
    "merge_state_dicts",
    "method",
    "plan",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'mergeloom' has no attribute {name!r}")
