"""Slices that cannot be made although every layer they name exists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergeloom.architecture import Stack
from mergeloom.architecture.layer_config import (
    LAST_LAYER,
    SHARED_ACROSS_LAYERS,
    count_scope,
    feature_layers,
    first_positions,
    layer_labels,
    paired_lists,
)
from mergeloom.architecture.layer_kinds import (
    Kind,
    end_extras,
    first_misfit,
    lists_beside,
    packed_by_layer,
)
from mergeloom.errors import Problems
from mergeloom.planning.models import Model, Models
from mergeloom.planning.targets import Restacked, Target
from mergeloom.types import ModelReference

WHOLE = "Models of this kind can be merged whole, with models:."


def check_restacked(rebuilt: Restacked, models: Models, problems: Problems) -> None:
    """Refuse new orders of layers that other tensors or config.json cannot follow.

    A stack that stays as it is, layer for layer, is always possible.
    """
    stack, donor = rebuilt.stack, models.donor
    order = [index for _, index in rebuilt.selection]
    if order == list(range(stack.length)):
        return
    scope = count_scope(donor.checkpoint.config or {}, stack)
    for message in _obstacles(donor, stack, scope):
        problems.error("slices", message, WHOLE)
    for message in _missed_layers(donor, stack, scope, order):
        problems.error("slices", message, "Choose slices that keep these layers.")
    _check_kinds(rebuilt, models, problems)


def _obstacles(donor: Model, stack: Stack, scope: Mapping[str, Any]) -> Iterator[str]:
    """Why no other order of the stack's layers is possible at all; ``scope`` owns its count."""
    label = donor.checkpoint.label
    if isinstance(scope.get("depths"), list):
        yield (
            f"{stack.prefix} holds stages of layers (depths: {scope['depths']}), each made for the "
            "width that the one before it leaves"
        )
    if donor.layout.row.fixed_order:
        kind = (donor.checkpoint.config or {}).get("model_type")
        yield f"layers of models of type {kind} cannot be taken out of their order"
    others = [s for s in donor.layout.stacks if s != stack]
    if shared := [s.prefix for s in others if s.count_key and s.count_key == stack.count_key]:
        yield (
            f"config.json has one number ({'.'.join(stack.count_key or ())}) for the layers of "
            f"{stack.prefix} and of {', '.join(shared)}, so {stack.prefix} alone cannot change"
        )
    if packed := packed_by_layer(donor.layout, stack, scope):
        yield (
            f"{label} keeps numbers of all its {stack.length} layers in one tensor, which slices "
            f"cannot take apart: {', '.join(packed)}"
        )
    if beside := lists_beside(donor.layout, stack):
        yield (
            f"the layers of {label} are spread over lists beside {stack.prefix}, which slices "
            f"cannot rebuild together: {', '.join(beside[:4])}"
        )
    for key, value in scope.items():
        if SHARED_ACROSS_LAYERS.search(key) and value:
            yield (
                f"layers of {label} use what other layers computed ({key}), so their order cannot "
                "be changed"
            )
        if LAST_LAYER.search(key) and type(value) is int and 0 <= value < stack.length - 1:
            yield (
                f"{key} {value} ends one kind of layers in the middle of the {stack.length}, and "
                "no rule says where it ends among the new ones"
            )


def _missed_layers(
    donor: Model, stack: Stack, scope: Mapping[str, Any], order: Sequence[int]
) -> Iterator[str]:
    """Layers that are left out though another part of the model reads what they put out."""
    for path, states, lost in feature_layers(donor.checkpoint.config or {}, stack, order):
        if lost:
            yield (
                f"{'.'.join(path)} {states} reads the output of layer {lost[0]}, which is left out"
            )
    others = [s for s in donor.layout.stacks if s != stack]
    for key in paired_lists(scope, stack, others):
        if len(first_positions(scope[key], order)) < len(scope[key]):
            left_out = sorted(set(scope[key]) - set(order))
            yield (
                f"layer {left_out[0]} is left out, but a module of its own reads it "
                f"({key}: {scope[key]})"
            )


def without_extras(
    targets: Sequence[Target],
    restacked: Sequence[Restacked],
    models: Models,
    problems: Problems,
) -> list[Target]:
    """The targets without what only a first or last layer has, where layers moved from there.

    T5 keeps the table of distances in its first layer; a copy of that layer elsewhere has none.
    """
    gone: set[str] = set()
    for rebuilt in restacked:
        source = _source(rebuilt, models)
        selected = [_kind(models, r, rebuilt, i) for r, i in rebuilt.selection]
        if _lists_tell_kinds(models, rebuilt, source, selected):
            continue
        ends = {"first": 0, "last": len(rebuilt.selection) - 1}
        for (which, end), kind in zip(ends.items(), end_extras(source), strict=True):
            for extra in sorted(suffix for suffix, _ in kind):
                copies = [
                    t.name
                    for t in targets
                    if t.place.stack == rebuilt.stack and t.place.suffix == extra
                    if t.place.index != end
                ]
                gone.update(copies)
                if copies:
                    problems.warn(
                        "slices",
                        f"only the {which} layer of this kind of model has {extra}; left out: "
                        f"{', '.join(copies)}",
                    )
    return [target for target in targets if target.name not in gone]


def _check_kinds(rebuilt: Restacked, models: Models, problems: Problems) -> None:
    """Refuse a layer order that the loader cannot be told about."""
    source = _source(rebuilt, models)
    selected = [_kind(models, reference, rebuilt, i) for reference, i in rebuilt.selection]
    if _lists_tell_kinds(models, rebuilt, source, selected):
        return
    told = _told_by_lists(models, rebuilt, source, selected)
    source, selected = [kind - told for kind in source], [kind - told for kind in selected]
    first, last = end_extras(source)
    end = len(selected) - 1
    selected = [
        kind - (first if place else frozenset()) - (last if place < end else frozenset())
        for place, kind in enumerate(selected)
    ]
    bad = first_misfit(source, selected)
    if bad is None:
        return
    reference, index = rebuilt.selection[bad.place]
    fitting = sorted(bad.fitting, key=lambda i: (abs(i - index), i))[:2]
    hint = "Choose ranges so that every kind of layer keeps its position or its period."
    if fitting:
        hint = f"Layer {' or '.join(map(str, sorted(fitting)))} would fit there."
    if bad.period:
        hint += (
            f" The kinds repeat every {bad.period} layers: let each slice begin where the one "
            f"before it leaves off, plus or minus a multiple of {bad.period}."
        )
    problems.error(
        "slices",
        f"output layer {bad.place} would be layer {index} of {reference}, but "
        f"{models.donor.checkpoint.label}'s kind of model expects another kind of layer there",
        hint,
    )


def _source(rebuilt: Restacked, models: Models) -> list[Kind]:
    """The kind of every layer of the donor's stack."""
    donor = models.donor_reference
    return [_kind(models, donor, rebuilt, i) for i in range(rebuilt.stack.length)]


def _lists_tell_kinds(
    models: Models, rebuilt: Restacked, source: Sequence[Kind], selected: Sequence[Kind]
) -> bool:
    """Whether the per-layer lists of config.json say all of what each layer is made of.

    Any order can then be written.
    """
    return not frozenset().union(*source, *selected) - _told_by_lists(
        models, rebuilt, source, selected
    )


def _told_by_lists(
    models: Models, rebuilt: Restacked, source: Sequence[Kind], selected: Sequence[Kind]
) -> Kind:
    """The parts of a layer that its config's per-layer lists tell, or that every layer has.

    LFM2-MoE's ``layer_types`` tell convolutions from attention; which layers are dense follows
    from the position. A list tells a part when layers it calls equal all have it or all lack it.
    """
    used = dict.fromkeys([models.donor_reference, *(r for r, _ in rebuilt.selection)])
    labels = {reference: _labels(models, reference, rebuilt) for reference in used}
    pairs = [*zip(labels[models.donor_reference], source, strict=True)]
    known = {label for label, _ in pairs}
    pairs += [
        (labels[r][i], kind) for (r, i), kind in zip(rebuilt.selection, selected, strict=True)
    ]
    if any(label not in known for label, _ in pairs):
        return frozenset()
    parts: Kind = frozenset().union(*source, *selected)
    having: dict[object, Kind] = {}
    lacking: dict[object, Kind] = {}
    for label, kind in pairs:
        having[label] = having.get(label, frozenset()) | kind
        lacking[label] = lacking.get(label, frozenset()) | (parts - kind)
    return parts - frozenset().union(*(having[label] & lacking[label] for label in having))


def _labels(models: Models, reference: ModelReference, rebuilt: Restacked) -> list[object]:
    """For every layer of a model what its config's lists say about it."""
    model = models[reference]
    stack = model.stack_like(rebuilt.stack) or rebuilt.stack
    return [*layer_labels(count_scope(model.checkpoint.config or {}, stack), stack.length)]


def _kind(models: Models, reference: ModelReference, rebuilt: Restacked, index: int) -> Kind:
    return frozenset(models[reference].alignment.layer(rebuilt.stack.prefix, index).items())
