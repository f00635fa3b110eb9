"""What the donor's tensors are in another checkpoint, which may name or pack them differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from mergeloom.architecture.layout import Layout
from mergeloom.architecture.packing import (
    STACKED,
    Packing,
    as_part,
    as_whole,
    canonical,
    model_types,
    pack_of,
    repacking,
)
from mergeloom.architecture.pairing import heads, move, pair_loose, pair_stacks
from mergeloom.architecture.sources import Pack, Source, plain
from mergeloom.architecture.stacks import Shapes, split

Spelled = dict[str, str]


@dataclass(frozen=True)
class Alignment:
    """Which tensors of a checkpoint are which of the donor's.

    Args:
        donor, other: the layouts.
        stacks: donor's stack prefix → the other's, for stacks that are the same part of a model.
        loose: the donor's name → the other's, for tensors outside of the stacks that are called
            differently.
    """

    donor: Layout
    other: Layout
    stacks: Mapping[str, str]
    loose: Mapping[str, str]

    @cached_property
    def prefixes(self) -> tuple[tuple[str, str], ...]:
        """(the donor's, the other's) leading segments where they differ, each pair once."""
        found = (heads(ours, theirs) for ours, theirs in self.stacks.items() if ours != theirs)
        return tuple(dict.fromkeys(found))

    def find(self, name: str) -> Source | None:
        """What the donor's tensor ``name`` is in the other checkpoint, None if it has none.

        ``name`` may belong to a layer that only the other checkpoint has.
        """
        if not self.prefixes and name in self.other.shapes and not name.endswith(STACKED):
            return plain(name)  # as in most merges: every stack is called the same
        parts = split(name)
        theirs = self.stacks.get(parts[0]) if parts else None
        if parts and theirs is not None:
            return self._in_layer(parts[0], theirs, parts[1], parts[2])
        if name in self.other.shapes:
            return plain(name)
        return plain(self.loose[name]) if name in self.loose else None

    def back(self, name: str) -> str:
        """The donor's name for the other checkpoint's loose tensor ``name``."""
        for ours, theirs in self.loose.items():
            if theirs == name:
                return ours
        for ours, theirs in self.prefixes:
            if (theirs or name not in self.donor.shapes) and (moved := move(name, theirs, ours)):
                return moved
        return name

    def suffixes(self, prefix: str, index: int) -> tuple[str, ...]:
        """What the other checkpoint's layer consists of, in the donor's names.

        Args:
            prefix: of the donor's stack.
            index: of the other checkpoint's layer.
        """
        theirs = self.stacks.get(prefix, prefix)
        found = self.other.suffixes.get((theirs, index), ())
        if theirs == prefix and self.other is self.donor:
            return found
        return tuple(
            dict.fromkeys(
                ours for suffix in found for ours in self._backwards(prefix, theirs, index, suffix)
            )
        )

    def layer(self, prefix: str, index: int) -> dict[str, tuple[int, ...]]:
        """The tensors of the other checkpoint's layer by the donor's names → their shapes there."""
        found = {}
        for suffix in self.suffixes(prefix, index):
            if source := self.find(f"{prefix}.{index}.{suffix}"):
                found[suffix] = source.shape or self.other.shapes[source.names[0]]
        return found

    # --- layers ---

    @cached_property
    def _ours(self) -> Mapping[str, Spelled]:
        """The donor's stack prefix → canonical suffix → suffix."""
        return _spellings(self.donor, self.stacks)

    @cached_property
    def _theirs(self) -> Mapping[str, Spelled]:
        """The same of the other checkpoint."""
        return _spellings(self.other, self.stacks.values())

    @cached_property
    def _kinds(self) -> tuple[frozenset[str], frozenset[str]]:
        """The model_types of the donor and of the other."""
        return model_types(self.donor.config), model_types(self.other.config)

    @cached_property
    def _donor_shapes(self) -> Mapping[tuple[str, str], tuple[int, ...]]:
        """(stack prefix, suffix) → shape, of the first layer that has it."""
        found: dict[tuple[str, str], tuple[int, ...]] = {}
        for (prefix, index), suffixes in self.donor.suffixes.items():
            for suffix in suffixes:
                shape = self.donor.shapes[f"{prefix}.{index}.{suffix}"]
                found.setdefault((prefix, suffix), shape)
        return found

    def _in_layer(self, ours: str, theirs: str, index: int, suffix: str) -> Source | None:
        here, shapes = f"{theirs}.{index}", self.other.shapes
        if not suffix.endswith(STACKED) and (name := f"{here}.{suffix}") in shapes:
            return plain(name)
        spelled, same = self._theirs[theirs], canonical(suffix)
        for candidate in (suffix, spelled.get(same)):
            name = f"{here}.{candidate}"
            if candidate and name in shapes:
                wanted = self._donor_shapes.get((ours, suffix), shapes[name])
                packs = repacking(same, wanted, shapes[name], self._kinds)
                return packs[0].repacked(name, packs[1]) if packs else plain(name)
        wanted = self._donor_shapes.get((ours, suffix), ())
        for packing, before in as_whole(same):
            if found := self._from_parts(packing, before, here, spelled, wanted):
                return found
        for packing, before, number, expert in as_part(same):
            whole = f"{here}.{spelled.get(before + packing.whole)}"
            if whole in shapes:
                pack = self._pack_of(packing, before, ours, expert, shapes[whole])
                # Of other sizes: left as it is, to be told by its shape.
                return pack.part(whole, number, expert) if pack else plain(whole)
        return None

    def _from_parts(
        self,
        packing: Packing,
        before: str,
        here: str,
        spelled: Spelled,
        wanted: tuple[int, ...],
    ) -> Source | None:
        """The donor's packed tensor out of the other's parts, None if there are none."""
        shapes = self.other.shapes
        names: list[str] = []
        expert = 0
        while own := _parts(packing, before, expert, here, spelled, shapes):
            names += own
            expert += 1
            if not packing.is_stacked:
                break
        first = names[: len(packing.parts)]
        sizes = [shapes[name] for name in first]
        if not names or any(len(s) != len(sizes[0]) or s[1:] != sizes[0][1:] for s in sizes):
            return None
        if any(shapes[n] != sizes[i % len(sizes)] for i, n in enumerate(names)):
            return None
        rows = tuple(size[0] for size in sizes)
        columns = sizes[0][1] if len(sizes[0]) == 2 else None
        experts = expert if packing.is_stacked else None
        pack = pack_of(self._kinds[0], wanted, rows, columns, experts)
        text = " + ".join(n.replace("experts.0.", "experts.*.") for n in first)
        return (pack or Pack(rows, columns, experts)).joined(tuple(names), text)

    def _pack_of(
        self, packing: Packing, before: str, ours: str, expert: int, shape: tuple[int, ...]
    ) -> Pack | None:
        """How the donor's parts lie in the other's packed tensor of that shape."""
        spelled = self._ours[ours]
        own = [spelled.get(before + p.replace("*", str(expert))) for p in packing.parts]
        sizes = [self._donor_shapes[ours, suffix] for suffix in own if suffix]
        if len(sizes) < len(own) or not all(sizes) or len({s[1:] for s in sizes}) > 1:
            return None
        experts = shape[0] if packing.is_stacked and shape else None
        if experts is not None and expert >= experts:
            return None
        columns = sizes[0][1] if len(sizes[0]) == 2 else None
        return pack_of(self._kinds[1], shape, tuple(s[0] for s in sizes), columns, experts)

    def _backwards(self, ours: str, theirs: str, index: int, suffix: str) -> tuple[str, ...]:
        """The donor's names for what the other checkpoint calls ``suffix``."""
        spelled, same = self._ours.get(ours, {}), canonical(suffix)
        if (ours, suffix) in self._donor_shapes:
            return (suffix,)
        if same in spelled:
            return (spelled[same],)
        for packing, before in as_whole(same):
            shape = self.other.shapes[f"{theirs}.{index}.{suffix}"]
            count = shape[0] if packing.is_stacked and shape else 1
            parts = [before + p.replace("*", str(e)) for e in range(count) for p in packing.parts]
            if parts and parts[0] in spelled:
                return tuple(spelled.get(part, part) for part in parts)
        for packing, before, _, _ in as_part(same):
            if before + packing.whole in spelled:
                return (spelled[before + packing.whole],)
        return (suffix,)


def align(donor: Layout, other: Layout) -> Alignment:
    """Match two checkpoints: stacks by what their layers are made of, then what is around them."""
    if donor is other:
        return Alignment(donor, other, {stack.prefix: stack.prefix for stack in donor.stacks}, {})
    stacks = pair_stacks(donor, other)
    return Alignment(donor, other, stacks, pair_loose(donor, other, stacks))


def _spellings(layout: Layout, prefixes: Iterable[str]) -> dict[str, Spelled]:
    found: dict[str, Spelled] = {prefix: {} for prefix in prefixes}
    for (prefix, _), suffixes in layout.suffixes.items():
        if prefix in found:
            for suffix in suffixes:
                found[prefix].setdefault(canonical(suffix), suffix)
    return found


def _parts(
    packing: Packing, before: str, expert: int, here: str, spelled: Spelled, shapes: Shapes
) -> list[str]:
    """The names of all parts of one expert; none if one of them is missing."""
    own = [spelled.get(before + part.replace("*", str(expert))) for part in packing.parts]
    names = [f"{here}.{suffix}" for suffix in own if suffix]
    return names if len(names) == len(own) and all(n in shapes for n in names) else []
