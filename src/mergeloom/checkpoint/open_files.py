"""Positioned reads from weight files, through a small set of open descriptors."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from weakref import WeakValueDictionary

from mergeloom.errors import CheckpointError

_LIMIT = 48
_ASKED = 128 << 10
"""Bytes that the system is asked for at a time. Linux quietly reads no more of a request than it
reads ahead by itself (read_ahead_kb, 128 unless set) or than the disk takes at once."""

_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class OpenFile:
    """One open descriptor. It closes when nobody refers to it any more.

    That makes eviction safe without locks around reads: a thread that is still reading from an
    evicted file holds the last reference.
    """

    __slots__ = ("__weakref__", "fd", "identity", "path")

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, _FLAGS)
        self.path = path
        status = os.fstat(self.fd)
        self.identity = (status.st_dev, status.st_ino)

    def __del__(self, close=os.close) -> None:  # type: ignore[no-untyped-def]
        if hasattr(self, "fd"):
            close(self.fd)


_files: OrderedDict[Path, OpenFile] = OrderedDict()
_in_use: WeakValueDictionary[Path, OpenFile] = WeakValueDictionary()
"""All that are open: some may be in use though they are no longer among the last used."""
_lock = threading.Lock()


def open_file(path: Path) -> OpenFile:
    """The open file at ``path`` as it is now: a file replaced since is opened again.

    Raises:
        CheckpointError: it cannot be opened.
    """
    try:
        return _opened(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _opened(path: Path) -> OpenFile:
    status = os.stat(path)
    with _lock:
        opened = _in_use.get(path)
        if opened is None or opened.identity != (status.st_dev, status.st_ino):
            opened = _in_use[path] = OpenFile(path)
        _files[path] = opened
        _files.move_to_end(path)
        while len(_files) > _LIMIT:
            _files.popitem(last=False)
        return opened


def close_files() -> None:
    """Close every weight file kept open, so that deleted ones give their disk space back."""
    with _lock:
        _files.clear()


def read_into(path: Path, offset: int, buffer: memoryview) -> None:
    """Fill ``buffer`` with the bytes of ``path`` from ``offset``.

    Raises:
        CheckpointError: the file is gone, unreadable, or ends before the buffer is full.
    """
    done, file = 0, open_file(path)
    try:
        while done < len(buffer):
            count = _read_at(file.fd, buffer[done:], offset + done)
            if count == 0:
                break
            done += count
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if done < len(buffer):
        raise CheckpointError(
            f"{path} was changed or truncated while merging: wanted {len(buffer):,} bytes at "
            f"{offset:,}, found {done:,}"
        )


def will_need(path: Path, offset: int, nbytes: int) -> None:
    """Ask the system to read ahead, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    end = offset + nbytes
    try:
        file = open_file(path)
        for start in range(offset, end, _ASKED):
            os.posix_fadvise(file.fd, start, min(_ASKED, end - start), os.POSIX_FADV_WILLNEED)
    except (OSError, CheckpointError):
        return  # only a hint: the read that follows reports what is wrong


if hasattr(os, "preadv"):

    def _read_at(fd: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(fd, [buffer], offset)

else:  # pragma: no cover - Windows has no positioned read: seek and read under one lock

    def _read_at(fd: int, buffer: memoryview, offset: int) -> int:
        with _lock:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)
