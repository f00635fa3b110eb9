"""Golden numbers: worked examples computed independently and checked against other mergers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mergeloom

GOLDENS = json.loads((Path(__file__).parent / "goldens.json").read_text())
TOLERANCE = 2e-6


def merged(case: dict) -> torch.Tensor:
    dtype = getattr(torch, case.get("dtype", "float32"))
    names = list(dict.fromkeys([*case["models"], *([case["base"]] if "base" in case else [])]))
    own = case.get("model_parameters", {})
    recipe = {
        "merge_method": case["method"],
        "models": [{"model": n, "parameters": own.get(n, {})} for n in case["models"]],
        "parameters": case.get("parameters", {}),
        "dtype": case.get("dtype", "float32"),
    }
    if "base" in case:
        recipe["base_model"] = case["base"]
    tensors = {n: {"w": torch.tensor(GOLDENS["tensors"][n], dtype=torch.float32)} for n in names}
    given = {n: {"w": t["w"].to(dtype)} for n, t in tensors.items()}
    return mergeloom.merge_state_dicts(recipe, given)["w"]


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=lambda case: case["id"])
def test_golden(case):
    if case["expected"] is None:
        with pytest.raises(mergeloom.RecipeError, match="sum to zero"):
            merged(case)
        return
    got = merged(case)
    tolerance = case.get("tolerance", TOLERANCE)
    np.testing.assert_allclose(got.double().numpy(), case["expected"], rtol=0, atol=tolerance)
