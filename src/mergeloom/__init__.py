"""mergeloom: merge pre-trained language models in weight space.

>>> import mergeloom
>>> mergeloom.merge("recipe.yml", "out/")                       # doctest: +SKIP
>>> print(mergeloom.plan("recipe.yml").bytes_out)               # doctest: +SKIP

Importing it imports no torch; that happens when a merge runs.
"""

from mergeloom._version import __version__
from mergeloom.api import Merged, load_recipe, merge, merge_state_dicts, plan
from mergeloom.errors import (
    CheckpointError,
    MergeError,
    MergeloomError,
    OutputError,
    Problem,
    RecipeError,
)
from mergeloom.methods import method
from mergeloom.plan import Job, Options, Plan
from mergeloom.types import Recipe

__all__ = [
    "CheckpointError",
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
    "load_recipe",
    "merge",
    "merge_state_dicts",
    "method",
    "plan",
]
