"""bitsandbytes' 4-bit weights: a table of sixteen values, a largest magnitude for each block."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeloom.checkpoint.quantized.blocks import Dequantized, Piece, lookup, numbers
from mergeloom.checkpoint.quantized.pool import Pool, content
from mergeloom.json_text import parse_json
from mergeloom.types import DTYPES, Scratch, View, nbytes, numel

if TYPE_CHECKING:
    import torch

STATE = ".quant_state.bitsandbytes__"
_LONGEST_STATE = 1 << 16
_LARGEST = 1 << 62


@dataclass(frozen=True, slots=True)
class Tabled(Dequantized):
    """table[code] · magnitude of the block, over the flattened tensor.

    Args:
        codes: bytes of two codes each, the first in the high half; of any dtype.
        table: the 16 values.
        magnitude: F32 for each block, or U8 codes of magnitudes (double quantization).
        shape: of the weights.
        block: weights in a block.
        saved_dtype: the model's own.
        nested: of double quantization, else None.
    """

    codes: View
    table: View
    magnitude: View
    shape: tuple[int, ...]
    block: int
    saved_dtype: str
    nested: Nested | None = None

    @property
    def columns(self) -> int:
        """All of it: blocks do not end with rows."""
        return numel(self.shape)

    @property
    def parts(self) -> tuple[View, ...]:
        """Codes, table, magnitudes and theirs."""
        nested = (self.nested.table, self.nested.magnitude) if self.nested else ()
        return (self.codes, self.table, self.magnitude, *nested)

    def fill(self, out: torch.Tensor, piece: Piece, scratch: Scratch, key: object) -> None:
        """Look up the codes, scale each block."""
        import torch

        start, stop = piece.left, piece.right
        size = DTYPES[self.codes.dtype].bytes
        first, last = start // (2 * size), -(-stop // (2 * size))
        stored = self.codes.read(first, last, scratch, (key, "codes")).view(torch.uint8)
        skip = start - first * size * 2
        table = numbers(self.table, 0, 16, scratch, (key, "table"))
        flat = out.view(-1)
        flat.copy_(lookup(table, stored, high_first=True)[skip : skip + stop - start])
        low = start // self.block
        magnitude = self._magnitudes(low, -(-stop // self.block), scratch, key)
        cut = start - low * self.block
        flat *= magnitude.repeat_interleave(self.block)[cut : cut + stop - start]

    def _magnitudes(self, low: int, high: int, scratch: Scratch, key: object) -> torch.Tensor:
        """Those of blocks [low, high)."""
        import torch

        stored = self.magnitude.read(low, high, scratch, (key, "magnitude"))
        if self.nested is None:
            return stored.to(torch.float32)
        nested = self.nested
        table = numbers(nested.table, 0, 256, scratch, (key, "nested table"))
        first = low // nested.block
        scale = numbers(
            nested.magnitude, first, -(-high // nested.block), scratch, (key, "nested magnitude")
        )
        cut = low - first * nested.block
        spread = scale.repeat_interleave(nested.block)[cut : cut + high - low]
        return table[stored.to(torch.int64)] * spread + nested.offset


@dataclass(frozen=True, slots=True)
class Nested:
    """How magnitudes are themselves quantized: table[code] · magnitude + offset."""

    table: View
    magnitude: View
    block: int
    offset: float


def states(tensors: Any) -> list[str]:
    """The names of the tensors whose content says how weights are stored."""
    return [name for name in tensors if STATE in name]


def take_bitsandbytes(pool: Pool) -> None:
    """Every weight with a ``quant_state`` beside it."""
    for name in states(pool.left):
        stem, _, kind = name.partition(STATE)
        state = pool.take(name)
        if state is not None:
            _take(pool, stem, name, kind, state)


def _take(pool: Pool, weight: str, state_name: str, kind: str, state: View) -> None:
    codes = pool.take(weight)
    parts = {
        part: pool.take(f"{weight}.{part}")
        for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    }
    said = _state(pool, state_name, state)
    if said is None:
        return
    shape, block, nested_block, offset = said
    count = numel(shape)
    if codes is None or nbytes(codes.dtype, codes.shape) != -(-count // 2):
        pool.wrong(weight, codes, f"does not hold the {count:,} codes of 4 bits that "
                   f"{state_name} states")  # fmt: skip
        return
    blocks = -(-count // block)
    absmax, table = parts["absmax"], parts["quant_map"]
    if not pool.fits(f"{weight}.absmax", absmax, (blocks,)) or absmax is None:
        return
    if not pool.fits(f"{weight}.quant_map", table, (16,)) or table is None:
        return
    nested = None
    if parts["nested_absmax"] is not None or absmax.dtype == "U8":
        outer, outer_table = parts["nested_absmax"], parts["nested_quant_map"]
        wanted = (-(-blocks // nested_block),)
        if not pool.fits(f"{weight}.nested_absmax", outer, wanted) or outer is None:
            return
        if not pool.fits(f"{weight}.nested_quant_map", outer_table, (256,)) or outer_table is None:
            return
        nested = Nested(outer_table, outer, nested_block, offset)
    view = Tabled(codes, table, absmax, shape, block, pool.saved_dtype, nested)
    pool.put(weight, view, f"bitsandbytes 4-bit ({kind})")


def _state(pool: Pool, name: str, view: View) -> tuple[tuple[int, ...], int, int, float] | None:
    """(shape, block, nested block, nested offset) as the stored JSON says, checked."""
    if nbytes(view.dtype, view.shape) > _LONGEST_STATE:
        pool.wrong(name, view, f"is longer than {_LONGEST_STATE:,} bytes")
        return None
    try:
        found = parse_json(content(view))
    except ValueError as error:
        pool.wrong(name, view, f"holds no JSON: {error}")
        return None
    said: dict[str, Any] = found if isinstance(found, dict) else {}
    shape: Any = said.get("shape")
    block: Any = said.get("blocksize")
    nested, offset = said.get("nested_blocksize", 256), said.get("nested_offset", 0.0)
    sizes = shape if isinstance(shape, list) else [0]
    if (
        not all(type(n) is int and n > 0 for n in [*sizes, block, nested])
        or not 0 < len(sizes) <= 8
        or math.prod(sizes) > _LARGEST
        or type(offset) not in (int, float)
        or not math.isfinite(offset)
    ):
        text = json.dumps(said)[:200]
        pool.wrong(name, view, f"has no possible shape, blocksize and nested values: {text}")
        return None
    return tuple(sizes), block, nested, float(offset)
