"""Runs ``Σ cᵢ xᵢ`` and ``base + Σ cᵢ (xᵢ − base)`` block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mergeloom.engine.in_torch.inputs import Inputs
from mergeloom.engine.in_torch.rounding import rounded
from mergeloom.engine.kernel import Kernel, Output, Place
from mergeloom.engine.scratch import Scratch
from mergeloom.engine.sizes import block_row
from mergeloom.methods import Note, WeightedSum
from mergeloom.planning import Job

Numbers = np.ndarray[Any, Any]

RUN = 2048
"""Elements whose products are summed in the vectors' own precision before float64 takes over."""


class TorchSum(Kernel):
    """One job whose output is a weighted sum of its inputs.

    The one measuring pass takes the Gram matrix in float64; it becomes the coefficients.
    """

    def __init__(self, job: Job, formula: WeightedSum, device: str) -> None:
        self.job = job
        self.formula = formula
        self.inputs = Inputs(job, device)
        self.row = job.shape[-1] if job.shape else 1
        self.columns = math.prod(job.shape[1:])
        self.vectors = formula.vectors if len(job.shape) > 1 else "tensor"
        self.block_row = block_row(job)
        # A 16-bit output cannot show the difference (a relative 1e-7 in a coefficient) between
        # float32 sums over short runs and float64 throughout; a 32-bit one can. Apple's GPU has
        # no float64.
        self.exact = job.dtype in ("F32", "F64") and self.inputs.device.type != "mps"
        self.coefficients: Numbers | None = None
        if isinstance(formula.coefficients, tuple):
            self.coefficients = np.asarray(formula.coefficients, dtype=np.float64)
        self.phases = 1 if self.coefficients is None else 0
        self.parts: dict[int, Numbers] = {}

    def measure(
        self, phase: int, span: int, start: int, stop: int, step: int, scratch: Scratch
    ) -> Numbers:
        """The Gram matrix of elements [start, stop), in blocks of ``step`` elements."""
        del phase, span
        parts = [self._gram(a, min(a + step, stop), scratch) for a in range(start, stop, step)]
        return self._combine(parts)

    def absorb(self, phase: int, span: int, part: Numbers) -> None:
        """Keep a range's Gram matrix until all are there, to add them in order."""
        del phase
        self.parts[span] = part

    def settle(self, phase: int, note: Note) -> int:
        """Coefficients from the Gram matrix of the whole tensor."""
        formula = self.formula.coefficients
        if not isinstance(formula, tuple):
            ordered = [self.parts[span] for span in sorted(self.parts)]
            self.coefficients = formula(self._combine(ordered), note)
        self.parts.clear()
        return phase + 1

    def output(
        self, start: int, stop: int, scratch: Scratch, carried: Any, place: Place | None
    ) -> Output:
        """Elements [start, stop) of the sum."""
        del carried, place
        return rounded(self.job, start, self._sum(start, stop, scratch), scratch)

    def _sum(self, start: int, stop: int, scratch: Scratch) -> torch.Tensor:
        """Elements [start, stop) in the work dtype, 1-D; overwritten by the next call."""
        inputs, deltas = self.inputs, self.formula.deltas
        base = inputs.base(start, stop, scratch) if deltas else None
        total = inputs.buffer("total", stop - start, scratch)
        term = inputs.buffer("term", stop - start, scratch)
        first = True
        for i, factor in enumerate(self._factors(start, stop)):
            if isinstance(factor, float) and factor == 0.0:
                continue  # a model without weight is not even read
            target = total if first else term
            target.copy_(inputs.read(i + deltas, start, stop, scratch))
            if base is not None:
                target.sub_(base)
            self._accumulate(total, target, factor, first)
            first = False
        if first:
            return total.zero_() if base is None else base
        return total if base is None else total.add_(base)

    def _combine(self, parts: Sequence[Numbers]) -> Numbers:
        """Parts in order: rows follow each other, everything else adds up."""
        if self.vectors == "last":
            return np.concatenate(parts)
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        return total

    def _gram(self, start: int, stop: int, scratch: Scratch) -> Numbers:
        base = self.inputs.base(start, stop, scratch) if self.formula.deltas else None
        x = self.inputs.stacked(start, stop, scratch, base)  # (summands, elements)
        if self.exact and x.dtype != torch.float64:
            wide = self.inputs.buffer("wide", x.numel(), scratch, torch.float64)
            x = wide.view(x.shape).copy_(x)
        if self.vectors == "last":
            rows = x.view(len(x), -1, self.row).transpose(0, 1)  # (rows, summands, row)
            gram = torch.bmm(rows, rows.transpose(1, 2))
        elif self.vectors == "first":
            columns = x.view(len(x), -1, self.columns)
            gram = torch.einsum("krc,lrc->ckl", columns, columns)
        else:
            gram = _products(x)
        numbers: Numbers = gram.cpu().numpy().astype(np.float64)
        return numbers

    def _accumulate(
        self, total: torch.Tensor, term: torch.Tensor, factor: float | torch.Tensor, first: bool
    ) -> None:
        if isinstance(factor, float):
            if factor != 1.0:
                term.mul_(factor)  # not add_(alpha=), which rounds once where tiles round twice
            if not first:
                total.add_(term)
            return
        shaped = term.view(-1, self.row if self.vectors == "last" else self.columns)
        shaped.mul_(factor)
        if not first:
            total.add_(term)

    def _factors(self, start: int, stop: int) -> list[float | torch.Tensor]:
        """For each summand a number, or a column or row of numbers for this block."""
        coefficients = self.coefficients
        if coefficients is None:
            raise RuntimeError(f"{self.job.name}: computed before it was measured")
        if self.vectors == "tensor":
            return [float(c) for c in coefficients]
        if self.vectors == "last":
            block = coefficients[start // self.row : stop // self.row]  # (rows, models)
            return [self._column(block[:, i])[:, None] for i in range(block.shape[1])]
        return [self._column(coefficients[:, i])[None, :] for i in range(coefficients.shape[1])]

    def _column(self, values: Numbers) -> torch.Tensor:
        column = torch.from_numpy(np.ascontiguousarray(values))
        return column.to(self.inputs.device, self.inputs.dtype)


def _products(x: torch.Tensor) -> torch.Tensor:
    """``x xᵀ`` of (k, n), summed in float64 over runs of ``RUN`` elements: (k, k)."""
    count, size = x.shape
    whole = size - size % RUN
    rest = x[:, whole:]
    total = (rest @ rest.T).double()
    if whole:
        runs = x[:, :whole].view(count, -1, RUN).transpose(0, 1)  # (runs, k, RUN)
        total += torch.bmm(runs, runs.transpose(1, 2)).double().sum(0)
    return total
