"""Block sizes and the memory a run will need. Imports no torch, so a plan can say it too."""

from __future__ import annotations

import math
import os

from mergeloom.methods import Elementwise
from mergeloom.planning.plan import Job, Plan

BLOCK = 1 << 18
"""Elements that are computed at once: small enough for a core's caches, large enough that Python's
share of a block is small. Part of the result: sums over a tensor are taken block by block, so it
must not depend on threads or memory."""

BLOCKS_PER_SPAN = 8
"""Blocks that one worker takes at a time."""

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


def worker_bytes(job: Job) -> int:
    """Most buffer bytes one worker needs for a job: raw and widened inputs, sums, output."""
    return max(BLOCK, block_row(job)) * (len(job.inputs) * (8 + 8 + 8) + 8 * 8)


def peak_bytes(plan: Plan, threads: int) -> int:
    """Bytes of memory a run with ``threads`` workers takes at most."""
    largest = max((worker_bytes(job) for job in plan.jobs), default=0)
    return BASELINE + threads * largest


def affordable_threads(plan: Plan, threads: int, memory: int) -> int:
    """How many of ``threads`` workers fit into ``memory`` bytes; 0 if not even one does."""
    while threads and peak_bytes(plan, threads) > memory:
        threads -= 1
    return threads
