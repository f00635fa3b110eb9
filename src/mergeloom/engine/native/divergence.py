"""How much the softmaxes of rows differ, computed by divergence.c."""

from __future__ import annotations

import ctypes

import numpy as np

from mergeloom.engine.native.library import function
from mergeloom.engine.native.programs import Buffer, Numbers, address, arrays


def row_divergence(
    x: Buffer, y: Buffer, rows: int, row: int, floor: float, at_most: int = 99
) -> Numbers:
    """Of each row of ``row`` elements Σ p log(p / q) ≥ 0, float32 of shape (rows,).

    p and q are the softmaxes of the rows of x and y, each plus ``floor``.
    """
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    kinds = (None, pointer, pointer, size, size, ctypes.c_double, pointer, pointer)
    run = function("divergence", kinds, at_most)
    if run is None:
        raise RuntimeError("divergence.c was not compiled")
    one, other = arrays([x]), arrays([y])
    memory, found = np.empty(3 * row), np.empty(rows, dtype=np.float32)
    run(address(one), address(other), rows, row, floor, address(memory), address(found))
    return found
