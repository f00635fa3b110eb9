"""Tensors of one layout read as tensors of another, without making either of them whole."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from pathlib import Path
from typing import TYPE_CHECKING

from mergeloom.checkpoint.views import (
    StoredTensor,
    StridedTensor,
    as_bytes,
    as_tensor,
    check_range,
    empty,
    read_bytes,
)
from mergeloom.types import ARITHMETIC_DTYPES, DTYPES, Scratch, View, numel

if TYPE_CHECKING:
    import torch

Axes = tuple[tuple[int, int], ...]
"""(length, step) pairs, outermost first."""

Box = Sequence[tuple[int, int]]
"""A range of indices along every axis."""

CHUNK = 1 << 16
"""Elements that are read at once where what is wanted lies scattered in between."""

READ_COST = 1 << 14
"""Gaps of up to this many elements are read and dropped: one more read would take longer."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Tensors end to end under a shape: stacked experts, or q over k over v."""

    views: tuple[View, ...]
    shape: tuple[int, ...]
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ends = tuple(accumulate(numel(view.shape) for view in self.views))
        if not ends or ends[-1] != numel(self.shape):
            raise ValueError(f"{len(self.views)} tensors do not make one of shape {self.shape}")
        object.__setattr__(self, "_ends", ends)

    @property
    def dtype(self) -> str:
        """The dtype of the parts; the widest needed where they differ."""
        kinds = {view.dtype for view in self.views}
        if len(kinds) == 1 or not kinds <= set(ARITHMETIC_DTYPES):
            return self.views[0].dtype
        return "F64" if "F64" in kinds else "F32"

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
        if self._is_uniform:
            return as_tensor(self.read_bytes(start, stop, scratch, key), self.dtype)
        check_range(start, stop, numel(self.shape))
        out = empty(self.dtype, stop - start, scratch, key)
        done = 0
        for view, first, last in self._pieces(start, stop):
            size = last - first
            out[done : done + size].copy_(view.read(first, last, scratch, (key, "piece")))
            done += size
        return out

    def read_bytes(self, start: int, stop: int, scratch: Scratch, key: object) -> memoryview:
        """Their bytes, as they are stored if all parts are of one dtype."""
        if not self._is_uniform:
            return as_bytes(self.read(start, stop, scratch, key))
        check_range(start, stop, numel(self.shape))
        pieces = [*self._pieces(start, stop)]
        if len(pieces) == 1:
            view, first, last = pieces[0]
            return read_bytes(view, first, last, scratch, key)
        size = DTYPES[self.dtype].bytes
        out = scratch.bytes(key, (stop - start) * size)
        done = 0
        for view, first, last in pieces:
            end = done + (last - first) * size
            out[done:end] = read_bytes(view, first, last, scratch, (key, "piece"))
            done = end
        return out

    def prefetch(self, start: int, stop: int) -> None:
        """Prefetch from every part in the range."""
        for view, first, last in self._pieces(start, stop):
            view.prefetch(first, last)

    @property
    def _is_uniform(self) -> bool:
        dtype = self.views[0].dtype
        return all(view.dtype == dtype for view in self.views)

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
        boxes = self._boxes(start, stop)
        if len(boxes) == 1 and (span := self._run(boxes[0])):
            return self.view.read(*span, scratch, key)
        out = empty(self.dtype, stop - start, scratch, key)
        done = 0
        for box in boxes:
            size = math.prod(last - first for first, last in box)
            self._gather(box, out[done : done + size], scratch, (key, "rearranged"))
            done += size
        return out

    def read_bytes(self, start: int, stop: int, scratch: Scratch, key: object) -> memoryview:
        """Their bytes, as they are stored if they are consecutive in the view."""
        check_range(start, stop, numel(self.shape))
        boxes = self._boxes(start, stop)
        if len(boxes) == 1 and (span := self._run(boxes[0])):
            return read_bytes(self.view, *span, scratch, key)
        return as_bytes(self.read(start, stop, scratch, key))

    def prefetch(self, start: int, stop: int) -> None:
        """Prefetch what is consecutive; do nothing for scattered elements."""
        for box in self._boxes(start, stop):
            if span := self._run(box):
                self.view.prefetch(*span)

    def _boxes(self, start: int, stop: int) -> list[Box]:
        return [*_boxes([length for length, _ in self.axes], start, stop)]

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
        places = [math.prod(counts[number + 1 :]) for number in range(len(counts))]
        steps = [step for _, step in self.axes]
        axes = sorted((s, n, p) for n, s, p in zip(counts, steps, places, strict=True) if n > 1)
        axes.reverse()  # the largest step first
        split, extent = len(axes), 1
        while split and axes[split - 1][0] <= READ_COST + extent:
            split -= 1
            extent += axes[split][0] * (axes[split][1] - 1)
        start = self._at(box)
        for index in product(*(range(n) for _, n, _ in axes[:split])):
            here = start + sum(i * step for i, (step, _, _) in zip(index, axes, strict=False))
            place = sum(i * to for i, (_, _, to) in zip(index, axes, strict=False))
            self._through(here, place, axes[split:], out, scratch, key)

    def _through(
        self,
        start: int,
        place: int,
        axes: Sequence[tuple[int, int, int]],
        out: torch.Tensor,
        scratch: Scratch,
        key: object,
    ) -> None:
        """Read a stretch of the view, gaps and all, and scatter it into ``out`` from ``place``.

        ``axes`` are (step in the view, count, step in ``out``), the largest step first. A stretch
        longer than a chunk is cut along its outermost axis.
        """
        (step, count, to), *inner = axes or [(1, 1, 1)]
        rest = 1 + sum((n - 1) * s for s, n, _ in inner)
        if rest > CHUNK:
            for i in range(count):
                self._through(start + i * step, place + i * to, inner, out, scratch, key)
            return
        each = (CHUNK - rest) // step + 1
        for first in range(0, count, each):
            many = min(each, count - first)
            begin = start + first * step
            read = self.view.read(begin, begin + (many - 1) * step + rest, scratch, key)
            shape = (many, *(n for _, n, _ in inner))
            where = out.storage_offset() + place + first * to
            target = out.as_strided(shape, (to, *(p for _, _, p in inner)), where)
            target.copy_(read.as_strided(shape, (step, *(s for s, _, _ in inner))))


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


def rearrange(views: Sequence[View], shape: tuple[int, ...], axes: Axes, offset: int = 0) -> View:
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
