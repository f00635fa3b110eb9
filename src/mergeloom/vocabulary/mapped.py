"""A vocabulary tensor seen through a row map: its rows are gathered while reading."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mergeloom.checkpoint.views import as_bytes, as_tensor, check_range, empty, read_bytes
from mergeloom.types import DTYPES, Scratch, View, numel
from mergeloom.vocabulary.rows import MEAN, PADDING, RowMap

if TYPE_CHECKING:
    import numpy as np
    import torch

_AVERAGING = threading.Lock()
_BLOCK = 1 << 18


class _Piece(NamedTuple):
    """Elements of rows that follow each other in one source.

    ``outer`` counts the vocabularies before the axis, ``number`` is the first output row, ``skip``
    the elements left out of it, ``at`` the place in what is read.
    """

    outer: int
    number: int
    skip: int
    size: int
    at: int


@dataclass(frozen=True)
class MappedRows:
    """One input's vocabulary tensor in the output's vocabulary.

    Rows that are means are formed in float32 (float64 when a source is), so the view is of that
    dtype as soon as it has one, or when its sources differ.

    Args:
        sources: the tensor of every holder of the row map; None where no row is taken from.
        own: which of the sources is the input itself.
        rows: where each row comes from.
        axis: the vocabulary's axis, the same in every source.
    """

    sources: tuple[View | None, ...]
    own: int
    rows: RowMap
    axis: int = 0

    @cached_property
    def _used(self) -> tuple[View, ...]:
        return tuple(v for i in self.rows.sources() if (v := self.sources[i]) is not None)

    @cached_property
    def dtype(self) -> str:
        """The sources' own dtype if it is one and no row is averaged, else F32 or F64."""
        if self._is_gathered:
            return self._used[0].dtype
        return "F64" if any(view.dtype == "F64" for view in self._used) else "F32"

    @cached_property
    def _is_gathered(self) -> bool:
        """Whether its rows are the sources' own, or zeros: nothing to compute."""
        return len({view.dtype for view in self._used}) == 1 and not self.rows.averages

    @property
    def saved_dtype(self) -> str:
        """The input's own."""
        return self._shaped.saved_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The input's shape with the output's vocabulary."""
        old = self._shaped.shape
        return (*old[: self.axis], len(self.rows), *old[self.axis + 1 :])

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of every source that rows are taken from."""
        return tuple(dict.fromkeys(path for view in self._used for path in view.files))

    @property
    def _shaped(self) -> View:
        own = self.sources[self.own]
        return own if own is not None else self._used[0]

    @property
    def _width(self) -> int:
        """Elements of one row: what follows the vocabulary axis."""
        return math.prod(self._shaped.shape[self.axis + 1 :])

    def read(self, start: int, stop: int, scratch: Scratch, key: object) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor."""
        if self._is_gathered:
            return as_tensor(self.read_bytes(start, stop, scratch, key), self.dtype)
        check_range(start, stop, numel(self.shape))
        out = empty(self.dtype, stop - start, scratch, key)
        for piece in self._pieces(start, stop):
            self._fill(out[piece.at : piece.at + piece.size], piece, scratch, (key, "row"))
        return out

    def read_bytes(self, start: int, stop: int, scratch: Scratch, key: object) -> memoryview:
        """Their bytes, as the sources store them if no row is averaged."""
        if not self._is_gathered:
            return as_bytes(self.read(start, stop, scratch, key))
        check_range(start, stop, numel(self.shape))
        size = DTYPES[self.dtype].bytes
        out = scratch.bytes(key, (stop - start) * size)
        for piece in self._pieces(start, stop):
            place = out[piece.at * size : (piece.at + piece.size) * size]
            source, row = int(self.rows.source[piece.number]), int(self.rows.row[piece.number])
            if source < 0:
                place[:] = bytes(len(place))
            else:
                view, first = self._found(source, row, piece)
                place[:] = read_bytes(view, first, first + piece.size, scratch, (key, "row"))
        return out

    def prefetch(self, start: int, stop: int) -> None:
        """Prefetch what lies together; single rows come soon enough."""
        for piece in self._pieces(start, stop):
            source = int(self.rows.source[piece.number])
            if piece.size > self._width and source >= 0 and (view := self.sources[source]):
                row = int(self.rows.row[piece.number])
                first = self._element(view, piece.outer, row) + piece.skip
                view.prefetch(first, first + piece.size)

    def _pieces(self, start: int, stop: int) -> Iterator[_Piece]:
        """The range in pieces of rows that follow each other in one source."""
        width = self._width
        total = len(self.rows) * width
        at = start
        while at < stop:
            outer, inside = divmod(at, total)
            number, skip = divmod(inside, width)
            end = min(stop - outer * total, self._run_end(number) * width)
            yield _Piece(outer, number, skip, end - inside, at - start)
            at += end - inside

    def _run_end(self, number: int) -> int:
        """The row after the last one that follows row ``number`` in its source."""
        import numpy as np

        return int(self._run_ends[np.searchsorted(self._run_ends, number, side="right")])

    @cached_property
    def _run_ends(self) -> np.ndarray[Any, Any]:
        """Ascending: the row after each run of consecutive rows of one source."""
        import numpy as np

        source, row = self.rows.source, self.rows.row
        joined = (source[1:] == source[:-1]) & (
            ((row[1:] == row[:-1] + 1) & (source[1:] >= 0))
            | ((source[1:] < 0) & (source[1:] != MEAN))
        )
        return np.append(np.flatnonzero(~joined) + 1, len(row))

    def _fill(self, out: torch.Tensor, piece: _Piece, scratch: Scratch, key: object) -> None:
        source, row = int(self.rows.source[piece.number]), int(self.rows.row[piece.number])
        if source >= 0:
            self._copy(out, source, row, piece, scratch, key)
        elif source == MEAN:
            self._average(out, row, piece, scratch, key)
        elif source == PADDING:
            width = self._width
            mean = _padding(self, scratch)[piece.outer * width : (piece.outer + 1) * width]
            count = -(-(piece.skip + piece.size) // width)
            out.copy_(mean.repeat(count)[piece.skip : piece.skip + piece.size])
        else:
            out.zero_()

    def _element(self, view: View, outer: int, row: int) -> int:
        return (outer * view.shape[self.axis] + row) * self._width

    def _copy(
        self, out: torch.Tensor, source: int, row: int, piece: _Piece, scratch: Scratch, key: object
    ) -> None:
        view, first = self._found(source, row, piece)
        out.copy_(view.read(first, first + len(out), scratch, key))

    def _found(self, source: int, row: int, piece: _Piece) -> tuple[View, int]:
        """The view that holds a piece which begins in a row of a source, and its first element."""
        view = self.sources[source]
        if view is None:
            raise ValueError(f"row {row} of input {source}, which has no such tensor")
        return view, self._element(view, piece.outer, row) + piece.skip

    def _average(
        self, out: torch.Tensor, mean: int, piece: _Piece, scratch: Scratch, key: object
    ) -> None:
        first, end = int(self.rows.starts[mean]), int(self.rows.starts[mean + 1])
        total = empty("F64", len(out), scratch, (key, "sum")).zero_()
        term = empty("F64", len(out), scratch, (key, "term"))
        for source, row in self.rows.parts[first:end]:
            self._copy(term, int(source), int(row), piece, scratch, key)
            total.add_(term)
        out.copy_(total.div_(end - first))


_PADDING: dict[MappedRows, torch.Tensor] = {}


def _padding(view: MappedRows, scratch: Scratch) -> torch.Tensor:
    """(outer × width,) the mean over an input's rows that are not padding; measured once.

    Summed in float64 in the order of the rows, so it is the same for any number of workers.
    """
    import numpy as np
    import torch

    with _AVERAGING:
        if view in _PADDING:
            return _PADDING[view]
        width, total = view._width, len(view.rows)
        outer = numel(view.shape) // max(1, total * width)
        real = np.flatnonzero(view.rows.source != PADDING)
        mean = torch.zeros(outer * width, dtype=torch.float64)
        step = max(1, _BLOCK // max(1, width))
        runs = np.split(real, np.flatnonzero(np.diff(real) > 1) + 1) if len(real) else []
        for o in range(outer):
            sums = mean[o * width : (o + 1) * width]
            for run in runs:
                end = int(run[-1]) + 1
                for first in range(int(run[0]), end, step):
                    at, stop = (o * total + first) * width, min(first + step, end)
                    size = (stop - first) * width
                    block = view.read(at, at + size, scratch, "padding")
                    sums += block.view(-1, width).double().sum(0)
        mean /= max(1, len(real))
        while len(_PADDING) >= 8:
            _PADDING.pop(next(iter(_PADDING)))
        _PADDING[view] = mean
        return mean
