"""Warnings where config.json disagrees about layers with the weights or another input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.architecture.layer_config import count_scope, layer_labels
from mergeloom.architecture.stacks import COUNT_KEYS, leaves
from mergeloom.errors import Problems, first_few
from mergeloom.planning.models import Model, Models
from mergeloom.planning.targets import Restacked


def warn_layers(models: Models, restacked: Sequence[Restacked], problems: Problems) -> None:
    """Tell counts that are not those of the weights, and lists that inputs disagree on."""
    rebuilt = {one.stack for one in restacked}
    for model in models.by_reference.values():
        _warn_count(model, problems)
        if model is not models.donor and models.donor.layout.main not in rebuilt:
            _warn_lists(models.donor, model, problems)
    for one in restacked:
        if one.stack.extra:
            problems.warn(
                models.donor.checkpoint.label,
                f"{one.stack.extra} multi-token-prediction layers behind {one.stack.prefix}."
                f"{one.stack.length - 1} are left out of the new stack",
            )


def _warn_count(model: Model, problems: Problems) -> None:
    """A count in config.json that no stack of the weights has."""
    main = model.layout.main
    if main is None or main.count_key is not None:
        return
    for path, value in leaves(model.checkpoint.config or {}):
        if path and path[-1] in COUNT_KEYS and type(value) is int and value > 0:
            problems.warn(
                model.checkpoint.label,
                f"its config.json says {'.'.join(path)} {value}, its weights have {main.length} "
                f"layers ({main.prefix}.*)",
            )
            return


def _warn_lists(donor: Model, other: Model, problems: Problems) -> None:
    """What the inputs' lists say of a layer must agree where layers meet one to one."""
    stack = donor.layout.main
    theirs = other.stack_like(stack) if stack else None
    if stack is None or theirs is None or theirs.length != stack.length:
        return
    ours, others = (
        [dict(layer) for layer in layer_labels(count_scope(config, one), one.length)]
        for config, one in ((_config(donor), stack), (_config(other), theirs))
    )
    for key in dict.fromkeys(key for layer in ours for key in layer):
        differ = [
            i
            for i, (a, b) in enumerate(zip(ours, others, strict=True))
            if key in b and a[key] != b[key]
        ]
        if differ:
            shown = first_few(map(str, differ), 6)
            problems.warn(
                other.checkpoint.label,
                f"its {key} says otherwise than {donor.checkpoint.label}'s of layers {shown}; the "
                f"output has {donor.checkpoint.label}'s",
            )


def _config(model: Model) -> Mapping[str, Any]:
    return model.checkpoint.config or {}
