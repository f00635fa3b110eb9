"""Output files on their way to the disk."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

import pytest
from models import llama, llama_config, save

import mergeloom
from mergeloom import OutputError
from mergeloom.engine import sink
from mergeloom.engine.journal import Journal
from mergeloom.engine.sink import ShardFiles


def test_what_cannot_be_flushed_while_merging_fails_the_merge(tmp_path, monkeypatch):
    """The system tells it once: the flush before the folder is moved would not see it again."""
    save(tmp_path / "A", llama(2), llama_config(2))
    plan = mergeloom.plan({"merge_method": "passthrough", "models": [str(tmp_path / "A")]})
    tried = threading.Event()

    def broken(fd):
        tried.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(sink, "SECONDS_BETWEEN_FLUSHES", 0)
    monkeypatch.setattr(os, "fsync", broken)
    journal = Journal(tmp_path / "journal", "x")
    files = ShardFiles(plan, tmp_path, {}, journal)
    assert tried.wait(60)
    with pytest.raises(OutputError, match="cannot be written: Input/output error"):
        files.finish()
    files.close()
    journal.close()


def test_files_that_cannot_be_reserved_are_closed(tmp_path, monkeypatch):
    opened = []

    def full(fd, size):
        opened.append(fd)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path / "A", llama(2), llama_config(2))
    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(OutputError, match="cannot reserve"):
        mergeloom.merge(
            {"merge_method": "passthrough", "models": [str(tmp_path / "A")]}, tmp_path / "out"
        )
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_files_stay_open_for_a_flush_that_is_interrupted(tmp_path, monkeypatch):
    """Its descriptors are closed next, and may be another file's when it uses them again."""
    save(tmp_path / "A", llama(2), llama_config(2))
    plan = mergeloom.plan({"merge_method": "passthrough", "models": [str(tmp_path / "A")]})
    begun, go, raised, done = (threading.Event() for _ in range(4))

    def slow(fd):
        begun.set()
        assert go.wait(60)
        done.set()

    monkeypatch.setattr(sink, "SECONDS_BETWEEN_FLUSHES", 0)
    monkeypatch.setattr(os, "fsync", slow)
    journal = Journal(tmp_path / "journal", "x")
    files = ShardFiles(plan, tmp_path, {}, journal)
    assert begun.wait(60)

    def interrupt():
        files._closing.wait(60)
        time.sleep(0.1)  # until it waits for the flush
        os.kill(os.getpid(), signal.SIGINT)
        raised.wait(0.3)  # it is not raised before the flush has ended
        go.set()

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        files.close()
    assert done.is_set()
    raised.set()
    interrupting.join()
    journal.close()


def test_more_shards_than_files_may_be_open_is_told(tmp_path, monkeypatch):
    """macOS allows 256: a model of 300 GB in shards of 1 GB."""

    def none_left(path, *args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(sink.os, "open", none_left)
    with pytest.raises(OutputError, match=r"Too many open files.*--out-shard-size.*ulimit -n"):
        sink._opened(tmp_path / "model-00257-of-00300.safetensors")
