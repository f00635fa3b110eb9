"""What every dequantizing view shares: reading any range of elements in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mergeloom.checkpoint.views import check_range, empty
from mergeloom.types import Scratch, View, numel

if TYPE_CHECKING:
    import torch

PIECE = 1 << 17
"""Elements that are dequantized at once: what a read allocates besides its result."""


class Piece(NamedTuple):
    """Rows [top, bottom), columns [left, right): either whole rows, or a part of one row."""

    top: int
    bottom: int
    left: int
    right: int


class Dequantized:
    """A view that computes its numbers from stored codes and their companions.

    The tensor is seen as a matrix whose columns are its last axis. A subclass is a frozen
    dataclass with ``shape`` and ``saved_dtype``; it says what it is made of and fills a piece.
    """

    __slots__ = ()

    shape: tuple[int, ...]
    saved_dtype: str

    @property
    def dtype(self) -> str:
        """What reading gives."""
        return "F32"

    @property
    def parts(self) -> tuple[View, ...]:
        """The stored tensors it is made of, the codes first."""
        raise NotImplementedError

    @property
    def columns(self) -> int:
        """Length of the last axis."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows_together(self) -> int:
        """Rows that share codes, so that reading one of them costs as much as reading all."""
        return 1

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all its parts."""
        return tuple(dict.fromkeys(path for part in self.parts for path in part.files))

    def fill(self, out: torch.Tensor, piece: Piece, scratch: Scratch, key: object) -> None:
        """Write a piece's numbers into ``out``, float32 of shape (rows, columns)."""
        raise NotImplementedError

    def read(self, start: int, stop: int, scratch: Scratch, key: object) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor, in scratch memory."""
        check_range(start, stop, numel(self.shape))
        out = empty("F32", stop - start, scratch, key)
        done = 0
        for piece in pieces(start, stop, self.columns, self.rows_together):
            rows, columns = piece.bottom - piece.top, piece.right - piece.left
            part = out[done : done + rows * columns].view(rows, columns)
            self.fill(part, piece, scratch, key)
            done += rows * columns
        return out

    def prefetch(self, start: int, stop: int) -> None:
        """Ask for the same share of the codes; the companions are small."""
        codes, size = self.parts[0], numel(self.shape)
        stored = numel(codes.shape)
        if size:
            codes.prefetch(start * stored // size, -(-stop * stored // size))


def pieces(start: int, stop: int, columns: int, together: int = 1) -> Iterator[Piece]:
    """Cut elements [start, stop) of a matrix into pieces of at most about ``PIECE`` elements.

    Whole rows are cut between groups of ``together``.
    """
    most = max(together, PIECE // max(1, columns) // together * together)
    while start < stop:
        row, left = divmod(start, columns)
        if left or stop - start < columns or columns > PIECE:
            end = min(stop, (row + 1) * columns, start + PIECE)
            yield Piece(row, row + 1, left, left + end - start)
        else:
            count = min(most - row % together, (stop - start) // columns)
            end = start + count * columns
            yield Piece(row, row + count, 0, columns)
        start = end


def numbers(view: View, start: int, stop: int, scratch: Scratch, key: object) -> torch.Tensor:
    """Elements of a companion as float32. Bytes (U8) are exponents of two, as in MX formats."""
    import torch

    stored = view.read(start, stop, scratch, key)
    if view.dtype == "U8":
        return torch.ldexp(torch.ones(stop - start), stored.to(torch.int32) - 127)
    return stored.to(torch.float32)


FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The sixteen values of the 4-bit float E2M1 by their code."""


def lookup(table: torch.Tensor, stored: torch.Tensor, *, high_first: bool = False) -> torch.Tensor:
    """The values of the 4-bit codes that bytes hold two each, (n,) bytes → (2n,) values.

    Whole bytes are looked up in a table of pairs, which is several times faster than codes.
    """
    import torch

    low, high = table.repeat(16), table.repeat_interleave(16)
    pairs = torch.stack((high, low) if high_first else (low, high), dim=1)  # (bytes, 2)
    # Two float32 move as one number of 64 bits.
    whole = pairs.view(torch.int64).view(-1).index_select(0, stored.to(torch.int32))
    return whole.view(torch.float32)


def widen_float8(stored: torch.Tensor, out: torch.Tensor) -> None:
    """8-bit floats as float32, looked up: three times as fast as torch converts them."""
    import torch

    every = torch.arange(256, dtype=torch.uint8).view(stored.dtype).to(torch.float32)
    torch.index_select(every, 0, stored.view(torch.uint8).to(torch.int32), out=out.view(-1))
