"""Asks the system for the inputs of a run before its workers come to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import TracebackType

from mergeloom.planning import Job
from mergeloom.types import DTYPES, numel

AHEAD = 128 << 20
"""Bytes of inputs that are asked for before a worker takes them: what a disk reads during the
second pass over a tensor of ordinary size. They are in the page cache, not in this process."""

AT_ONCE = 4 << 20
"""Bytes that are asked for, over all inputs of a tensor, before it is looked again how far the
workers are."""


class ReadAhead:
    """Keeps the disk busy while workers compute, write, or read a tensor a second time.

    Its thread asks for the inputs in the order of the jobs and stays ``AHEAD`` bytes in front of
    what the workers have taken. It is a thread because asking blocks: the system first finds
    memory for the pages, and waits when the disk's queue is full.

    A job whose first pass is a sample counts as taken by that sample, so all of its inputs are
    asked for at once; the next pass needs them.

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
        """Stop asking."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def taken(self, nbytes: int) -> None:
        """A worker begins with ``nbytes`` of inputs that nobody has read before."""
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
