"""Memory that a worker uses again and again."""

from __future__ import annotations

import threading
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

    @property
    def nbytes(self) -> int:
        """What all buffers take."""
        return sum(len(held) + ALIGNMENT for held in self._buffers.values())

    def _buffer(self, key: object, nbytes: int) -> Bytes:
        held = self._buffers.get(key)
        if held is None or len(held) < nbytes:
            whole = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
            first = -whole.ctypes.data % ALIGNMENT
            held = self._buffers[key] = whole[first : first + nbytes]
        return held[:nbytes]


class Spare:
    """Memory of a run for blocks that wait for the next pass; given back, it is used again.

    Fresh memory costs as much as reading the block once more would.

    Args:
        each: most bytes that the blocks of one tensor may take, all of them or none.
        total: most bytes of all that is taken and given back.
    """

    def __init__(self, each: int, total: int) -> None:
        self.each = each
        self._left = total
        self._free: list[Scratch] = []
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> Scratch | None:
        """Memory for one block of ``nbytes``; None if there is no more."""
        with self._lock:
            memory = self._free.pop() if self._free else Scratch()
            more = max(0, nbytes + ALIGNMENT - memory.nbytes)
            while self._left < more and self._free:
                self._left += self._free.pop().nbytes
            if self._left < more:
                self._free.append(memory)
                return None
            self._left -= more
        memory.bytes("kept", nbytes)
        return memory

    def give_back(self, memory: Scratch) -> None:
        """Nobody uses this any more."""
        with self._lock:
            self._free.append(memory)
