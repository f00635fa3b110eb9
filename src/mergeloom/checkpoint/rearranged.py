"""Tensors of one layout read as tensors of another, without making either of them whole."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from pathlib import Path
from typing import TYPE_CHECKING

from mergeloom.checkpoint.views import StoredTensor, StridedTensor, check_range, scratch_tensor
from mergeloom.types import DTYPES, Scratch, View, numel

if TYPE_CHECKING:
    import torch

Axes = tuple[tuple[int, int], ...]

CHUNK = 1 << 16
"""Elements that are read at once where what is wanted lies scattered in between."""

READ_COST = 1 << 14
"""Elements that pass by in the time of one more read: what is nearer together is read through."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Tensors of one dtype, end to end, under a shape: stacked experts, q over k over v."""

    views: tuple[View, ...]
    shape: tuple[int, ...]
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ends = tuple(accumulate(numel(view.shape) for view in self.views))
        if len({view.dtype for view in self.views}) != 1 or ends[-1] != numel(self.shape):
            raise ValueError(f"{len(self.views)} tensors do not make one of shape {self.shape}")
        object.__setattr__(self, "_ends", ends)

    @property
    def dtype(self) -> str:
        """The dtype of every part."""
        return self.views[0].dtype

    @property
    def saved_dtype(self) -> str:
        """The first part's."""
        return self.views[0].saved_dtype

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all parts, each once."""
        return tuple(dict.fromkeys(file for view in self.views for file in view.files))

    def read(self, start: int, stop: int, scratch: Scratch, key: object) -> torch.Tensor:
        """Elements [start, stop), straight from the one part they are in or put together."""
        check_range(start, stop, numel(self.shape))
        pieces = [*self._pieces(start, stop)]
        if len(pieces) == 1:
            view, first, last = pieces[0]
            return view.read(first, last, scratch, key)
        out = scratch_tensor(self.dtype, stop - start, scratch, key)
        done = 0
        for view, first, last in pieces:
            size = last - first
            out[done : done + size].copy_(view.read(first, last, scratch, (key, "piece")))
            done += size
        return out

    def prefetch(self, start: int, stop: int) -> None:
        """Prefetch from every part in the range."""
        for view, first, last in self._pieces(start, stop):
            view.prefetch(first, last)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[View, int, int]]:
        """(part, first, last) for every part in the range, in the part's own elements."""
        number = bisect_right(self._ends, start)
        while start < stop:
            before = self._ends[number - 1] if number else 0
            last = min(stop, self._ends[number])
            if last > start:
                yield self.views[number], start - before, last - before
            start, number = last, number + 1


@dataclass(frozen=True, slots=True)
class Rearranged:
    """Elements of a view in another order: part of it, transposed, or every other row.

    Args:
        view: where the elements are.
        shape: of the result.
        axes: (length, step) pairs, outermost first; element ``offset + Σ index · step`` of the
            flattened view is the one at an index.
        offset: of the first element.
    """

    view: View
    shape: tuple[int, ...]
    axes: Axes
    offset: int = 0

    def __post_init__(self) -> None:
        last = self.offset + sum((length - 1) * step for length, step in self.axes)
        if math.prod(n for n, _ in self.axes) != numel(self.shape):
            raise ValueError(f"axes {self.axes} of a tensor of shape {self.shape}")
        if numel(self.shape) and not 0 <= self.offset <= last < numel(self.view.shape):
            raise ValueError(f"element {last} of a tensor of shape {self.view.shape}")

    @property
    def dtype(self) -> str:
        """The view's."""
        return self.view.dtype

    @property
    def saved_dtype(self) -> str:
        """The view's."""
        return self.view.saved_dtype

    @property
    def files(self) -> tuple[Path, ...]:
        """The view's."""
        return self.view.files

    def read(self, start: int, stop: int, scratch: Scratch, key: object) -> torch.Tensor:
        """Elements [start, stop) of the flattened result, gathered in scratch memory."""
        check_range(start, stop, numel(self.shape))
        lengths = [length for length, _ in self.axes]
        boxes = [*_boxes(lengths, start, stop)]
        if len(boxes) == 1 and (span := self._run(boxes[0])):
            return self.view.read(*span, scratch, key)
        out = scratch_tensor(self.dtype, stop - start, scratch, key)
        done = 0
        for box in boxes:
            size = math.prod(last - first for first, last in box)
            self._gather(box, out[done : done + size], scratch, (key, "rearranged"))
            done += size
        return out

    def prefetch(self, start: int, stop: int) -> None:
        """Prefetch what is consecutive; do nothing for scattered elements."""
        for box in _boxes([length for length, _ in self.axes], start, stop):
            if span := self._run(box):
                self.view.prefetch(*span)

    def _run(self, box: Box) -> tuple[int, int] | None:
        """The elements of a box if they follow each other in the view."""
        size = 1
        for (first, last), (_, step) in reversed([*zip(box, self.axes, strict=True)]):
            if last - first > 1 and step != size:
                return None
            size *= last - first
        start = self._at(box)
        return start, start + size

    def _at(self, box: Box) -> int:
        return self.offset + sum(
            first * step for (first, _), (_, step) in zip(box, self.axes, strict=True)
        )

    def _gather(self, box: Box, out: torch.Tensor, scratch: Scratch, key: object) -> None:
        """Copy a box of indices into ``out``, reading the view in its own order."""
        counts = [last - first for first, last in box]
        steps = [step for _, step in self.axes]
        places = [math.prod(counts[axis + 1 :]) for axis in range(len(counts))]
        order = sorted(range(len(counts)), key=lambda axis: -steps[axis])
        inner, dense = len(order), 1
        while inner and (counts[order[inner - 1]] == 1 or steps[order[inner - 1]] == dense):
            inner -= 1
            dense *= counts[order[inner]]
        start = self._at(box)
        # The axes from ``split`` on are read through in one go, gaps and all.
        split = inner
        while split and _extent(order[split - 1 :], counts, steps) <= CHUNK + READ_COST * (
            counts[order[split - 1]]
        ):
            split -= 1
        for index in product(*(range(counts[axis]) for axis in order[:split])):
            far = sum(i * steps[a] for i, a in zip(index, order, strict=False))
            near = sum(i * places[a] for i, a in zip(index, order, strict=False))
            self._through(
                start + far, near, [(counts[a], steps[a], places[a]) for a in order[split:]],
                out, scratch, key,
            )  # fmt: skip

    def _through(
        self,
        start: int,
        place: int,
        axes: Sequence[tuple[int, int, int]],
        out: torch.Tensor,
        scratch: Scratch,
        key: object,
    ) -> None:
        """Read a stretch of the view and scatter it; (count, step, place in ``out``) per axis.

        A stretch longer than a chunk is cut along its outermost axis.
        """
        axes = [axis for axis in axes if axis[0] > 1] or [(1, 1, 1)]
        count, step, to = axes[0]
        rest = 1 + sum((n - 1) * s for n, s, _ in axes[1:])
        each = max(1, (CHUNK - rest) // step + 1)
        for first in range(0, count, each):
            many = min(each, count - first)
            begin = start + first * step
            read = self.view.read(begin, begin + (many - 1) * step + rest, scratch, key)
            shape = (many, *(n for n, _, _ in axes[1:]))
            source = read.as_strided(shape, [s for _, s, _ in axes])
            where = out.storage_offset() + place + first * to
            out.as_strided(shape, [p for _, _, p in axes], where).copy_(source)


Box = Sequence[tuple[int, int]]
"""A range of indices along every axis."""


def _extent(order: Sequence[int], counts: Sequence[int], steps: Sequence[int]) -> int:
    """Elements from the first to the last of a box, those in between included."""
    return 1 + sum((counts[axis] - 1) * steps[axis] for axis in order)


def _boxes(lengths: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Flat elements [start, stop) as boxes of indices, in order."""
    if start >= stop:
        return
    if len(lengths) <= 1:
        yield [(start, stop)] if lengths else []
        return
    row = math.prod(lengths[1:])
    first, last = -(-start // row), stop // row  # the whole rows inside the range
    if first > last:  # the range lies inside one row
        for box in _boxes(lengths[1:], start - last * row, stop - last * row):
            yield [(last, last + 1), *box]
        return
    if start < first * row:
        for box in _boxes(lengths[1:], start - (first - 1) * row, row):
            yield [(first - 1, first), *box]
    if last > first:
        yield [(first, last), *((0, length) for length in lengths[1:])]
    if stop > last * row:
        for box in _boxes(lengths[1:], 0, stop - last * row):
            yield [(last, last + 1), *box]


def rearranged(
    views: Sequence[View], shape: tuple[int, ...], axes: Axes, offset: int = 0
) -> View:
    """The view of elements of ``views`` laid end to end: see :class:`Rearranged`."""
    whole = numel(shape)
    dense = all(
        length == 1 or step == math.prod(n for n, _ in axes[number + 1 :])
        for number, (length, step) in enumerate(axes)
    )
    if len(views) > 1:
        total = sum(numel(view.shape) for view in views)
        if dense and offset == 0 and total == whole:
            return Joined(tuple(views), shape)
        return Rearranged(Joined(tuple(views), (total,)), shape, axes, offset)
    view = views[0]
    if isinstance(view, StoredTensor) and len(axes) == len(shape):
        place = view.offset + offset * DTYPES[view.dtype].bytes
        if dense:
            return StoredTensor(view.path, place, view.dtype, shape)
        return StridedTensor(view.path, place, view.dtype, shape, tuple(step for _, step in axes))
    return Rearranged(view, shape, axes, offset)
