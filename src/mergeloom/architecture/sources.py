"""Which elements of a checkpoint's tensors are one tensor of another layout."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Tensors of a checkpoint, read as one tensor of the donor.

    The tensors ``names`` are laid end to end in one row of elements. ``axes`` are (length, step)
    pairs, outermost first: the element at an index is ``offset + Σ index · step`` of that row.

    Args:
        names: of the checkpoint's own tensors, in their order.
        text: how a plan shows it.
        shape: of the result; None for the one tensor as it is.
        axes: empty for the one tensor as it is. Their lengths multiply to the shape's; several
            may make up one axis of it.
        offset: of the first element.
    """

    names: tuple[str, ...]
    text: str
    shape: tuple[int, ...] | None = None
    axes: tuple[tuple[int, int], ...] = ()
    offset: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether it is one tensor of the checkpoint as it is."""
        return self.shape is None


def plain(name: str) -> Source:
    """One tensor as it is."""
    return Source((name,), name)


@dataclass(frozen=True)
class Pack:
    """How the matrices of several modules lie in one tensor.

    The parts, each (rows, columns) or (rows,), are put below each other, for every expert.

    Args:
        rows: of every part.
        columns: of all parts; None where the parts are vectors.
        experts: how many are stacked; None when they are not.
        transposed: stored as (columns, rows) for the expert.
        interleaved: row 0 of every part, then row 1 of every part, and so on.
    """

    rows: tuple[int, ...]
    columns: int | None = None
    experts: int | None = None
    transposed: bool = False
    interleaved: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor that holds all parts."""
        total, tail = sum(self.rows), () if self.columns is None else (self.columns,)
        matrix = (*tail, total) if self.transposed else (total, *tail)
        return matrix if self.experts is None else (self.experts, *matrix)

    def part(self, name: str, number: int, expert: int = 0) -> Source:
        """One part, read out of the tensor ``name`` that holds them all."""
        total, wide = sum(self.rows), self.columns or 1
        before = number if self.interleaved else sum(self.rows[:number])
        step = len(self.rows) if self.interleaved else 1
        # (elements between two rows, between two columns) of the packed matrix
        down, right = (1, total) if self.transposed else (wide, 1)
        axes = [(self.rows[number], step * down)]
        if self.columns is not None:
            axes.append((self.columns, right))
        which = f"{before}::{step}" if self.interleaved else f"{before}:{before + axes[0][0]}"
        text = name + (f"[{expert}]" if self.experts is not None else "")
        text += f"[:, {which}]" if self.transposed else f"[{which}]" if len(self.rows) > 1 else ""
        return Source(
            names=(name,),
            text=text,
            shape=tuple(length for length, _ in axes),
            axes=tuple(axes),
            offset=expert * total * wide + before * down,
        )

    def joined(self, names: tuple[str, ...], text: str) -> Source:
        """The packed tensor, read from its parts, in the order expert, part."""
        text += ", transposed" if self.transposed else ""
        return self._read(names, text, Pack(self.rows, self.columns, self.experts))

    def repacked(self, name: str, stored: Pack) -> Source:
        """The packed tensor, read from one that holds the same parts in another way."""
        text = f"{name}, transposed" if self.transposed != stored.transposed else name
        return self._read((name,), text, stored)

    def _read(self, names: tuple[str, ...], text: str, stored: Pack) -> Source:
        """Elements in the order of this pack, at the steps they have in ``stored``."""
        total, wide, count = sum(self.rows), self.columns or 1, len(self.rows)
        each = self.rows[0]
        down, right = (1, total) if stored.transposed else (wide, 1)
        if self.interleaved or stored.interleaved:  # all parts have equally many rows
            of_row, of_part = (count, 1) if stored.interleaved else (1, each)
            rows = [(each, of_row * down), (count, of_part * down)]
            rows = rows if self.interleaved else rows[::-1]
        else:
            rows = [(total, down)]
        columns = [] if self.columns is None else [(wide, right)]
        matrix = [*columns, *rows] if self.transposed else [*rows, *columns]
        outer = [] if self.experts is None else [(self.experts, total * wide)]
        return Source(names, text, self.shape, (*outer, *matrix))
