"""The method that CONTRIBUTING.md adds works as it is printed there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mergeloom
from mergeloom.methods import registry

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
NAME = "steady_mean"


@pytest.fixture
def shown() -> Iterator[dict[str, Any]]:
    """What the page's Python blocks define; the method is taken out of the registry again."""
    found: dict[str, Any] = {}
    text = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"^( *)```python\n(.*?)^\1```$", text, re.M | re.S):
        indent, code = block
        exec(compile(re.sub(rf"^{indent}", "", code, flags=re.M), PAGE.name, "exec"), found)
    yield found
    registry.METHODS._known.pop(NAME, None)


def test_the_method_of_the_guide_agrees_with_its_reference(shown: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    states = {
        model: {"layer.weight": torch.randn(40, 30, generator=generator)} for model in ("a", "b")
    }
    recipe = {
        "merge_method": NAME,
        "models": [
            {"model": "a", "parameters": {"weight": 3}},
            {"model": "b", "parameters": {"weight": 1}},
        ],
    }
    merged = mergeloom.merge_state_dicts(recipe, states)["layer.weight"]
    inputs = [state["layer.weight"].double().numpy() for state in states.values()]
    wanted = shown["naive"](inputs, np.array([3.0, 1.0]))
    torch.testing.assert_close(merged, torch.from_numpy(wanted).float())


def test_its_example_is_a_recipe(shown: dict[str, Any]) -> None:
    assert mergeloom.load_recipe(shown[NAME].example).merge_method == NAME
