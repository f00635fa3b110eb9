"""Where the arithmetic happens."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mergeloom.errors import MergeError, Problem

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> str:
    """The name of a torch device for ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ``xpu`` or ``auto``.

    Only ``cpu`` is known without importing torch. Raises MergeError naming the devices that this
    machine has.
    """
    if name == "cpu":
        return name
    import torch

    present = _present()
    if name == "auto":
        return present[-1]
    kind = name.partition(":")[0]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or kind not in present or not _exists(device):
        raise MergeError(
            Problem(
                "--device",
                f"{name} is not available here; torch {torch.__version__} sees: "
                f"{', '.join(present)}",
                "Use --device cpu, or install a torch build for your accelerator.",
            )
        )
    return "cpu" if kind == "cpu" else str(device)


def _present() -> list[str]:
    """Kinds of device that can be used, the preferred one last."""
    import torch

    kinds = ["cpu"]
    if torch.backends.mps.is_available():
        kinds.append("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        kinds.append("xpu")
    if torch.cuda.is_available():
        kinds.append("cuda")
    return kinds


def _exists(device: torch.device) -> bool:
    if device.type == "cuda" and device.index is not None:
        import torch

        return device.index < torch.cuda.device_count()
    return True


_torch_threads = threading.Lock()
_users = 0
_before: int | None = None
"""torch's number of threads before workers set it; None while none of them has."""


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """While workers run: each computes its own block, so torch must not split blocks as well.

    torch keeps the number for the process and for every thread that has used it. The workers set
    it (:func:`take_one_torch_thread`), never the caller's thread, whose own number would stay;
    the process gets its number back when the last merge ends. A merge that does not import torch
    leaves it alone.
    """
    global _users, _before
    with _torch_threads:
        if _users == 0 and "torch" in sys.modules:
            import torch

            _before = torch.get_num_threads()
        _users += 1
    try:
        yield
    finally:
        with _torch_threads:
            _users -= 1
            if _users == 0 and _before is not None:
                import torch

                torch.set_num_threads(_before)
                _before = None


def take_one_torch_thread() -> None:
    """Called by a worker before each of its tasks, any of which may be the first to need torch."""
    global _before
    if "torch" not in sys.modules:
        return
    import torch  # waits for a thread that is importing it

    with _torch_threads:
        number = torch.get_num_threads()  # a thread takes the process's at its first use of torch
        if _before is None:
            _before = number
        torch.set_num_threads(1)
