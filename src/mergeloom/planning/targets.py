"""The output's tensors in order, and which input tensor each one is made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mergeloom.architecture import Layout, Place, Stack
from mergeloom.architecture.modules import (
    is_encoder_decoder,
    module_names,
    module_stack,
    module_tensors,
)
from mergeloom.errors import Problems, nearest
from mergeloom.methods import Method
from mergeloom.planning.models import Models
from mergeloom.types import Input, ModelReference, Module, Recipe, Settings, Slice


@dataclass(frozen=True)
class Part:
    """Inputs that are merged with each other under the same parameter levels.

    ``base`` is the place of the method's base among ``inputs``, None without one. ``levels`` are
    the settings below the inputs' own, highest precedence first, each with its recipe path.
    ``origin`` is the place among ``inputs`` of the base that the recipe names, even if the method
    uses none: tensors that are not merged are copied from it.
    """

    inputs: tuple[Input, ...]
    base: int | None
    levels: tuple[tuple[str, Settings], ...]
    where: str
    is_slice: bool = False
    origin: int | None = None

    @property
    def others(self) -> tuple[Input, ...]:
        """The inputs that are not the base, in the recipe's order."""
        return tuple(x for i, x in enumerate(self.inputs) if i != self.base)


@dataclass(frozen=True)
class Target:
    """One output tensor before its inputs are looked up.

    ``sources`` are names in the donor's spelling, one for each input of the part. ``part`` is
    None for a tensor that no module of the recipe covers.
    """

    name: str
    part: Part | None
    sources: tuple[str, ...]
    place: Place
    position: float


@dataclass(frozen=True)
class Restacked:
    """A stack rebuilt by slices: for every output layer its input and the input's layer."""

    stack: Stack
    selection: tuple[tuple[ModelReference, int], ...]


def make_parts(recipe: Recipe, method: Method) -> list[tuple[Part, ...]]:
    """For every module of the recipe its parts: one for ``models``, else one for each slice."""
    return [
        (_models_part(recipe, module, method),)
        if module.inputs
        else tuple(_slice_part(recipe, module, piece, method) for piece in module.slices)
        for module in recipe.modules
    ]


def make_targets(
    recipe: Recipe, parts: Sequence[tuple[Part, ...]], models: Models, problems: Problems
) -> tuple[list[Target], list[Restacked]]:
    """Every output tensor in output order, and the stacks that slices rebuilt."""
    layout = models.donor.layout
    kept = [n for n in layout.shapes if n in models.heads or n not in layout.heads]
    names = [*kept, *(h for h in models.heads if h not in layout.shapes)]
    owned: dict[str, Target] = {}
    spoken_of: set[str] = set()
    restacked: list[Restacked] = []
    for module, own in zip(recipe.modules, parts, strict=True):
        if not (wanted := _tensors(module, layout, names, problems)):
            continue
        if twice := [name for name in wanted if name in spoken_of]:
            problems.error(
                module.where,
                f"module {module.name!r} means tensors that another module has: {twice[0]}"
                + (f" and {len(twice) - 1} more" if len(twice) > 1 else ""),
                f"This model has: {', '.join(module_names(layout))}",
                recipe.line(module.where),
            )
            continue
        if module.inputs:
            made = [_same_name(name, own[0], layout, models) for name in wanted]
        else:
            made, stack = _restack(module, own, models, wanted, problems)
            restacked += [stack] if stack else []
        owned |= {target.name: target for target in made}
        spoken_of.update(wanted)
    for name in names:
        if name not in spoken_of:
            owned[name] = Target(name, None, (), *_place(name, layout, models))
    return sorted(owned.values(), key=_output_order), restacked


_GROUPS = {"pre": 0, "embedding": 0, "layer": 1, "post": 2, "head": 3}


def _output_order(target: Target) -> int:
    """Before the layers, the layers, after the layers; otherwise the order they came in."""
    return _GROUPS[target.place.role]


def _tensors(
    module: Module, layout: Layout, names: Sequence[str], problems: Problems
) -> Sequence[str]:
    """The donor's names that a module of the recipe means."""
    if module.name is None:
        return names
    found = tuple(n for n in module_tensors(layout, module.name) if n in names)
    if not found:
        known = module_names(layout)
        problems.error(
            module.where,
            f"this model has no module {module.name!r}",
            f"{nearest(module.name, known)} It has: {', '.join(known)}".strip(),
        )
    if layout.main and any(layout.place(n).stack == layout.main for n in found):
        return [*found, *(n for n in names if n not in layout.shapes)]
    return found


def _place(name: str, layout: Layout, models: Models) -> tuple[Place, float]:
    place = Place("head") if name in models.heads else layout.place(name)
    return place, min(1.0, place.position)


def _same_name(name: str, part: Part, layout: Layout, models: Models) -> Target:
    return Target(name, part, (name,) * len(part.inputs), *_place(name, layout, models))


def _models_part(recipe: Recipe, module: Module, method: Method) -> Part:
    """The ``models`` form. A base that the method uses and that is not listed is appended."""
    inputs = module.inputs
    base = _position(inputs, recipe.base_model) if method.base != "unused" else None
    if method.base != "unused" and recipe.base_model and base is None:
        inputs = (*inputs, Input(recipe.base_model, where="base_model"))
        base = len(inputs) - 1
    return Part(inputs, base, _levels(recipe, module), module.where or "models", origin=base)


def _levels(
    recipe: Recipe, module: Module, piece: Slice | None = None
) -> tuple[tuple[str, Settings], ...]:
    found = [(f"{piece.where}.parameters", piece.parameters)] if piece else []
    if module.name is not None:
        found.append((f"{module.where}.parameters", module.parameters))
    return (*found, ("parameters", recipe.parameters))


def _position(inputs: Sequence[Input], reference: ModelReference | None) -> int | None:
    return next((i for i, entry in enumerate(inputs) if entry.model == reference), None)


# --- slices ------------------------------------------------------------------------------------


def _restack(
    module: Module,
    parts: Sequence[Part],
    models: Models,
    wanted: Sequence[str],
    problems: Problems,
) -> tuple[list[Target], Restacked | None]:
    """The tensors of a module whose layers are put together from slices."""
    layout = models.donor.layout
    stack = module_stack(layout, tuple(n for n in wanted if n in layout.shapes))
    where = module.slices[0].where
    if stack is None or (stack.count_key is None and layout.config):
        label = models.donor.checkpoint.label
        found = f"the weights of {label} have no numbered layers to slice"
        if stack:
            found = (
                f"{label} has {stack.length} layers ({stack.prefix}.*), but its config.json does "
            )
            found += "not say so, so the new number cannot be written there"
        problems.error(where, found)
        return [], None
    if module.name is None and is_encoder_decoder(layout):
        problems.error(
            where,
            "this model has an encoder and a decoder",
            "Say which: modules: {decoder: {slices: ...}, encoder: {models: ...}}",
        )
        return [], None
    ranges = [_ranges(part, models, stack, problems) for part in parts]
    if any(r is None for r in ranges):
        return [], None
    lengths = [r[0][1] - r[0][0] for r in ranges if r]
    if sum(lengths) == 0:
        problems.error(where, "the slices hold no layers at all", "Give one a longer layer_range.")
        return [], None
    made = [_same_name(n, _end(n, layout, models, parts), layout, models)
            for n in wanted if not _in_stack(n, layout, stack)]  # fmt: skip
    selection: list[tuple[ModelReference, int]] = []
    for part, spans in zip(parts, ranges, strict=True):
        made += _layers(part, spans or (), stack, models, len(selection))
        lead = part.base or 0
        start, stop = (spans or ((0, 0),))[lead]
        selection += [(part.inputs[lead].model, i) for i in range(start, stop)]
    return made, Restacked(stack, tuple(selection))


def _end(name: str, layout: Layout, models: Models, parts: Sequence[Part]) -> Part:
    """The last slice's sources make what comes after the layers, the first slice's the rest."""
    return parts[-1] if _place(name, layout, models)[0].role in ("post", "head") else parts[0]


def _in_stack(name: str, layout: Layout, stack: Stack) -> bool:
    return name in layout.shapes and layout.place(name).stack == stack


def _slice_part(recipe: Recipe, module: Module, piece: Slice, method: Method) -> Part:
    reference = piece.base_model or recipe.base_model
    origin = _position(piece.inputs, reference)
    base = origin if method.base != "unused" else None
    levels = _levels(recipe, module, piece)
    return Part(piece.inputs, base, levels, piece.where, True, origin)


def _ranges(
    part: Part, models: Models, stack: Stack, problems: Problems
) -> tuple[tuple[int, int], ...] | None:
    """[start, end) of every source; None after reporting what is wrong with them."""
    found = []
    for entry in part.inputs:
        theirs = models[entry.model].stack_like(stack)
        if theirs is None:
            problems.error(
                entry.where,
                f"{entry.model} has no layers like {models.donor.checkpoint.label}'s "
                f"{stack.prefix}.*",
            )
            continue
        start, end = entry.layer_range or (0, None)
        stop = theirs.length if end is None else end
        if stop > theirs.length or start > theirs.length:
            problems.error(
                entry.where,
                f"layer_range [{start},{stop}] but {entry.model} has {theirs.length} layers "
                f"(0-{theirs.length - 1}); end is exclusive",
            )
            continue
        found.append((start, stop))
    if len(found) < len(part.inputs):
        return None
    if len({stop - start for start, stop in found}) > 1:
        spans = ", ".join(
            f"{e.model} [{a},{b}] = {b - a}" for e, (a, b) in zip(part.inputs, found, strict=True)
        )
        problems.error(part.where, f"its sources must span equally many layers: {spans}")
        return None
    return tuple(found)


def _layers(
    part: Part, spans: Sequence[tuple[int, int]], stack: Stack, models: Models, first: int
) -> Iterator[Target]:
    """The tensors of one slice's layers, renumbered to start at output layer ``first``."""
    if not spans:
        return
    count = spans[0][1] - spans[0][0]
    for offset in range(count):
        position = offset / (count - 1) if count > 1 else 1.0
        out = first + offset
        for suffix in _suffixes(part, spans, offset, stack, models):
            sources = tuple(stack.tensor(start + offset, suffix) for start, _ in spans)
            place = Place("layer", stack, out, suffix)
            yield Target(stack.tensor(out, suffix), part, sources, place, position)


def _suffixes(
    part: Part, spans: Sequence[tuple[int, int]], offset: int, stack: Stack, models: Models
) -> Iterator[str]:
    """What the layers that meet are made of: the lead's suffixes, then what others have more."""
    found: dict[str, None] = {}
    lead = part.base or 0
    order = [lead, *(i for i in range(len(spans)) if i != lead)]
    for i in order:
        alignment = models[part.inputs[i].model].alignment
        found.update(dict.fromkeys(alignment.suffixes(stack.prefix, spans[i][0] + offset)))
    yield from found
