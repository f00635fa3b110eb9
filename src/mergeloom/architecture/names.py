"""Two checkpoints of one model whose tensor names differ by a prefix only."""

from __future__ import annotations

from dataclasses import dataclass

from mergeloom.architecture.layout import Layout
from mergeloom.architecture.stacks import Stack


@dataclass(frozen=True)
class Alignment:
    """How the donor's tensor names read in another checkpoint.

    ``ours`` and ``theirs`` are the leading segments that differ; both empty when none do.
    """

    other: Layout
    ours: str = ""
    theirs: str = ""

    @property
    def renames(self) -> bool:
        """Whether any name changes."""
        return self.ours != self.theirs

    def find(self, name: str) -> str | None:
        """The other checkpoint's name of the donor's tensor ``name``, None if it has none."""
        if name in self.other.shapes:
            return name
        moved = _move(name, self.ours, self.theirs) if self.renames else ""
        return moved if moved in self.other.shapes else None

    def back(self, name: str) -> str:
        """The donor's way to write the other checkpoint's tensor ``name``."""
        return (_move(name, self.theirs, self.ours) or name) if self.renames else name


def align(donor: Layout, other: Layout) -> Alignment:
    """Match two checkpoints by names, else by a prefix.

    Two stacks are the same when the suffixes of their first layers are; the heads of their
    prefixes then map onto each other (``bert`` and nothing, ``model`` and
    ``model.language_model``).
    """
    if donor.main is None or donor.main.prefix in {s.prefix for s in other.stacks}:
        return Alignment(other)
    partner = _partner(donor, other)
    if partner is None:
        return Alignment(other)
    return Alignment(other, *_heads(donor.main.prefix, partner.prefix))


def _partner(donor: Layout, other: Layout) -> Stack | None:
    """The stack of ``other`` whose first layer looks like the donor's main stack's."""
    if donor.main is None:
        return None
    wanted = _signature(donor, donor.main)
    found = [s for s in other.stacks if _signature(other, s) == wanted]
    if other.main in found:
        return other.main
    return found[0] if len(found) == 1 else None


def _signature(layout: Layout, stack: Stack) -> frozenset[tuple[str, int]]:
    """Suffixes and ranks of the first layer: sizes may differ, and are then reported as such."""
    return frozenset(
        (suffix, len(layout.shapes[stack.tensor(0, suffix)]))
        for suffix in layout.suffixes.get((stack.prefix, 0), ())
    )


def _heads(one: str, other: str) -> tuple[str, str]:
    """Both names without their longest common tail of segments."""
    a, b = one.split("."), other.split(".")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return ".".join(a), ".".join(b)


def _move(name: str, ours: str, theirs: str) -> str:
    """``name`` with the leading segments ``ours`` replaced by ``theirs``."""
    if ours and not name.startswith(f"{ours}."):
        return ""
    rest = name[len(ours) + 1 :] if ours else name
    return f"{theirs}.{rest}" if theirs else rest
