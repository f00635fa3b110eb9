"""A merge in a process of its own that is slow enough to be killed in the middle."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

# One process imports torch once and forks a fresh victim for every attempt.
CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mergeloom.api", "mergeloom.engine.run", "mergeloom.output.write",
                                "mergeloom.checkpoint", "torch"])  # fmt: skip


def start(recipe: str, out: str, pause: float, **options: Any) -> ForkServerProcess:
    """Begin a merge that sleeps ``pause`` seconds after every span."""
    process = CONTEXT.Process(target=_merge, args=(recipe, out, pause, options))
    process.start()
    return process


def _merge(recipe: str, out: str, pause: float, options: dict[str, Any]) -> None:
    import mergeloom

    def slow(read: int, written: int) -> None:
        time.sleep(pause)

    mergeloom.merge(recipe, out, progress=slow, **options)
