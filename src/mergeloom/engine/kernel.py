"""What the engine runs for one job, whatever the kind of its formula."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from mergeloom.engine.scratch import Scratch
from mergeloom.errors import OutputError, Problem
from mergeloom.methods import Note


class Place(NamedTuple):
    """Where an output tensor goes: an open file that has room for it at ``offset``."""

    fd: int
    offset: int
    dtype: str


def unwritable(code: int) -> OutputError:
    """What to tell the user of a write that failed with this ``errno``."""
    return OutputError(
        Problem(
            "the output",
            f"cannot be written: {os.strerror(code)}",
            "Free some space or mend the disk, and give the same command again: it goes on where "
            "it stopped.",
        )
    )


class Output(NamedTuple):
    """A block of an output tensor.

    Args:
        data: the bytes of the elements, rounded; overwritten by the worker's next block. None
            where they are at their place already.
        nonfinite: how many of them are NaN or infinite.
    """

    data: memoryview | None
    nonfinite: int


class Kernel:
    """A job's measuring passes and its writing pass. Ranges are whole blocks of whole rows.

    ``span`` is the number of the range; ranges are the same in every pass. What is absorbed is
    put in order by span, so the result does not depend on which worker was first. A kernel
    without measuring passes need not override their methods.
    """

    phases: int = 0
    """Measuring passes before the writing one."""

    block_row: int = 1
    """Elements that a block must not cut through."""

    blocks: int = 1
    """How many blocks are best done at once."""

    def measure(
        self, phase: int, span: int, start: int, stop: int, step: int, scratch: Scratch
    ) -> Any:
        """What pass ``phase`` learns from elements [start, stop), in blocks of ``step``."""
        raise NotImplementedError

    def absorb(self, phase: int, span: int, part: Any) -> None:
        """Take what one range gave. Called by one thread at a time."""
        raise NotImplementedError

    def reads_all(self, phase: int) -> bool:
        """Whether a pass reads every element, not a sample."""
        del phase
        return True

    def settle(self, phase: int, note: Note) -> int:
        """End a pass, every range of which was absorbed; the number of the next pass."""
        raise NotImplementedError

    def begin(self, span: int) -> Any:
        """What ``output`` carries from block to block of one range."""
        del span

    def output(
        self, start: int, stop: int, scratch: Scratch, carried: Any, place: Place | None
    ) -> Output:
        """Elements [start, stop) of the output, perhaps written to their place if that is known."""
        raise NotImplementedError
