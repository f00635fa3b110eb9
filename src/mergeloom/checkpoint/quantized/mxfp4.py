"""MXFP4 as gpt-oss stores its experts: blocks of 32 inputs, transposed against the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeloom.checkpoint.quantized.blocks import FP4, Dequantized, Piece, lookup, numbers
from mergeloom.checkpoint.quantized.pool import Pool
from mergeloom.checkpoint.views import permuted
from mergeloom.types import Scratch, View

if TYPE_CHECKING:
    import torch

BLOCK = 32


@dataclass(frozen=True, slots=True)
class TransposedBlocks(Dequantized):
    """E2M1 codes times powers of two.

    Args:
        codes: U8 (experts, blocks, outputs, 16), a strided view of what is stored.
        scale: U8 exponents (experts, blocks, outputs), likewise.
        shape: (experts, inputs, outputs), inputs = 32·blocks.
        saved_dtype: the model's own.
    """

    codes: View
    scale: View
    shape: tuple[int, ...]
    saved_dtype: str

    @property
    def rows_together(self) -> int:
        """A block."""
        return BLOCK

    @property
    def parts(self) -> tuple[View, ...]:
        """Codes and exponents."""
        return (self.codes, self.scale)

    def fill(self, out: torch.Tensor, piece: Piece, scratch: Scratch, key: object) -> None:
        """Whole blocks of 32 rows, of which the piece is cut."""
        import torch

        width = self.columns
        first, last = piece.top // BLOCK, -(-piece.bottom // BLOCK)
        packed = self.codes.read(
            first * width * BLOCK // 2, last * width * BLOCK // 2, scratch, (key, "codes")
        )
        values = lookup(torch.tensor(FP4), packed).view(last - first, width, BLOCK)
        scale = numbers(self.scale, first * width, last * width, scratch, (key, "scale"))
        values *= scale.view(last - first, width, 1)
        top = piece.top - first * BLOCK
        rows = values.transpose(1, 2).reshape(-1, width)[top : top + piece.bottom - piece.top]
        out.copy_(rows[:, piece.left : piece.right])


def take_mxfp4(pool: Pool) -> None:
    """``…_blocks`` with ``…_scales``."""
    for name in pool.ending("_blocks"):
        if f"{name}_scales" not in pool.left and pool.left[f"{name}_blocks"].dtype != "U8":
            continue
        codes, scale = pool.take(f"{name}_blocks"), pool.take(f"{name}_scales")
        if codes is None or codes.dtype != "U8" or len(codes.shape) != 4 or codes.shape[-1] != 16:
            pool.wrong(f"{name}_blocks", codes, "is not U8 of shape (experts, outputs, blocks, 16)")
            continue
        if not pool.fits(f"{name}_scales", scale, codes.shape[:-1]) or scale is None:
            continue
        if scale.dtype != "U8":
            pool.wrong(f"{name}_scales", scale, f"is {scale.dtype}, not U8 exponents")
            continue
        experts, outputs, blocks, _ = codes.shape
        view = TransposedBlocks(
            permuted(codes, (0, 2, 1, 3)), permuted(scale, (0, 2, 1)),
            (experts, blocks * BLOCK, outputs), pool.saved_dtype,
        )  # fmt: skip
        pool.put(name, view, "MXFP4")
