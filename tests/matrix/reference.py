"""Merged and restacked models made by hand from loaded ones: nothing of mergeloom is used."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

LAYER_NUMBER = re.compile(r"layer_(idx|id|index)$|^num_hidden_layers$")
Outputs = dict[str, torch.Tensor]


def answers(model: Any, inputs: Mapping[str, Any]) -> Outputs:
    """Every floating point tensor that a forward pass returns, by name."""
    with torch.no_grad():
        found = model(**inputs, return_dict=True)
    return {name: value for name, value in found.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()}  # fmt: skip


def average(a: Any, b: Any, share: float) -> Any:
    """A copy of ``a`` whose every number is (1 − share)·a + share·b, computed in float64."""
    state, other = a.state_dict(), b.state_dict()
    mixed = {
        name: ((1 - share) * value.double() + share * other[name].double()).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in state.items()
    }
    result = copy.deepcopy(a)
    result.load_state_dict(mixed)
    return result.eval()


def put_together(
    made: Any, stack: str, layers: Sequence[torch.nn.Module], others: Mapping[str, torch.Tensor]
) -> Any:
    """A model of ``made``'s class and configuration with these very layers in one stack.

    Args:
        made: the loaded model; only its class and configuration are used.
        stack: where the layers are in the module tree.
        layers: modules of other models, copied with all they know but their number.
        others: every tensor outside the stack.
    """
    result = type(made)(copy.deepcopy(made.config))
    copies = torch.nn.ModuleList(copy.deepcopy(layer) for layer in layers)
    for number, layer in enumerate(copies):
        for module in layer.modules():
            for attribute in vars(module):
                if LAYER_NUMBER.search(attribute):
                    setattr(module, attribute, number)
    parent, _, name = stack.rpartition(".")
    setattr(result.get_submodule(parent), name, copies)
    missing, unexpected = result.load_state_dict(others, strict=False)
    assert not unexpected
    assert all(entry.startswith(f"{stack}.") for entry in missing)
    return result.eval()


def traits(layer: torch.nn.Module) -> dict[str, Any]:
    """Everything a layer and its parts know as plain numbers and words, except its own number."""
    return {
        f"{path}.{name}": value
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, type(None)))
        and not LAYER_NUMBER.search(name)
        and not name.startswith("_")
    }


def owner_config(model: Any, path: str) -> Any:
    """The configuration of the part of the model that holds a stack."""
    while path:
        path = path.rpartition(".")[0]
        config = getattr(model.get_submodule(path), "config", None)
        if config is not None:
            return config
    raise LookupError(path)


def layer_lists(config: Any, length: int) -> dict[str, list[Any]]:
    """The lists of a configuration with one entry for each layer; rising numbers are indices."""
    return {
        key: list(value)
        for key, value in config.to_dict().items()
        if isinstance(value, (list, tuple))
        and len(value) == length
        and not (all(type(v) is int for v in value) and sorted(set(value)) == list(value))
    }
