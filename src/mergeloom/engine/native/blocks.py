"""A job's blocks as they are stored: read for programs to load, and written by them."""

from __future__ import annotations

from collections.abc import Collection

from mergeloom.checkpoint.views import read_bytes
from mergeloom.engine.finite import nonfinite
from mergeloom.engine.kernel import Output
from mergeloom.engine.native.library import KINDS, tiles
from mergeloom.engine.native.programs import NONE, Buffer, Numbers, Program, compiled
from mergeloom.engine.native.values import loaded
from mergeloom.engine.scratch import Scratch, Spare
from mergeloom.planning import Job
from mergeloom.types import DTYPES

STORED = frozenset(kind for kind in KINDS if kind != "BOOL")
ROUNDING = compiled(stored=[loaded(0)])
"""Only rounds to another format."""


def knows(job: Job) -> bool:
    """Whether tiles know all formats of a job."""
    return {job.dtype, *(entry.view.dtype for entry in job.inputs)} <= STORED


def can_run(job: Job) -> bool:
    """Whether tiles can compute a job: they were compiled, and know its formats."""
    return knows(job) and tiles() is not None


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

    def read(
        self,
        numbers: Collection[int],
        start: int,
        stop: int,
        scratch: Scratch,
        *,
        again: bool = False,
    ) -> list[Buffer]:
        """Elements [start, stop) of the inputs ``numbers``, and nothing in place of the others.

        They are there until the next call with the same ``scratch``. ``again`` says that another
        pass will ask for the same block.
        """
        keeps = again and self._keeps
        return [
            (
                self._block(number, start, stop, None if keeps else scratch)
                if number in numbers
                else None,
                entry.view.dtype,
            )
            for number, entry in enumerate(self._job.inputs)
        ]

    def forget(self, start: int, stop: int) -> None:
        """No pass will ask for this block again."""
        for number in range(len(self._job.inputs)):
            kept = self._kept.pop((number, start, stop), None)
            if kept:
                self._spare.give_back(kept[0])

    def _block(self, number: int, start: int, stop: int, scratch: Scratch | None) -> memoryview:
        """One block: a kept one, one to be kept, or read into ``scratch``."""
        key = (number, start, stop)
        if key in self._kept:
            return self._kept[key][1]
        view = self._job.inputs[number].view
        if scratch:
            return read_bytes(view, start, stop, scratch, ("input", number))
        memory = self._spare.take()
        block = read_bytes(view, start, stop, memory, "kept")
        self._kept[key] = memory, block
        return block


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
    _, bad = program.run(
        stop - start, buffers, scratch, first=start, outputs=[(data, job.dtype)], cuts=cuts
    )
    for first, end in job.exact:
        a, b = max(start, first), min(stop, end)
        if a < b:
            own = Blocks(job, Spare(0)).read((0,), a, b, scratch)
            ROUNDING.run(b - a, own, scratch, outputs=[(data[(a - start) * size :], job.dtype)])
            bad = nonfinite(data, job.dtype, scratch)
    return Output(data, bad)
