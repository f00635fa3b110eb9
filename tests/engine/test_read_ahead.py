"""What is asked of the disk before the workers come to it."""

from __future__ import annotations

import threading

import pytest

from mergeloom.engine import read_ahead
from mergeloom.engine.read_ahead import ReadAhead
from mergeloom.planning import Job
from mergeloom.planning.plan import JobInput

LIMIT = 60


class Asked:
    """A view that notes what is asked of it, in bytes over all views of one list."""

    dtype, files = "BF16", ()

    def __init__(self, name, elements, log):
        self.name, self.shape, self._log = name, (elements,), log

    def prefetch(self, start, stop):
        self._log.add(self.name, start, stop)


class Log:
    """What was asked, in order; ``wait`` until as many bytes were."""

    def __init__(self):
        self.asked, self.bytes, self._changed = [], 0, threading.Condition()

    def add(self, name, start, stop):
        with self._changed:
            self.asked.append((name, start, stop))
            self.bytes += 2 * (stop - start)
            self._changed.notify()

    def wait(self, nbytes):
        with self._changed:
            assert self._changed.wait_for(lambda: self.bytes >= nbytes, LIMIT)
            return self.bytes


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(read_ahead, "AHEAD", 4000)
    monkeypatch.setattr(read_ahead, "AT_ONCE", 400)


def _job(log, name, elements, inputs):
    views = [Asked(f"{name}{i}", elements, log) for i in range(inputs)]
    entries = tuple(JobInput("m", v.name, v) for v in views)
    return Job(name, "BF16", (elements,), None, entries)


def test_everything_is_asked_for_once_in_order_and_not_too_early(small):
    log, sizes = Log(), {"a": (999, 2), "empty": (0, 3), "b": (5000, 1), "c": (1, 4)}
    ahead = ReadAhead([_job(log, name, *size) for name, size in sizes.items()])
    total = sum(2 * elements * inputs for elements, inputs in sizes.values())
    with ahead:
        for taken in range(0, total, 100):
            asked = log.wait(min(total, taken + 4000))
            assert asked < taken + 4000 + 400  # at most one request beyond the window
            ahead.taken(100)
    assert log.bytes == total
    assert [*dict.fromkeys(name[0] for name, _, _ in log.asked)] == ["a", "b", "c"]
    for name, (elements, inputs) in sizes.items():
        for i in range(inputs):
            asked = [e for n, a, b in log.asked if n == f"{name}{i}" for e in range(a, b)]
            assert asked == [*range(elements)]


def test_a_run_that_stops_early_asks_for_nothing_more(small):
    log = Log()
    with ReadAhead([_job(log, "a", 10**6, 1)]):
        log.wait(4000)
    asked = log.bytes
    assert asked < 4400
    assert not any(thread.name == "mergeloom-read-ahead" for thread in threading.enumerate())
