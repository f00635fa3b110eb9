"""A job's blocks as they are stored: read for programs to load, and written by them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from mergeloom.checkpoint.open_files import open_file
from mergeloom.checkpoint.views import read_bytes, stored_at
from mergeloom.engine.finite import nonfinite
from mergeloom.engine.kernel import Output
from mergeloom.engine.native.library import KINDS, run_program
from mergeloom.engine.native.programs import (
    NONE,
    Buffer,
    Numbers,
    Piece,
    Program,
    Source,
    Stored,
    compiled,
)
from mergeloom.engine.native.values import loaded
from mergeloom.engine.scratch import Scratch
from mergeloom.planning import Job
from mergeloom.types import DTYPES, View

STORED = frozenset(kind for kind in KINDS if kind != "BOOL")
READS = hasattr(os, "pread")
"""Whether programs can read, as they can wherever files have positioned reads."""

ROUNDING = compiled(stored=[loaded(0)])
"""Only rounds to another format."""


def knows(job: Job) -> bool:
    """Whether tiles know all formats of a job."""
    return {job.dtype, *(entry.view.dtype for entry in job.inputs)} <= STORED


def can_run(job: Job) -> bool:
    """Whether tiles can compute a job: they were compiled, and know its formats."""
    return knows(job) and run_program() is not None


def read(job: Job, start: int, stop: int, scratch: Scratch) -> list[Buffer]:
    """Elements [start, stop) of all inputs, there until the next call with ``scratch``."""
    return [
        (read_bytes(entry.view, start, stop, scratch, ("input", number)), entry.view.dtype)
        for number, entry in enumerate(job.inputs)
    ]


def sources(
    job: Job, numbers: Collection[int], pieces: Sequence[Piece], scratch: Scratch
) -> list[Source]:
    """Pieces of a job's inputs for a program that wants those of ``numbers``.

    It reads by itself what lies side by side in a file; the rest is read here. There is nothing
    in place of other inputs.
    """
    return [
        _source(entry.view, pieces, scratch, ("input", number))
        if number in numbers
        else (None, entry.view.dtype)
        for number, entry in enumerate(job.inputs)
    ]


def _source(view: View, pieces: Sequence[Piece], scratch: Scratch, key: object) -> Source:
    place = stored_at(view, 0) if READS else None
    if place:
        return Stored(open_file(place[0]), place[1], view.dtype)
    if len(pieces) == 1:
        return read_bytes(view, *pieces[0], scratch, key), view.dtype
    apart = [bytes(read_bytes(view, a, b, scratch, key)) for a, b in pieces]
    return bytearray().join(apart), view.dtype


def rounded(
    job: Job,
    program: Program,
    start: int,
    stop: int,
    inputs: Sequence[Source],
    scratch: Scratch,
    cuts: Numbers = NONE,
) -> Output:
    """What a program stores of elements [start, stop), in the job's dtype.

    Where the job says that its first input's elements are the result, they are.
    """
    size = DTYPES[job.dtype].bytes
    data = scratch.bytes("out", (stop - start) * size)
    outputs = [(data, job.dtype)]
    _, bad = program.run([(start, stop)], inputs, scratch, outputs=outputs, cuts=cuts)
    for first, end in job.exact:
        a, b = max(start, first), min(stop, end)
        if a < b:
            own, place = sources(job, (0,), [(a, b)], scratch), data[(a - start) * size :]
            ROUNDING.run([(a, b)], own, scratch, outputs=[(place, job.dtype)])
            bad = nonfinite(data, job.dtype, scratch)
    return Output(data, bad)
