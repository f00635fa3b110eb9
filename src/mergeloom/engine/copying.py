"""Tensors that are copied from their one input."""

from __future__ import annotations

from typing import Any

from mergeloom.checkpoint.views import read_bytes
from mergeloom.engine.finite import nonfinite
from mergeloom.engine.kernel import Kernel, Output, Place
from mergeloom.engine.scratch import Scratch
from mergeloom.planning import Job


class CopyKernel(Kernel):
    """One job whose output is its only input. It needs torch only where the dtype changes."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def output(
        self, start: int, stop: int, scratch: Scratch, carried: Any, place: Place | None
    ) -> Output:
        """Elements [start, stop) of the input."""
        del carried, place
        view = self.job.inputs[0].view
        if view.dtype == self.job.dtype:
            data = read_bytes(view, start, stop, scratch, "raw")
            return Output(data, nonfinite(data, self.job.dtype, scratch))
        from mergeloom.engine.in_torch.rounding import converted

        return converted(self.job, start, stop, scratch)
