"""YAML to ``Recipe``: parsed once, every mistake told at once with its line."""

from mergeloom.recipe.editor import json_schema
from mergeloom.recipe.load import load_recipe
from mergeloom.recipe.parameters import MethodWords, ParameterWords
from mergeloom.recipe.references import parse_reference
from mergeloom.recipe.settings import matches, resolve_setting, selects

__all__ = [
    "MethodWords",
    "ParameterWords",
    "json_schema",
    "load_recipe",
    "matches",
    "parse_reference",
    "resolve_setting",
    "selects",
]
