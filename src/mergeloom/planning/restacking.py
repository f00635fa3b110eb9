"""What slices cannot do to a model although every layer that they name is there."""

from __future__ import annotations

from mergeloom.architecture.layer_config import (
    LAST_LAYER,
    count_scope,
    first_positions,
    paired_lists,
)
from mergeloom.architecture.layer_kinds import packed_by_layer
from mergeloom.errors import Problems
from mergeloom.planning.models import Models
from mergeloom.planning.targets import Restacked


def check_restacked(rebuilt: Restacked, models: Models, problems: Problems) -> None:
    """Refuse new orders of layers that other tensors or config.json cannot follow.

    A stack that stays as it is, layer for layer, is always possible.
    """
    stack, donor = rebuilt.stack, models.donor
    order = [index for _, index in rebuilt.selection]
    if order == list(range(stack.length)):
        return
    scope = count_scope(donor.checkpoint.config or {}, stack)
    if packed := packed_by_layer(donor.layout, stack, scope):
        problems.error(
            "slices",
            f"{donor.checkpoint.label} keeps numbers of all its {stack.length} layers in one "
            f"tensor, which slices cannot take apart: {', '.join(packed)}",
            "Models of this kind can be merged whole, with models:.",
        )
    others = [s for s in donor.layout.stacks if s != stack]
    for key in paired_lists(scope, stack, others):
        if len(first_positions(scope[key], order)) < len(scope[key]):
            left_out = sorted(set(scope[key]) - set(order))
            problems.error(
                "slices",
                f"layer {left_out[0]} is left out, but a module of its own reads it "
                f"({key}: {scope[key]})",
                "Choose slices that keep these layers.",
            )
    for key, value in scope.items():
        if LAST_LAYER.search(key) and type(value) is int and 0 <= value < stack.length - 1:
            problems.error(
                "slices",
                f"{key} {value} ends one kind of layers in the middle of the {stack.length}, and "
                "no rule says where it ends among the new ones",
                "Models of this kind can be merged whole, with models:.",
            )
