"""A job's blocks as they are stored: read for programs to load, and written by them."""

from __future__ import annotations

from collections.abc import Collection

from mergeloom.checkpoint.views import read_bytes
from mergeloom.engine.kernel import Output
from mergeloom.engine.native.library import KINDS, tiles
from mergeloom.engine.native.programs import NONE, Buffer, Numbers, Program, address, compiled
from mergeloom.engine.native.values import loaded
from mergeloom.engine.scratch import Scratch
from mergeloom.planning import Job
from mergeloom.types import DTYPES

STORED = frozenset(kind for kind in KINDS if kind != "BOOL")
ROUNDING = compiled(stored=[loaded(0)])
"""Only rounds to another format."""


def can_run(job: Job) -> bool:
    """Whether tiles can compute a job: they were compiled, and know its formats."""
    kinds = {job.dtype, *(entry.view.dtype for entry in job.inputs)}
    return kinds <= STORED and tiles() is not None


def read(
    job: Job, numbers: Collection[int], start: int, stop: int, scratch: Scratch
) -> list[Buffer]:
    """Elements [start, stop) of every input in ``numbers``, and nothing in place of the others."""
    found: list[Buffer] = []
    for number, entry in enumerate(job.inputs):
        at = 0
        if number in numbers:
            at = address(read_bytes(entry.view, start, stop, scratch, ("input", number)))
        found.append((at, entry.view.dtype))
    return found


def rounded(
    job: Job,
    program: Program,
    start: int,
    stop: int,
    buffers: list[Buffer],
    scratch: Scratch,
    cuts: Numbers = NONE,
) -> Output:
    """What a program stores of elements [start, stop), in the job's dtype.

    Where the job says that its first input's elements are the result, they are.
    """
    size = DTYPES[job.dtype].bytes
    data = scratch.bytes("out", (stop - start) * size)
    at = address(data)
    _, bad = program.run(stop - start, buffers, scratch, outputs=[(at, job.dtype)], cuts=cuts)
    for first, end in job.exact:
        a, b = max(start, first), min(stop, end)
        if a < b:
            own = read(job, (0,), a, b, scratch)
            place = (at + (a - start) * size, job.dtype)
            bad += ROUNDING.run(b - a, own, scratch, outputs=[place])[1]
    return Output(data, bad)
