"""A tensor of a GGUF file, dequantized a few rows at a time by the gguf library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergeloom.checkpoint.open_files import read_into, will_need
from mergeloom.checkpoint.quantized.blocks import Dequantized, Piece
from mergeloom.types import Scratch, View

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, slots=True)
class GgufTensor(Dequantized):
    """Rows of blocks.

    Args:
        path: the file.
        offset: of the first row in bytes.
        kind: ggml's name of the format (``Q4_K``).
        row_bytes: of one row.
        shape: row-major.
        saved_dtype: what its model is in, without the quantization.
        heads: rotary halves of this many heads are interleaved in the file (llama.cpp's order for
            Llama's queries and keys) and put side by side again; 0 for rows as they are.
        shift: added to every number (Gemma's norms are stored larger by one).
    """

    path: Path
    offset: int
    kind: str
    row_bytes: int
    shape: tuple[int, ...]
    saved_dtype: str
    heads: int = 0
    shift: float = 0.0

    @property
    def parts(self) -> tuple[View, ...]:
        """Only itself."""
        return (self,)

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file it is in."""
        return (self.path,)

    def fill(self, out: torch.Tensor, piece: Piece, scratch: Scratch, key: object) -> None:
        """Read the rows, take them in the model's order, dequantize."""
        import gguf
        import numpy as np
        import torch

        low, high, rows = self._stored_rows(piece.top, piece.bottom)
        memory = scratch.bytes((key, "rows"), (high - low) * self.row_bytes)
        read_into(self.path, self.offset + low * self.row_bytes, memory)
        stored = np.frombuffer(memory, dtype=np.uint8).reshape(high - low, self.row_bytes)
        if rows is not None:
            stored = stored[rows - low]
        with np.errstate(all="ignore"):  # what is not finite is reported with the result
            values = gguf.dequantize(stored, gguf.GGMLQuantizationType[self.kind])
        out.copy_(torch.from_numpy(values[:, piece.left : piece.right]))
        if self.shift:
            out += self.shift

    def _stored_rows(self, top: int, bottom: int) -> tuple[int, int, np.ndarray | None]:
        """Rows in the file for [top, bottom): first, end, and in which order if not their own."""
        if not self.heads:
            return top, bottom, None
        import numpy as np

        half = self.shape[0] // self.heads // 2
        head, inside = np.divmod(np.arange(top, bottom), 2 * half)
        # Row (second half?, d) of a head is stored as row (d, second half?).
        rows = head * 2 * half + inside % half * 2 + inside // half
        return int(rows.min()), int(rows.max()) + 1, rows

    def prefetch(self, start: int, stop: int) -> None:
        """Ask the system to read these rows ahead."""
        low, high = start // self.columns, -(-stop // self.columns)
        if stop > start:
            will_need(self.path, self.offset + low * self.row_bytes, (high - low) * self.row_bytes)
