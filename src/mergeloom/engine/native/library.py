"""The compiled virtual machine of tiles.c, and the structs it shares with Python."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

from mergeloom.engine.native import shared_object

TILE = 512
"""Elements of a register."""


class Operation(IntEnum):
    """What an instruction does; see tiles.c."""

    LOAD = 0
    LOAD_MINUS = 1
    NUMBER = 2
    ADD = 3
    SUB = 4
    MUL = 5
    SUB_SQUARED = 6
    DIV = 7
    ADD_NUMBER = 8
    FROM_NUMBER = 9
    MUL_NUMBER = 10
    DIV_NUMBER = 11
    INTO_NUMBER = 12
    ADD_SCALED = 13
    ADD_SIGN = 14
    ABS = 15
    SIGN = 16
    SIDE = 17
    CLAMP = 18
    MUL_AT_LEAST = 19
    KEEP = 20
    CHANCE = 21
    STORE = 22
    SUM = 23
    DOT = 24
    SUM_WIDE = 25
    DOT_WIDE = 26
    COUNT = 27
    SPREAD = 28


INSTRUCTION = np.dtype(
    [("operation", "i4"), ("to", "i4"), ("a", "i4"), ("b", "i4"), ("x", "f4"), ("y", "f4")]
)
CUT = np.dtype([("limit", "f4"), ("equal", "f4"), ("budget", "i8")])
CHANCE = np.dtype([("key", "u8"), ("whole", "u4"), ("rest", "u4")])
COUNT = np.dtype(
    [("low", "u4"), ("high", "u4"), ("common", "u4"), ("of_nonzero", "u4"), ("above", "i8"),
     ("equal", "i8"), ("nonzero", "i8"), ("found", "i8"), ("inside", "u8")]
)  # fmt: skip
RANKING = np.dtype(
    [("key", "u8"), ("row", "i8"), ("first", "f8"), ("step", "f8"), ("buffer", "u8"),
     ("words", "u8"), ("chosen", "u8"), ("left", "u8")]
)  # fmt: skip

Run = Callable[..., int]
Numbers = np.ndarray[Any, Any]


@functools.cache
def function(name: str, kinds: tuple[Any, ...], at_most: int = 99) -> Run | None:
    """A function's variant for this processor; None where the library was not compiled.

    Args:
        name: as in dispatch.c.
        kinds: ctypes of the result and of the arguments.
        at_most: the highest level of processors, those of x86-64, to make use of.
    """
    library = shared_object.loaded()
    if isinstance(library, str):
        return None
    choose = library[f"mergeloom_{name}"]
    choose.restype, choose.argtypes = ctypes.c_void_p, [ctypes.c_int]
    run: Run = ctypes.CFUNCTYPE(*kinds, use_errno=True)(choose(at_most))
    return run


_SIZE, _POINTER = ctypes.c_int64, ctypes.c_void_p


def run_program(at_most: int = 99) -> Run | None:
    """The function of programs.c."""
    sizes, pointers = [_SIZE] * 3, [_POINTER] * 2
    kinds = (_SIZE, _POINTER, _SIZE, _POINTER, *sizes, _POINTER, _SIZE, _SIZE, *pointers)
    return function("run_program", kinds, at_most)


def random_words(key: int, first: int, count: int, at_most: int = 99) -> Numbers | None:
    """See random.c: uint16 of shape (count,), for a key of 64 bits; None without a library."""
    kinds = (None, ctypes.c_uint64, _SIZE, _SIZE, _POINTER)
    run = function("random_words", kinds, at_most)
    if run is None:
        return None
    words = np.empty(count, dtype=np.uint16)
    run(key, first, count, words.ctypes.data)
    return words


def ranking_bytes(row: int) -> int:
    """The buffer of a choice among rows of ``row`` elements; see ranks.c."""
    return 24 * (8 + min(row // 4, 1 << 14)) + 2 * row


def choose_by_rank(
    sizes: Numbers, words: Numbers, first: float, step: float, at_most: int = 99
) -> tuple[Numbers, Numbers] | None:
    """See ranks.c: bools of shape (rows, row), and of shape (rows,) which rows are left to do.

    Sizes are contiguous int32, words contiguous uint16. None for other sizes or no library.
    """
    kinds = (None, *[_POINTER] * 2, *[_SIZE] * 2, *[ctypes.c_double] * 2, *[_POINTER] * 3)
    run = function("choose_by_rank", kinds, at_most)
    if run is None or sizes.dtype != np.int32:
        return None
    rows, row = sizes.shape
    memory = np.empty(ranking_bytes(row), dtype=np.uint8)
    chosen, left = np.empty(sizes.shape, dtype=np.bool_), np.empty(rows, dtype=np.bool_)
    run(
        sizes.ctypes.data, words.ctypes.data, rows, row, first, step,
        memory.ctypes.data, chosen.ctypes.data, left.ctypes.data,
    )  # fmt: skip
    return chosen, left
