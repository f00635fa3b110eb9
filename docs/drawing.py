"""What the pictures share: merging one tensor, colours, panels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt

import mergeloom

Array = np.ndarray[Any, Any]
INK, FAINT, BLUE, ORANGE, GREEN = "#333333", "#bbbbbb", "#1f6fb4", "#d9701a", "#2b8a57"
COLOURS = (BLUE, ORANGE, GREEN)
SETTINGS = {
    "svg.hashsalt": "mergeloom",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "figure.constrained_layout.use": True,
}


def merge(
    method: str,
    models: Mapping[str, Any],
    *,
    base: Any = None,
    each: Mapping[str, Any] | None = None,
    own: Mapping[str, Mapping[str, Any]] | None = None,
    **parameters: Any,
) -> Array:
    """The merge of one tensor.

    Args:
        method: its name in a recipe.
        models: name → values, besides the base.
        base: the base's values.
        each: parameters that every model gets.
        own: name → further parameters of that model.
        parameters: those of the merge; a trailing underscore is dropped (``lambda_``).
    """
    values = dict(models) | ({} if base is None else {"base": base})
    states = {n: {"w": torch.tensor(np.asarray(v, dtype=np.float32))} for n, v in values.items()}
    recipe: dict[str, Any] = {
        "merge_method": method,
        "models": [
            {"model": name, "parameters": {**(each or {}), **(own or {}).get(name, {})}}
            for name in models
        ],
        "parameters": {name.rstrip("_"): value for name, value in parameters.items()},
    }
    if base is not None:
        recipe["base_model"] = "base"
    merged: Array = mergeloom.merge_state_dicts(recipe, states, threads=1)["w"].numpy()
    return merged


def panels(count: int, height: float = 2.5) -> tuple[Any, list[Any]]:
    """A figure of panels beside each other."""
    figure, axes = plt.subplots(1, count, figsize=(7.2, height), squeeze=False)
    return figure, list(axes[0])
