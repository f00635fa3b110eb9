"""Memory that a worker uses again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

ALIGNMENT = 64
"""Bytes: of a cache line, and of the widest vector register."""


class Scratch:
    """Named buffers of one worker; each grows to the largest size asked for."""

    def __init__(self) -> None:
        self._buffers: dict[object, Bytes] = {}

    def bytes(self, key: object, nbytes: int) -> memoryview:
        """A writable buffer of exactly ``nbytes``, at the same address until it must grow."""
        return self._buffer(key, nbytes).data

    def array(self, key: object, count: int, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
        """``count`` uninitialised elements, 1-D."""
        return self._buffer(key, count * np.dtype(dtype).itemsize).view(dtype)

    def tensor(self, key: object, count: int, dtype: torch.dtype) -> torch.Tensor:
        """``count`` uninitialised elements, 1-D, on the CPU."""
        import torch

        if not count:  # torch.frombuffer refuses empty buffers
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self.bytes(key, count * dtype.itemsize), dtype=dtype)

    def _buffer(self, key: object, nbytes: int) -> Bytes:
        held = self._buffers.get(key)
        if held is None or len(held) < nbytes:
            whole = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
            first = -whole.ctypes.data % ALIGNMENT
            held = self._buffers[key] = whole[first : first + nbytes]
        return held[:nbytes]
