"""A job's blocks as they are stored: read for programs to load, and written by them."""

from __future__ import annotations

import os
from collections.abc import Collection

from mergeloom.checkpoint.open_files import open_file
from mergeloom.checkpoint.views import read_bytes, stored_at
from mergeloom.engine.finite import nonfinite
from mergeloom.engine.kernel import Output
from mergeloom.engine.native.library import KINDS, run_block
from mergeloom.engine.native.programs import (
    NONE,
    Buffer,
    Numbers,
    Program,
    Source,
    Stored,
    compiled,
)
from mergeloom.engine.native.values import loaded
from mergeloom.engine.scratch import Scratch, Spare
from mergeloom.planning import Job
from mergeloom.types import DTYPES

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
    return knows(job) and run_block() is not None


class Blocks:
    """The blocks of a job's inputs.

    Those that another pass will ask for stay in memory, if there is enough for all of them:
    copying them once more out of the system's cache costs as much as the arithmetic.
    """

    def __init__(self, job: Job, spare: Spare) -> None:
        self._job = job
        self._spare = spare
        self._keeps = job.nbytes_in <= spare.each
        self._kept: dict[tuple[int, int, int], tuple[Scratch, memoryview]] = {}

    def read(self, start: int, stop: int, scratch: Scratch, *, again: bool = False) -> list[Buffer]:
        """Elements [start, stop) of all inputs, there until the next call with ``scratch``.

        ``again`` says that another pass will ask for the same block.
        """
        keeps = again and self._keeps
        return [
            self._block(number, start, stop, None if keeps else scratch)
            for number in range(len(self._job.inputs))
        ]

    def sources(
        self,
        numbers: Collection[int],
        start: int,
        stop: int,
        scratch: Scratch,
        *,
        again: bool = False,
    ) -> list[Source]:
        """The same for a program that wants the inputs ``numbers``, and nothing for the others.

        It reads by itself what lies side by side in a file.
        """
        keeps = again and self._keeps
        return [
            self._source(number, start, stop, None if keeps else scratch)
            if number in numbers
            else (None, entry.view.dtype)
            for number, entry in enumerate(self._job.inputs)
        ]

    def forget(self, start: int, stop: int) -> None:
        """No pass will ask for this block again."""
        for number in range(len(self._job.inputs)):
            kept = self._kept.pop((number, start, stop), None)
            if kept:
                self._spare.give_back(kept[0])

    def _source(self, number: int, start: int, stop: int, scratch: Scratch | None) -> Source:
        key, view = (number, start, stop), self._job.inputs[number].view
        place = stored_at(view, start) if READS and key not in self._kept else None
        if place is None:
            return self._block(number, start, stop, scratch)
        kept = None
        if scratch is None:
            memory = self._spare.take()
            kept = memory.bytes("kept", (stop - start) * DTYPES[view.dtype].bytes)
            self._kept[key] = memory, kept
        return Stored(open_file(place[0]), place[1], view.dtype, kept)

    def _block(self, number: int, start: int, stop: int, scratch: Scratch | None) -> Buffer:
        """One block: a kept one, one read into ``scratch``, or else one to be kept."""
        key, view = (number, start, stop), self._job.inputs[number].view
        if key in self._kept:
            return self._kept[key][1], view.dtype
        if scratch:
            return read_bytes(view, start, stop, scratch, ("input", number)), view.dtype
        memory = self._spare.take()
        block = read_bytes(view, start, stop, memory, "kept")
        self._kept[key] = memory, block
        return block, view.dtype


def rounded(
    job: Job,
    program: Program,
    start: int,
    stop: int,
    buffers: list[Source],
    scratch: Scratch,
    cuts: Numbers = NONE,
) -> Output:
    """What a program stores of elements [start, stop), in the job's dtype.

    Where the job says that its first input's elements are the result, they are.
    """
    size = DTYPES[job.dtype].bytes
    data = scratch.bytes("out", (stop - start) * size)
    _, bad = program.run(
        stop - start, buffers, scratch, first=start, outputs=[(data, job.dtype)], cuts=cuts
    )
    for first, end in job.exact:
        a, b = max(start, first), min(stop, end)
        if a < b:
            own = Blocks(job, Spare(0)).sources((0,), a, b, scratch)
            ROUNDING.run(b - a, own, scratch, outputs=[(data[(a - start) * size :], job.dtype)])
            bad = nonfinite(data, job.dtype, scratch)
    return Output(data, bad)
