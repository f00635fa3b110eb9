"""Waiting for threads in spite of interrupts."""

from __future__ import annotations

import threading


def wait_through(end: threading.Event) -> None:
    """Wait for what a thread sets when it ends; an interrupt is passed on only then.

    In Python 3.11 an interrupted ``join`` takes a thread that is still running, and still writing,
    for one that has ended.
    """
    interrupt: BaseException | None = None
    while not end.is_set():
        try:
            end.wait()
        except BaseException as error:  # noqa: BLE001 - raised below
            interrupt = interrupt or error
    if interrupt:
        raise interrupt
