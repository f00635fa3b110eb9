"""Counting NaN and infinity quickly, on the bits of the rounded output."""

from __future__ import annotations

import torch

# An IEEE float is NaN or infinite exactly when all exponent bits are set.
_EXPONENT = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}


def nonfinite(values: torch.Tensor) -> int:
    """How many elements are NaN or infinite; 0 for formats that have neither."""
    if values.dtype not in _EXPONENT or values.numel() == 0:
        return 0
    bits, mask = _EXPONENT[values.dtype]
    exponents = values.view(bits).bitwise_and(mask)
    if int(exponents.amax()) != mask:  # the usual case, one fast reduction
        return 0
    return int((exponents == mask).sum())
