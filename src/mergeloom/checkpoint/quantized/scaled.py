"""Codes that are numbers, times a scale for each block, channel or tensor: FP8, INT8, FP4."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeloom.checkpoint.quantized.blocks import (
    FP4,
    Dequantized,
    Piece,
    lookup,
    numbers,
    widen_float8,
)
from mergeloom.checkpoint.quantized.pool import Pool
from mergeloom.types import Scratch, View

if TYPE_CHECKING:
    import torch

FLOAT8 = ("F8_E4M3", "F8_E5M2")
CODES = (*FLOAT8, "I8", "U8")
FP4_BLOCKS = (16, 32)
INT8_FACTOR = 7.874015718698502e-3
"""1/127 in bitsandbytes' own digits."""


@dataclass(frozen=True, slots=True)
class Scaled(Dequantized):
    """(code − zero) · scale · factor, with one scale for each block of elements.

    Args:
        codes: F8 or I8 of this shape, or FP4 codes, two in a byte along the last axis.
        scale: one number for each block; U8 holds exponents.
        shape: of the weights.
        block: lengths of a block along each axis; the last one may be cut short.
        saved_dtype: the model's own.
        zero: a code for each block that means 0.
        overall: a single factor for all scales.
        divides: whether the scales are divided by ``overall`` instead.
        factor: of the format.
    """

    codes: View
    scale: View
    shape: tuple[int, ...]
    block: tuple[int, ...]
    saved_dtype: str
    zero: View | None = None
    overall: View | None = None
    divides: bool = False
    factor: float = 1.0

    @property
    def parts(self) -> tuple[View, ...]:
        """Codes, scales, zeros, factor."""
        every = (self.codes, self.scale, self.zero, self.overall)
        return tuple(part for part in every if part is not None)

    def fill(self, out: torch.Tensor, piece: Piece, scratch: Scratch, key: object) -> None:
        """Codes minus zeros times scales."""
        import torch

        grid = [-(-n // b) for n, b in zip(self.shape, self.block, strict=True)]
        width = grid[-1] if grid else 1
        rows = self._block_rows(piece, grid)
        low, high = int(rows.min()), int(rows.max())
        columns = None
        if width > 1:
            columns = torch.arange(piece.left, piece.right) // self.block[-1]

        def spread(view: View, part: str) -> torch.Tensor:
            """A companion's numbers, one for each element or for each row of the piece."""
            found = numbers(view, low * width, (high + 1) * width, scratch, (key, part))
            table = found.view(high - low + 1, width)
            if part == "scale":
                table = self._whole_scale(table, scratch, key)
            if columns is not None:
                table = table.index_select(1, columns)
            return table if low == high else table.index_select(0, rows - low)

        self._decode(out, piece, scratch, key)
        if self.zero is not None:
            out -= spread(self.zero, "zero")
        out *= spread(self.scale, "scale")
        if self.factor != 1.0:
            out *= self.factor

    def _block_rows(self, piece: Piece, grid: list[int]) -> torch.Tensor:
        """For each row of the piece the row of scales it belongs to."""
        import torch

        rest = torch.arange(piece.top, piece.bottom)
        found, stride = torch.zeros_like(rest), 1
        for axis in reversed(range(len(self.shape) - 1)):
            found += (rest % self.shape[axis]) // self.block[axis] * stride
            rest //= self.shape[axis]
            stride *= grid[axis]
        return found

    def _whole_scale(self, scale: torch.Tensor, scratch: Scratch, key: object) -> torch.Tensor:
        if self.overall is not None:
            factor = numbers(self.overall, 0, 1, scratch, (key, "overall"))
            return scale / factor if self.divides else scale * factor
        return scale

    def _decode(self, out: torch.Tensor, piece: Piece, scratch: Scratch, key: object) -> None:
        """The codes as numbers."""
        import torch

        start = piece.top * self.columns + piece.left
        stop = start + out.numel()
        if self.codes.shape == self.shape:
            stored = self.codes.read(start, stop, scratch, (key, "codes"))
            if self.codes.dtype in FLOAT8:
                widen_float8(stored, out)
            else:
                out.copy_(stored.view(out.shape))
            return
        packed = self.codes.read(start // 2, -(-stop // 2), scratch, (key, "codes"))
        values = lookup(torch.tensor(FP4), packed.view(torch.uint8))
        out.view(-1).copy_(values[start % 2 :][: stop - start])


@dataclass(frozen=True, slots=True)
class Widened(Dequantized):
    """8-bit floats that are the weights themselves, without a scale."""

    codes: View
    saved_dtype: str

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """As stored."""
        return self.codes.shape

    @property
    def parts(self) -> tuple[View, ...]:
        """The one stored tensor."""
        return (self.codes,)

    def fill(self, out: torch.Tensor, piece: Piece, scratch: Scratch, key: object) -> None:
        """The same numbers in more bits."""
        start = piece.top * self.columns + piece.left
        widen_float8(self.codes.read(start, start + out.numel(), scratch, (key, "codes")), out)


# --- which tensors they are ---


def take_scaled(pool: Pool) -> None:
    """Every weight beside which a scale is stored under one of the usual names."""
    for stem in pool.ending("_packed"):
        if pool.left[f"{stem}_packed"].dtype == "U8":
            _take(pool, stem, f"{stem}_packed", f"{stem}_scale", f"{stem}_global_scale")
    for suffix in ("_scale_inv", "_scale"):
        for name in pool.ending(suffix):
            codes = pool.left.get(name)
            if codes is not None and codes.dtype in CODES:
                _take(pool, name, name, f"{name}{suffix}", f"{name}_scale_2")
    pool.take("scaled_fp8")  # ComfyUI's mark of a file with these
    for stem in pool.ending(".scale_weight"):
        codes = pool.left.get(f"{stem}.weight")
        if codes is not None and codes.dtype in FLOAT8:
            _take(pool, f"{stem}.weight", f"{stem}.weight", f"{stem}.scale_weight", "")
    for stem in pool.ending(".SCB"):
        _take_int8(pool, stem)


def _take(pool: Pool, name: str, stored: str, scale_name: str, overall_name: str) -> None:
    codes, scale = pool.take(stored), pool.take(scale_name)
    overall = pool.take(overall_name)
    zero = pool.take(f"{name}_zero_point")
    pool.take(f"{name}_shape")
    if codes is None or not codes.shape or scale is None:
        pool.wrong(scale_name, scale, "is missing beside its weights")
        return
    is_fp4 = codes.dtype == "U8" or (codes.dtype == "I8" and scale_name.endswith("_inv"))
    shape = (*codes.shape[:-1], codes.shape[-1] * 2) if is_fp4 else codes.shape
    block = block_shape(shape, scale.shape, _block_sizes(pool, scale_name))
    if block is None:
        pool.wrong(scale_name, scale, f"of shape {list(scale.shape)} does not fit weights of "
                   f"shape {list(shape)}")  # fmt: skip
        return
    if is_fp4 and (math.prod(block[:-1]) != 1 or block[-1] not in FP4_BLOCKS):
        pool.wrong(stored, codes, f"of dtype {codes.dtype} has scales for blocks of {list(block)}, "
                   "which is no kind of 4-bit float that is known here")  # fmt: skip
        return
    if zero is not None and zero.shape != scale.shape:
        pool.wrong(f"{name}_zero_point", zero, f"has shape {list(zero.shape)}, its scale "
                   f"{list(scale.shape)}")  # fmt: skip
        return
    if overall is not None and math.prod(overall.shape) != 1:
        pool.wrong(overall_name, overall, f"has shape {list(overall.shape)}, one number is needed")
        return
    divides = overall_name.endswith("_global_scale")
    view = Scaled(codes, scale, shape, block, pool.saved_dtype, zero, overall, divides)
    pool.put(name, view, _kind(codes.dtype, shape, block, is_fp4=is_fp4))


def _kind(dtype: str, shape: tuple[int, ...], block: tuple[int, ...], *, is_fp4: bool) -> str:
    number = "FP4" if is_fp4 else "INT8" if dtype == "I8" else "FP8"
    if block == shape:
        return f"{number} with a scale for each tensor"
    if block == (*(1 for _ in shape[1:]), shape[-1]):
        return f"{number} with a scale for each channel"
    return f"block {number}"


def _take_int8(pool: Pool, stem: str) -> None:
    """LLM.int8() of bitsandbytes: a scale for each row, kept as the row's largest magnitude."""
    name = f"{stem}.weight"
    if name not in pool.left:
        return
    codes, scale = pool.take(name), pool.take(f"{stem}.SCB")
    pool.take(f"{stem}.weight_format")
    if codes is None or codes.dtype != "I8" or len(codes.shape) != 2:
        pool.wrong(name, codes, "is not a matrix of I8, as bitsandbytes' 8-bit codes are")
    elif scale is not None and pool.fits(f"{stem}.SCB", scale, codes.shape[:1]):
        view = Scaled(codes, scale, codes.shape, (1, codes.shape[1]), pool.saved_dtype,
                      factor=INT8_FACTOR)  # fmt: skip
        pool.put(name, view, "bitsandbytes 8-bit")


def take_bare_float8(pool: Pool) -> None:
    """8-bit floats without a scale: weights as they are, unless the config promises scales."""
    bare = [name for name, view in pool.left.items() if view.dtype in FLOAT8]
    for name in bare:
        codes = pool.take(name)
        if codes is None:
            continue
        if pool.settings:
            pool.wrong(name, codes, "is FP8 and no scale for it is stored")
        else:
            pool.put(name, Widened(codes, pool.saved_dtype), "FP8")


def block_shape(
    shape: tuple[int, ...], grid: tuple[int, ...], sizes: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Lengths of a block along each axis, None if the scales do not cover the weights.

    Args:
        shape: of the weights.
        grid: shape of the scales.
        sizes: lengths for the last axes that the config states, may be empty.
    """
    if math.prod(grid) == 1:
        return shape
    if len(grid) == 1 and len(shape) > 1 and grid[0] == shape[0]:
        return (1, *shape[1:])
    if len(grid) != len(shape) or 0 in grid:
        return None
    stated = (0,) * (len(shape) - len(sizes)) + sizes[-len(shape) :]
    found = []
    for length, count, size in zip(shape, grid, stated, strict=True):
        if count == 1:
            found.append(length)
        elif size and -(-length // size) == count:
            found.append(size)
        elif length % count == 0:
            found.append(length // count)
        else:
            return None
    return tuple(found)


def _block_sizes(pool: Pool, scale_name: str) -> tuple[int, ...]:
    """The block's lengths that the config states; 128 × 128 is what everybody uses."""
    stated = [pool.settings.get("weight_block_size")]
    groups = pool.settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            stated.append(weights.get("block_structure"))
    for sizes in stated:
        if isinstance(sizes, list) and all(type(n) is int and n > 0 for n in sizes) and sizes:
            return tuple(sizes)
    return (128, 128) if scale_name.endswith("_scale_inv") else ()
