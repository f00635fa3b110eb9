"""The methods that CONTRIBUTING.md adds work as they are printed there."""

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
CAPPED = "capped_mean"


@pytest.fixture
def shown() -> Iterator[dict[str, Any]]:
    """What the page's Python blocks define; the methods are taken out of the registry again."""
    found: dict[str, Any] = {}
    text = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"^( *)```python\n(.*?)^\1```$", text, re.M | re.S):
        indent, code = block
        exec(compile(re.sub(rf"^{indent}", "", code, flags=re.M), PAGE.name, "exec"), found)
    yield found
    for name in (NAME, CAPPED):
        registry.METHODS._known.pop(name, None)


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


def test_the_elementwise_method_of_the_guide(shown: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    base, a, b = (torch.randn(40, 30, generator=generator, dtype=torch.float64) for _ in range(3))
    a[3, 4] += 50
    recipe = {"merge_method": shown[CAPPED].name, "base_model": "base",
              "models": [{"model": "a"}, {"model": "b"}]}  # fmt: skip
    states = {"base": {"w": base}, "a": {"w": a}, "b": {"w": b}}
    change = ((a + b) / 2 - base).numpy()
    most = 3.0 * np.abs(change).mean()
    assert np.abs(change).max() > most
    merged = mergeloom.merge_state_dicts(recipe, states)["w"]
    np.testing.assert_allclose(merged, base.numpy() + np.clip(change, -most, most), rtol=1e-12)


def test_its_example_is_a_recipe(shown: dict[str, Any]) -> None:
    assert mergeloom.load_recipe(shown[NAME].example).merge_method == NAME
