"""Where the arithmetic happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mergeloom.errors import MergeError, Problem


def resolve_device(name: str) -> torch.device:
    """The torch device for ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ``xpu`` or ``auto``.

    Raises MergeError naming the devices that this machine has.
    """
    present = _present()
    if name == "auto":
        return torch.device(present[-1] if len(present) > 1 else "cpu")
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
    return device


def _present() -> list[str]:
    """Kinds of device that can be used, the preferred one last."""
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
        return device.index < torch.cuda.device_count()
    return True


_torch_threads = threading.Lock()
_users = 0
_before = 1


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """While workers run: each computes its own block, so torch must not split blocks as well.

    torch keeps the number for the process and for every thread that has used it. The workers set
    it (:func:`take_one_torch_thread`), never the caller's thread, whose own number would stay;
    the process gets its number back when the last merge ends.
    """
    global _users, _before
    with _torch_threads:
        if _users == 0:
            _before = torch.get_num_threads()
        _users += 1
    try:
        yield
    finally:
        with _torch_threads:
            _users -= 1
            if _users == 0:
                torch.set_num_threads(_before)


def take_one_torch_thread() -> None:
    """Called by a worker before it computes."""
    with _torch_threads:
        torch.get_num_threads()  # a thread takes the process's number at its first use of torch
        torch.set_num_threads(1)
