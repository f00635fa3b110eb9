"""Counting NaN and infinity quickly, on the bits of the output."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.engine.scratch import Scratch

# An IEEE float is NaN or infinite exactly when all exponent bits are set.
_EXPONENT: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
}


def nonfinite(data: memoryview, dtype: str, scratch: Scratch) -> int:
    """How many elements are NaN or infinite; 0 for formats that have neither.

    ``data`` are the elements' bytes, ``dtype`` is the format's safetensors name.
    """
    if dtype not in _EXPONENT or not len(data):
        return 0
    kind, mask = _EXPONENT[dtype]
    bits = np.frombuffer(data, kind)
    exponents = scratch.array("exponents", len(bits), kind)
    np.bitwise_and(bits, kind(mask), out=exponents)
    if exponents.max() != mask:  # the usual case, one fast reduction
        return 0
    return int(np.count_nonzero(exponents == mask))
