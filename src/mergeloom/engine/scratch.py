"""Memory that a worker uses again and again."""

from __future__ import annotations

import torch


class Scratch:
    """Named buffers of one worker; each grows to the largest size asked for."""

    def __init__(self) -> None:
        self._bytes: dict[object, torch.Tensor] = {}

    def bytes(self, key: object, nbytes: int) -> memoryview:
        """A writable buffer of exactly ``nbytes``, at the same address until it must grow."""
        return self._buffer(key, nbytes).numpy().data[:nbytes]

    def tensor(self, key: object, count: int, dtype: torch.dtype) -> torch.Tensor:
        """``count`` uninitialised elements, 1-D, on the CPU."""
        nbytes = count * dtype.itemsize
        return self._buffer(key, nbytes)[:nbytes].view(dtype)

    def _buffer(self, key: object, nbytes: int) -> torch.Tensor:
        held = self._bytes.get(key)
        if held is None or held.numel() < nbytes:
            held = torch.empty(nbytes, dtype=torch.uint8)
            self._bytes[key] = held
        return held
