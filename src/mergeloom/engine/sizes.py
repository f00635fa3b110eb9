"""Block sizes and the memory a run will need. Imports no torch, so a plan can say it too."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from mergeloom.methods import Elementwise
from mergeloom.planning.plan import Job, Plan
from mergeloom.types import numel

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
"""What the smallest tensor may keep so."""

KEPT = 64 << 20
"""Most bytes of a tensor's inputs that stay in memory from one pass to the next."""

PIECE = 1024
"""Elements of a sample that lie side by side."""

SAMPLED = 1 << 20
"""About the most elements of a sample."""

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, without their whole part, are spread evenly however many there are."""

BASELINE = 380 << 20
"""Bytes of a process that has imported torch and this package, before any buffer."""

DEFAULT_MEMORY = 1 << 30


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

    What a sample costs and what it spares, as brackets are narrower, are in balance then.
    """
    return max(16 * PIECE, min(SAMPLED, math.pow(size, 2 / 3)))


def sample_of(start: int, stop: int, size: int, row: int) -> list[tuple[int, int]]:
    """The pieces of elements [start, stop) that are looked at to know a tensor of ``size``.

    In order and all of the same size: whole rows of ``row`` elements at places that fall into no
    step with the columns, fewer of a range the larger the tensor is. A range of few elements is
    one piece.
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


def worker_bytes(job: Job) -> int:
    """Most buffer bytes one worker needs for a job: in torch raw and widened inputs, sums and
    output, which is more than tiles need, and what a tensor's passes leave to the next."""
    remembered = remembered_bytes(numel(job.shape), len(job.inputs))
    return max(BLOCK, block_row(job)) * (len(job.inputs) * (8 + 8 + 8) + 8 * 8) + remembered


def peak_bytes(plan: Plan, threads: int) -> int:
    """Bytes of memory a run with ``threads`` workers takes at most."""
    largest = max((worker_bytes(job) for job in plan.jobs), default=0)
    return BASELINE + threads * largest


def affordable_threads(plan: Plan, threads: int, memory: int) -> int:
    """How many of ``threads`` workers fit into ``memory`` bytes; 0 if not even one does."""
    while threads and peak_bytes(plan, threads) > memory:
        threads -= 1
    return threads


def kept_bytes(plan: Plan, threads: int, memory: int) -> int:
    """Bytes of inputs that each tensor may keep in ``memory``; as many are computed as there are
    ``threads``, and one more between two passes."""
    return max(0, min(KEPT, (memory - peak_bytes(plan, threads)) // (threads + 1)))
