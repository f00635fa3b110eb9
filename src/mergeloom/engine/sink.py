"""Where finished blocks go: preallocated output files, or tensors in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from mergeloom.checkpoint.views import as_bytes
from mergeloom.engine.kernel import Place, unwritable
from mergeloom.errors import OutputError, Problem
from mergeloom.planning import Plan, shard_header
from mergeloom.types import DTYPES

SECONDS_BETWEEN_FLUSHES = 0.2

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
        resume: keep the shards that are there; they were made by the same plan.
    """

    def __init__(
        self, plan: Plan, folder: Path, fingerprints: Mapping[str, str], *, resume: bool
    ) -> None:
        self._places: dict[int, Place] = {}
        self._files: list[int] = []
        for shard in plan.shards:
            header = shard_header(plan, shard, fingerprints)
            path = folder / shard.file
            size = len(header) + shard.data_bytes
            fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            self._files.append(fd)
            if not (resume and os.fstat(fd).st_size == size):
                _reserve(fd, size, path)
                _write_at(fd, memoryview(header), 0)
            for job, offset in zip(shard.jobs, shard.offsets, strict=True):
                self._places[job] = Place(fd, len(header) + offset, plan.jobs[job].dtype)
        self._closing = threading.Event()
        self._failure: OSError | None = None
        self._flushing = threading.Thread(target=self._flush, name="mergeloom-flush", daemon=True)
        self._flushing.start()

    def write(self, job: int, start: int, data: memoryview) -> None:
        """Write one block at its place."""
        fd, offset, dtype = self._places[job]
        offset += start * DTYPES[dtype].bytes
        while len(data):
            try:
                done = _write_at(fd, data, offset)
            except OSError as error:
                raise unwritable(error.errno or 0) from error
            data, offset = data[done:], offset + done

    def place(self, job: int) -> Place | None:
        """The file and offset, where files have positioned writes."""
        return self._places[job] if hasattr(os, "pwrite") else None

    def finish(self) -> None:
        """Stop flushing. Raises OutputError for what failed there: it is told but once."""
        self._closing.set()
        self._flushing.join()
        if self._failure:
            raise unwritable(self._failure.errno or 0) from self._failure

    def close(self) -> None:
        """Close the files; the blocks are the operating system's to keep from here on."""
        self._closing.set()
        self._flushing.join()
        for fd in self._files:
            os.close(fd)
        self._files = []

    def _flush(self) -> None:
        before = _blocks_read()
        try:
            while not self._closing.wait(SECONDS_BETWEEN_FLUSHES):
                if before != (before := _blocks_read()):
                    continue
                for fd in self._files:
                    os.fsync(fd)
        except OSError as error:
            self._failure = error


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
