"""Counting NaN and infinity quickly, on the bits of the rounded output."""

from __future__ import annotations

import torch

from mergeloom.engine.scratch import Scratch

# An IEEE float is NaN or infinite exactly when all exponent bits are set.
_EXPONENT = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}


def surely_finite(block: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether rounding ``block`` to ``dtype`` cannot give NaN or infinity; False when unsure.

    One dot product tells: NaN and infinity come through it, and if the sum of squares is at most
    the square of the largest number of ``dtype``, no element is larger than that.
    """
    if block.dtype not in _EXPONENT or dtype not in _EXPONENT or block.device.type != "cpu":
        return False
    limit: float = min(torch.finfo(dtype).max, torch.finfo(block.dtype).max ** 0.5)
    squares = float(torch.dot(block, block))
    return squares <= limit * limit


def nonfinite(values: torch.Tensor, scratch: Scratch) -> int:
    """How many elements are NaN or infinite; 0 for formats that have neither."""
    if values.dtype not in _EXPONENT or values.numel() == 0:
        return 0
    bits, mask = _EXPONENT[values.dtype]
    exponents = scratch.tensor("exponents", values.numel(), bits)
    torch.bitwise_and(values.view(bits), mask, out=exponents)
    if int(exponents.amax()) != mask:  # the usual case, one fast reduction
        return 0
    return int((exponents == mask).sum())
