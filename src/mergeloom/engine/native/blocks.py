"""A job's blocks as they are stored: read for programs to load, and written by them."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

from mergeloom.checkpoint.open_files import open_file
from mergeloom.checkpoint.views import read_bytes, stored_at
from mergeloom.engine.finite import nonfinite
from mergeloom.engine.kernel import Output, Place
from mergeloom.engine.native.library import run_program
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
from mergeloom.engine.native.shared_object import READS, STORED
from mergeloom.engine.native.values import loaded
from mergeloom.engine.scratch import Scratch, Spare
from mergeloom.engine.sizes import BLOCKS_PER_SPAN
from mergeloom.planning import Job
from mergeloom.types import DTYPES, View

READING = compiled()
"""Only reads its inputs."""

ROUNDING = compiled(stored=[loaded(0)])
"""Only rounds to another format."""


def knows(job: Job) -> bool:
    """Whether tiles know all formats of a job."""
    return {job.dtype, *(entry.view.dtype for entry in job.inputs)} <= STORED


def can_run(job: Job) -> bool:
    """Whether tiles can compute a job: they were compiled, and know its formats."""
    return knows(job) and run_program() is not None


class Inputs:
    """A job's inputs, for programs to load.

    Where it ``keeps``, blocks that another pass will ask for should stay in memory, as there is
    enough for all of them: taking them out of the system's cache once more costs about half as much
    as the arithmetic.
    """

    def __init__(self, job: Job, spare: Spare) -> None:
        self._views = [entry.view for entry in job.inputs]
        self._spare = spare
        self.keeps = job.nbytes_in <= spare.each
        self._kept: dict[tuple[int, Piece], tuple[Scratch, memoryview]] = {}

    @property
    def blocks(self) -> int:
        """How many blocks are best done at once: more than one where nothing is read here."""
        return BLOCKS_PER_SPAN if all(self._stored) else 1

    def read(self, pieces: Sequence[Piece], scratch: Scratch) -> list[Buffer]:
        """Pieces of all inputs; a single one until it is forgotten, others until the next call."""
        size = sum(stop - start for start, stop in pieces)
        found = self.sources(range(len(self._views)), pieces, scratch, keep=len(pieces) == 1)
        for number, given in enumerate(found):
            if isinstance(given, Stored) and given.kept is None:
                data = scratch.bytes(("input", number), size * DTYPES[given.dtype].bytes)
                found[number] = given._replace(kept=data)
        READING.run(pieces, found, scratch)
        return [(i.kept, i.dtype) if isinstance(i, Stored) else i for i in found]

    def sources(
        self,
        numbers: Collection[int],
        pieces: Sequence[Piece],
        scratch: Scratch,
        *,
        keep: bool = False,
    ) -> list[Source]:
        """Pieces of the inputs ``numbers``, and nothing in place of the others.

        A program reads by itself what lies side by side in a file; the rest is read here. What is
        kept, of a single piece, is there for other programs until it is forgotten.
        """
        return [
            self._source(number, pieces, scratch, keep=keep)
            if number in numbers
            else (None, view.dtype)
            for number, view in enumerate(self._views)
        ]

    def forget(self, piece: Piece) -> None:
        """No pass will ask for this piece again."""
        for number in range(len(self._views)):
            kept = self._kept.pop((number, piece), None)
            if kept:
                self._spare.give_back(kept[0])

    def _source(
        self, number: int, pieces: Sequence[Piece], scratch: Scratch, *, keep: bool
    ) -> Source:
        view, key, stored = self._views[number], (number, pieces[0]), self._stored[number]
        if len(pieces) == 1 and key in self._kept:
            return self._kept[key][1], view.dtype
        size = DTYPES[view.dtype].bytes * sum(stop - start for start, stop in pieces)
        memory = self._spare.take(size) if keep else None
        if memory is None:
            return stored or (_read(view, pieces, scratch, ("input", number)), view.dtype)
        block = memory.bytes("kept", size)
        self._kept[key] = memory, block
        if stored:
            return stored._replace(kept=block)
        block[:] = _read(view, pieces, scratch, ("input", number))
        return block, view.dtype

    @functools.cached_property
    def _stored(self) -> list[Stored | None]:
        """The inputs that programs can read."""
        places = [stored_at(view, 0) if READS else None for view in self._views]
        return [
            Stored(open_file(place[0]), place[1], view.dtype) if place else None
            for view, place in zip(self._views, places, strict=True)
        ]


def _read(view: View, pieces: Sequence[Piece], scratch: Scratch, key: object) -> memoryview:
    """Pieces one behind the other."""
    if len(pieces) == 1:
        return read_bytes(view, *pieces[0], scratch, key)
    apart = [bytes(read_bytes(view, a, b, scratch, key)) for a, b in pieces]
    return memoryview(bytearray().join(apart))


def rounded(
    job: Job,
    program: Program,
    piece: Piece,
    inputs: Inputs,
    sources: Sequence[Source],
    scratch: Scratch,
    place: Place | None,
    cuts: Numbers = NONE,
) -> Output:
    """What a program stores of a piece, in the job's dtype, at its place if that is known.

    Where the job says that its first input's elements are the result, they are.
    """
    if place and not job.exact:
        _, bad = program.run([piece], sources, scratch, outputs=[place], cuts=cuts)
        return Output(None, bad)
    (start, stop), size = piece, DTYPES[job.dtype].bytes
    data = scratch.bytes("out", (stop - start) * size)
    outputs = [(data, job.dtype)]
    _, bad = program.run([piece], sources, scratch, outputs=outputs, cuts=cuts)
    for first, end in job.exact:
        a, b = max(start, first), min(stop, end)
        if a < b:
            own = inputs.sources((0,), [(a, b)], scratch)
            outputs = [(data[(a - start) * size :], job.dtype)]
            ROUNDING.run([(a, b)], own, scratch, outputs=outputs)
            bad = nonfinite(data, job.dtype, scratch)
    return Output(data, bad)
