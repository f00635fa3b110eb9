"""Asks the system for the inputs of a run before its workers come to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import TracebackType

from mergeloom.planning import Job
from mergeloom.types import DTYPES, numel

AHEAD = 128 << 20
"""Bytes of inputs that are asked for before they are read. They live in the system's cache, not in
this process. It is what a disk reads while a tensor of ordinary size is gone through once more."""

AT_ONCE = 4 << 20
"""Bytes of a tensor's inputs that are asked for in one go. Larger requests keep a reader waiting
that needs their first bytes: four times as many cost a fifth of the time of a copy."""


class ReadAhead:
    """Keeps the disk busy while workers compute, write, or read a tensor for the second time.

    A thread of its own asks for the inputs in the order of the jobs, ``AHEAD`` bytes before what
    the workers have taken: to ask takes as long as to find memory for what is asked for, and as
    the queue of the disk is full.

    Args:
        jobs: in the order they are begun.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._left = AHEAD
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="mergeloom-read-ahead", daemon=True)

    def __enter__(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ask for nothing more, and wait until nothing is asked."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def taken(self, nbytes: int) -> None:
        """As many bytes of inputs were taken for the first time: go on by as many."""
        with self._changed:
            self._left += nbytes
            self._changed.notify()

    def _run(self) -> None:
        for job, start, stop in self._ranges():
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._left > 0)
                if self._stopped:
                    return
                self._left -= input_bytes(job, start, stop)
            for entry in job.inputs:
                entry.view.prefetch(start, stop)

    def _ranges(self) -> Iterator[tuple[Job, int, int]]:
        for job in self._jobs:
            size = numel(job.shape)
            step = max(1, AT_ONCE // max(1, input_bytes(job, 0, 1)))
            for start in range(0, size, step):
                yield job, start, min(start + step, size)


def input_bytes(job: Job, start: int, stop: int) -> int:
    """Bytes of a job's inputs for elements [start, stop) of its output."""
    return sum((stop - start) * DTYPES[i.view.dtype].bytes for i in job.inputs)
