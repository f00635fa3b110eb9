"""Where finished blocks go: preallocated output files, or tensors in memory."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from mergeloom.checkpoint.views import as_bytes
from mergeloom.engine.journal import Journal
from mergeloom.engine.kernel import Place, unwritable
from mergeloom.engine.waiting import wait_through
from mergeloom.errors import OutputError, Problem
from mergeloom.planning import Plan, Shard, shard_header
from mergeloom.types import DTYPES

SECONDS_BETWEEN_FLUSHES = 0.2
SECONDS_WITHOUT_FLUSH = 30.0
"""Even a disk that always has something to read flushes as often: what is not on it is lost when
the machine goes down. A system waits as long by itself, so it writes no more by that."""

try:
    import resource
except ImportError:  # Windows

    def _blocks_read() -> int:
        return 0

else:

    def _blocks_read() -> int:
        """How often this process has read from a disk; the system's cache does not count."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_inblock


class Sink(Protocol):
    """Takes blocks in any order from any thread."""

    def write(self, job: int, start: int, data: memoryview) -> None:
        """The bytes of a job's output from element ``start`` on."""
        ...

    def place(self, job: int) -> Place | None:
        """Where a program can write a job's output by itself, if it can."""
        ...


class ShardFiles:
    """Output shards whose headers are written and whose space is reserved before the first block.

    A thread of its own flushes what is written while the disk has nothing to read: less is left to
    wait for in the end.

    Args:
        plan: decides names, headers and offsets.
        folder: where the shards go.
        fingerprints: of the inputs, for the metadata.
        journal: of the tensors that are finished. Where there are any, the shards that are there
            are kept: they were made by the same plan.
    """

    def __init__(
        self, plan: Plan, folder: Path, fingerprints: Mapping[str, str], journal: Journal
    ) -> None:
        self._journal = journal
        self._places: dict[int, Place] = {}
        self._files: list[int] = []
        self._closing, self._ended = threading.Event(), threading.Event()
        self._failure: OutputError | None = None
        flushing = threading.Thread(target=self._flush, name="mergeloom-flush", daemon=True)
        try:
            for shard in plan.shards:
                self._open(folder / shard.file, shard, plan, fingerprints)
            flushing.start()
        except BaseException:
            self._close()
            raise

    def write(self, job: int, start: int, data: memoryview) -> None:
        """Write one block at its place."""
        fd, offset, dtype = self._places[job]
        _write_all(fd, data, offset + start * DTYPES[dtype].bytes)

    def place(self, job: int) -> Place | None:
        """The file and offset, where files have positioned writes."""
        return self._places[job] if hasattr(os, "pwrite") else None

    def finish(self) -> None:
        """Bring everything to the disk. Raises OutputError for what could not be brought there."""
        self._stop_flushing()
        if self._failure:
            raise self._failure
        self._journal.flush(self._files)

    def close(self) -> None:
        """Close the files; the blocks are the operating system's to keep from here on."""
        try:
            self._stop_flushing()
        finally:
            self._close()

    def _open(self, path: Path, shard: Shard, plan: Plan, fingerprints: Mapping[str, str]) -> None:
        header = shard_header(plan, shard, fingerprints)
        size = len(header) + shard.data_bytes
        fd = _opened(path)
        self._files.append(fd)
        if not (self._journal.finished and os.fstat(fd).st_size == size):
            _reserve(fd, size, path)
            _write_all(fd, memoryview(header), 0)
        for job, offset in zip(shard.jobs, shard.offsets, strict=True):
            self._places[job] = Place(fd, len(header) + offset, plan.jobs[job].dtype)

    def _flush(self) -> None:
        before, last = _blocks_read(), time.monotonic()
        try:
            while not self._closing.wait(SECONDS_BETWEEN_FLUSHES):
                reads = before != (before := _blocks_read())
                if not reads or time.monotonic() - last > SECONDS_WITHOUT_FLUSH:
                    self._journal.flush(self._files)
                    last = time.monotonic()
        except OutputError as error:
            self._failure = error
        finally:
            self._ended.set()

    def _stop_flushing(self) -> None:
        self._closing.set()
        wait_through(self._ended)  # it uses descriptors that are closed next

    def _close(self) -> None:
        for fd in self._files:
            os.close(fd)
        self._files = []


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    except OSError as error:
        many = "Use a larger --out-shard-size, or allow more open files (ulimit -n)."
        hint = many if error.errno == errno.EMFILE else ""
        raise OutputError(Problem(str(path), f"cannot be made: {error.strerror}", hint)) from error


def _reserve(fd: int, size: int, path: Path) -> None:
    """Give the file its final size, and its space where the file system can promise it."""
    try:
        os.ftruncate(fd, size)
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(fd, 0, size)
    except OSError as error:
        raise OutputError(
            Problem(str(path), f"cannot reserve {size} bytes: {error.strerror}", "Free some space.")
        ) from error


if hasattr(os, "pwrite"):

    def _write_at(fd: int, data: memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

else:  # Windows has no positioned write: seek and write under one lock
    _seek = threading.Lock()

    def _write_at(fd: int, data: memoryview, offset: int) -> int:
        with _seek:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, data)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while len(data):
        try:
            done = _write_at(fd, data, offset)
        except OSError as error:
            raise unwritable(error.errno or 0) from error
        data, offset = data[done:], offset + done


class Tensors:
    """Output tensors in memory, by name."""

    def __init__(self, plan: Plan) -> None:
        import torch

        self._sizes = [DTYPES[job.dtype].bytes for job in plan.jobs]
        self.by_name = {
            job.name: torch.empty(job.shape, dtype=getattr(torch, DTYPES[job.dtype].torch_name))
            for job in plan.jobs
        }
        self._bytes = [
            np.frombuffer(as_bytes(self.by_name[job.name].view(-1)), np.uint8) for job in plan.jobs
        ]

    def write(self, job: int, start: int, data: memoryview) -> None:
        """Copy one block to its place."""
        first = start * self._sizes[job]
        self._bytes[job][first : first + len(data)] = np.frombuffer(data, np.uint8)

    def place(self, job: int) -> None:
        """Nowhere: blocks are copied."""
        del job
