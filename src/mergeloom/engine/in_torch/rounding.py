"""From a block that torch computed to the bytes of the output."""

from __future__ import annotations

import torch

from mergeloom.checkpoint.views import as_bytes, torch_dtype
from mergeloom.engine.finite import nonfinite
from mergeloom.engine.kernel import Output
from mergeloom.engine.scratch import Scratch
from mergeloom.planning import Job


def rounded(job: Job, start: int, block: torch.Tensor, scratch: Scratch) -> Output:
    """The elements of a job's output from ``start`` on, rounded once to its dtype.

    ``block`` is 1-D, on any device, in the dtype of the arithmetic. Where the job says so, it is
    overwritten with the first input's elements.
    """
    stop = start + len(block)
    for first, end in job.exact:
        a, b = max(start, first), min(stop, end)
        if a < b:
            view = job.inputs[0].view
            block[a - start : b - start].copy_(view.read(a, b, scratch, "exact"))
    data = as_bytes(_on_cpu(block, job, scratch))
    if _surely_finite(block, job):
        return Output(data, 0)
    return Output(data, nonfinite(data, job.dtype, scratch))


def converted(job: Job, start: int, stop: int, scratch: Scratch) -> Output:
    """Elements [start, stop) of a job's only input in the dtype of its output."""
    block = job.inputs[0].view.read(start, stop, scratch, "raw")
    data = as_bytes(_on_cpu(block, job, scratch))
    return Output(data, nonfinite(data, job.dtype, scratch))


def _on_cpu(block: torch.Tensor, job: Job, scratch: Scratch) -> torch.Tensor:
    """The block in the job's dtype; itself, where it is that already."""
    dtype = torch_dtype(job.dtype)
    if block.dtype == dtype and block.device.type == "cpu":
        return block
    return scratch.tensor("out", len(block), dtype).copy_(block)


def _surely_finite(block: torch.Tensor, job: Job) -> bool:
    """Whether rounding the block cannot give NaN or infinity; False when unsure.

    One dot product tells: NaN and infinity come through it, and if the sum of squares is at most
    the square of the largest number of the output's dtype, no element is larger than that.
    """
    dtype = torch_dtype(job.dtype)
    if not dtype.is_floating_point or block.device.type != "cpu":
        return False
    limit: float = min(torch.finfo(dtype).max, torch.finfo(block.dtype).max ** 0.5)
    squares = float(torch.dot(block, block))
    return squares <= limit * limit
