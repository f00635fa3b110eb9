"""Integers of a few bits, packed into 32-bit words: compressed-tensors, GPTQ and AWQ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeloom.checkpoint.quantized.blocks import Dequantized, Piece, numbers
from mergeloom.errors import CheckpointError
from mergeloom.types import Scratch, View

if TYPE_CHECKING:
    import torch

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in its word of each of eight consecutive columns, as AWQ interleaves them."""


def unpack(words: torch.Tensor, bits: int, order: tuple[int, ...] = ()) -> torch.Tensor:
    """Words (…, n) of 32 bits → unsigned integers (…, n·32/bits), the lowest bits first.

    Args:
        words: int32; n is a multiple of the words after which whole integers end.
        bits: 1 to 8 for each integer; they may straddle two words.
        order: for each integer of a word the place it is packed at; its own without one.
    """
    import torch

    period = bits // math.gcd(bits, 32)
    count = period * 32 // bits
    groups = words.reshape(*words.shape[:-1], -1, period)
    out = torch.empty(*groups.shape[:-1], count, dtype=torch.int32)
    for place in range(count):
        word, shift = divmod((order[place] if order else place) * bits, 32)
        value = groups[..., word] >> shift
        left = 32 - shift
        if left < bits:
            value = (value & ((1 << left) - 1)) | (groups[..., word + 1] << left)
        out[..., place] = value & ((1 << bits) - 1)
    return out.flatten(-2)


@dataclass(frozen=True, slots=True)
class Packed(Dequantized):
    """(code − zero) · scale, with a scale for each row and group of columns.

    Args:
        codes: words, (rows, columns·bits/32), or with ``down`` (rows·bits/32, columns).
        scale: (rows, groups).
        shape: (rows, columns) of the weights.
        bits: of a code.
        saved_dtype: the model's own.
        group: columns in a group.
        zero: words (rows·bits/32, groups) packed down the rows, or a number each, (rows, groups);
            without it the middle of the codes' range is zero.
        group_of: for each column its group, or all −1 for groups of neighbours.
        stated_shape: two numbers that must be the shape.
        down: whether the codes of neighbouring rows share a word.
        order: the places of the integers in a word.
        zero_offset: added to stored zeros, which wrap around (GPTQ's first version stores 1 less).
    """

    codes: View
    scale: View
    shape: tuple[int, ...]
    bits: int
    saved_dtype: str
    group: int
    zero: View | None = None
    group_of: View | None = None
    stated_shape: View | None = None
    down: bool = False
    order: tuple[int, ...] = ()
    zero_offset: int = 0

    @property
    def rows_together(self) -> int:
        """Rows in a word, where words go down."""
        return 32 // self.bits if self.down else 1

    @property
    def parts(self) -> tuple[View, ...]:
        """Codes, scales, zeros, groups, shape."""
        every = (self.codes, self.scale, self.zero, self.group_of, self.stated_shape)
        return tuple(part for part in every if part is not None)

    def fill(self, out: torch.Tensor, piece: Piece, scratch: Scratch, key: object) -> None:
        """Unpacked codes minus zeros times scales."""
        self._check_shape(scratch, key)
        columns = slice(piece.left, piece.right)
        groups = self._groups(scratch, key)[columns]
        out.copy_(self._codes(piece, scratch, key)[:, columns])
        out -= self._zeros(piece, scratch, key).index_select(1, groups)
        count = self.scale.shape[1]
        scale = numbers(
            self.scale, piece.top * count, piece.bottom * count, scratch, (key, "scale")
        )
        out *= scale.view(-1, count).index_select(1, groups)

    def _check_shape(self, scratch: Scratch, key: object) -> None:
        if self.stated_shape is None:
            return
        stated = tuple(self.stated_shape.read(0, 2, scratch, (key, "shape")).tolist())
        if stated != self.shape:
            raise CheckpointError(
                f"packed weights have the shape {list(self.shape)} by their words and groups, and "
                f"{list(stated)} by what is stored beside them"
            )

    def _codes(self, piece: Piece, scratch: Scratch, key: object) -> torch.Tensor:
        """The piece's whole rows of codes."""
        if self.down:
            return self._down(self.codes, piece, scratch, key, "codes")
        width = self.codes.shape[1]
        words = self.codes.read(
            piece.top * width, piece.bottom * width, scratch, (key, "codes")
        ).view(-1, width)
        return unpack(words, self.bits, self.order)

    def _down(
        self, view: View, piece: Piece, scratch: Scratch, key: object, part: str
    ) -> torch.Tensor:
        """Rows [top, bottom) of integers that are packed down the rows."""
        width = view.shape[1]
        period = self.bits // math.gcd(self.bits, 32)
        count = period * 32 // self.bits
        first, last = piece.top // count, -(-piece.bottom // count)
        words = view.read(first * period * width, last * period * width, scratch, (key, part)).view(
            -1, width
        )
        rows = unpack(words.t().contiguous(), self.bits, self.order).t()
        return rows[piece.top - first * count : piece.bottom - first * count]

    def _zeros(self, piece: Piece, scratch: Scratch, key: object) -> torch.Tensor:
        """The code that means 0, (rows, groups)."""
        import torch

        middle, count = 1 << (self.bits - 1), self.scale.shape[1]
        if self.zero is None:
            return torch.full((piece.bottom - piece.top, count), float(middle))
        if self.zero.dtype == "I32":
            found = self._down(self.zero, piece, scratch, key, "zero")
            wrapped = (found + self.zero_offset) & ((1 << self.bits) - 1)
            return wrapped.to(torch.float32)
        signed = numbers(self.zero, piece.top * count, piece.bottom * count, scratch, (key, "zero"))
        return signed.view(-1, count) + middle

    def _groups(self, scratch: Scratch, key: object) -> torch.Tensor:
        """For each column the group its scale is in."""
        import torch

        columns, count = self.shape[1], self.scale.shape[1]
        if self.group_of is not None and count > 1:
            stored = self.group_of.read(0, columns, scratch, (key, "groups"))
            found = stored.to(torch.int64)
            if int(found.max()) >= count or (int(found.min()) < 0 and int(found.max()) >= 0):
                raise CheckpointError(
                    f"columns are in groups {int(found.min())} to {int(found.max())}, and there "
                    f"are {count}"
                )
            if int(found.min()) >= 0:
                return found
        return torch.arange(columns) // self.group
