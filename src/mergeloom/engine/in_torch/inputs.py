"""Reading a job's inputs block by block in the precision of the arithmetic."""

from __future__ import annotations

import torch

from mergeloom.engine.scratch import Scratch
from mergeloom.planning import Job


class Inputs:
    """The inputs of one job on one device, widened to float32 or float64."""

    def __init__(self, job: Job, device: str) -> None:
        self.job = job
        self.device = torch.device(device)
        self.on_cpu = self.device.type == "cpu"
        wide = job.dtype == "F64" or any(i.view.dtype == "F64" for i in job.inputs)
        self.dtype = torch.float64 if wide else torch.float32

    def read(self, number: int, start: int, stop: int, scratch: Scratch) -> torch.Tensor:
        """Elements [start, stop) of an input in its stored dtype; the next read overwrites it."""
        raw = self.job.inputs[number].view.read(start, stop, scratch, "raw")
        return raw if self.on_cpu else raw.to(self.device)

    def buffer(
        self, key: object, size: int, scratch: Scratch, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Uninitialised elements that live until the same key is asked for again."""
        if not self.on_cpu:
            return torch.empty(size, dtype=dtype or self.dtype, device=self.device)
        return scratch.tensor(key, size, dtype or self.dtype)

    def base(self, start: int, stop: int, scratch: Scratch) -> torch.Tensor:
        """The first input, widened."""
        base = self.buffer("base", stop - start, scratch)
        return base.copy_(self.read(0, start, stop, scratch))

    def stacked(
        self, start: int, stop: int, scratch: Scratch, base: torch.Tensor | None
    ) -> torch.Tensor:
        """All inputs, or with ``base`` all others minus the base, one a row, widened.

        A delta is taken element by element in the work dtype: products of deltas must not come
        out of products of weights, which are larger by orders of magnitude.
        """
        first = 0 if base is None else 1
        size, count = stop - start, len(self.job.inputs) - first
        rows = self.buffer("rows", count * size, scratch).view(count, size)
        for i in range(count):
            rows[i].copy_(self.read(i + first, start, stop, scratch))
            if base is not None:
                rows[i].sub_(base)
        return rows
