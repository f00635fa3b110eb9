"""The benchmarks cover every method, with recipes that mergeloom accepts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mergeloom
from mergeloom.methods import METHODS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipes() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT))  # as the programs in benchmarks/ do
    yield importlib.import_module("benchmarks.recipes")
    sys.path.remove(str(ROOT))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_measured_with_a_recipe_without_mistakes(recipes: Any, name: str) -> None:
    folders = {model: Path(model) for model in ("base", "ft1", "ft2", "ft3")}
    text = recipes.recipe_text(recipes.METHODS[name].text, folders, layers=4)
    recipe = mergeloom.load_recipe(text)
    assert recipe.merge_method == name
    assert not recipe.warnings
    assert {str(model) for model in recipe.models()} == set(recipes.METHODS[name].models)
