"""How tensors are cut into blocks and sampled. Imports neither torch nor numpy: a plan asks it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from mergeloom.methods import Elementwise
from mergeloom.planning.plan import Job

BLOCK = 1 << 19
"""Elements that are computed at once: small enough for a core's caches, large enough that Python's
share of a block is small. Part of the result: sums over a tensor are taken block by block, so it
must not depend on threads or memory."""

BLOCKS_PER_SPAN = 4
"""Blocks that one worker takes at a time."""

REMEMBERED = 32 << 20
"""Most bytes that one tensor keeps from one pass to the next: of random choices, or of scores that
may be thresholds."""

REMEMBERED_LEAST = 4 << 20
"""The same limit for the smallest tensors."""

PIECE = 1024
"""Elements of a sample that lie side by side."""

SAMPLED = 1 << 20
"""About the most elements of a sample."""

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, without their whole part, are spread evenly however many there are."""


def default_threads() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def block_row(job: Job) -> int:
    """Elements that a block of a job must not cut through: 1, or a row of its vectors."""
    formula = job.formula()
    if isinstance(formula, Elementwise):
        one_row = job.shape[1:] if len(job.shape) > 1 else job.shape
        return max(1, math.prod(one_row)) if formula.whole_rows else 1
    if formula is None or formula.vectors == "tensor" or len(job.shape) < 2:
        return 1
    return max(1, job.shape[-1] if formula.vectors == "last" else math.prod(job.shape[1:]))


def sampled(size: int) -> float:
    """About how many elements are looked at to know a tensor of ``size``.

    With that many, what a sample costs balances what narrower brackets save.
    """
    return max(16 * PIECE, min(SAMPLED, math.pow(size, 2 / 3)))


def sample_of(start: int, stop: int, size: int, row: int) -> list[tuple[int, int]]:
    """The pieces of elements [start, stop) that are looked at to know a tensor of ``size``.

    In order and all of the same size: whole rows of ``row`` elements, spread so that they are out
    of step with the columns. The larger the tensor, the smaller the share of a range. A range of
    few elements is one piece.
    """
    piece = -(-PIECE // row) * row
    share = sampled(size) / PIECE * (stop - start) / size
    count = max(2, math.ceil(share))
    gap = (stop - start) // count // row * row
    if gap < 2 * piece:
        return [(start, stop)]
    pieces = []
    for i in range(count):
        shift = (0.5 + (start // gap + i) * GOLDEN) % 1 * (gap - piece)
        first = start + i * gap + int(shift) // row * row
        pieces.append((first, first + piece))
    return pieces


def sample_step(pieces: Sequence[tuple[int, int]], start: int, stop: int, size: int) -> int:
    """Every how many-th score of the pieces of [start, stop) is kept.

    Not every one where rows, which are computed whole, are so long that a few hold many times what
    a sample needs.
    """
    taken = sum(b - a for a, b in pieces)
    return max(1, int(taken / (4 * sampled(size) * (stop - start) / size)))


def remembered_bytes(size: int, inputs: int) -> int:
    """Most bytes that a tensor of ``size`` elements keeps from one pass to the next."""
    return min(REMEMBERED, max(REMEMBERED_LEAST, size * inputs))
