"""What a merge shows while it runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from mergeloom.cli.sizes import show_size

Progress = Callable[[int, int], None]
SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def showing(total_read: int, *, quiet: bool) -> Iterator[Progress | None]:
    """A callback for (bytes read, bytes written) that keeps the user informed on stderr."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar(total_read) as update:
            yield update
    else:
        yield _lines(total_read)


@contextmanager
def _bar(total: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("merging"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)

        def update(read: int, written: int) -> None:
            del written
            bar.advance(task, read)

        yield update


def _lines(total: int) -> Progress:
    """A line every ten seconds: done, rate and time left."""
    lock = threading.Lock()
    started = last = time.monotonic()
    done = 0

    def update(read: int, written: int) -> None:
        del written
        nonlocal done, last
        with lock:
            done += read
            now = time.monotonic()
            if now - last < SECONDS_BETWEEN_LINES:
                return
            last = now
            rate = max(1.0, done / max(1e-9, now - started))
            left = max(0, total - done) / rate
            click.echo(
                f"read {show_size(done)} of {show_size(total)}, {show_size(rate)}/s, "
                f"{left:.0f} s left",
                err=True,
            )

    return update
