"""Runs ``Σ cᵢ xᵢ`` and ``base + Σ cᵢ (xᵢ − base)`` block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from mergeloom.engine.scratch import Scratch
from mergeloom.engine.sizes import vector_row
from mergeloom.methods import Note, WeightedSum
from mergeloom.planning import Job

Partial = np.ndarray

RUN = 2048
"""Elements whose products are summed in the vectors' own precision before float64 takes over."""


class SumKernel:
    """One job whose output is a weighted sum of its inputs.

    ``measure`` takes the Gram matrix of a range of whole blocks in float64; ``settle`` turns the
    measured parts, in order, into coefficients; ``compute`` writes one block of the output.
    Ranges start at block boundaries and blocks hold whole rows.
    """

    def __init__(self, job: Job, formula: WeightedSum, device: torch.device) -> None:
        self.job = job
        self.formula = formula
        self.device = device
        self.dtype = work_dtype(job)
        # A 16-bit output cannot show the difference (a relative 1e-7 in a coefficient) between
        # float32 sums over short runs and float64 throughout; a 32-bit one can.
        self.exact = job.dtype in ("F32", "F64")
        self.row = job.shape[-1] if job.shape else 1
        self.columns = math.prod(job.shape[1:])
        self.vectors = formula.vectors if len(job.shape) > 1 else "tensor"
        self.coefficients: Partial | None = None
        if isinstance(formula.coefficients, tuple):
            self.coefficients = np.asarray(formula.coefficients, dtype=np.float64)

    @property
    def must_measure(self) -> bool:
        """Whether the coefficients depend on the weights."""
        return self.coefficients is None

    @property
    def block_row(self) -> int:
        """Elements that a block must not cut through."""
        return vector_row(self.job)

    def measure(self, start: int, stop: int, step: int, scratch: Scratch) -> Partial:
        """The Gram matrix of elements [start, stop), in blocks of ``step`` elements."""
        parts = [self._gram(a, min(a + step, stop), scratch) for a in range(start, stop, step)]
        return self._combine(parts)

    def _combine(self, parts: Sequence[Partial]) -> Partial:
        """Parts in order: rows follow each other, everything else adds up."""
        if self.vectors == "last":
            return np.concatenate(parts)
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        return total

    def _gram(self, start: int, stop: int, scratch: Scratch) -> Partial:
        x = self._vectors(start, stop, scratch)  # (summands, elements)
        if self.vectors == "last":
            rows = x.view(len(x), -1, self.row).transpose(0, 1)  # (rows, summands, row)
            gram = torch.bmm(rows, rows.transpose(1, 2))
        elif self.vectors == "first":
            columns = x.view(len(x), -1, self.columns)
            gram = torch.einsum("krc,lrc->ckl", columns, columns)
        else:
            gram = _products(x)
        return gram.cpu().numpy().astype(np.float64)

    def _vectors(self, start: int, stop: int, scratch: Scratch) -> torch.Tensor:
        """The inputs, or their deltas, one a row.

        A delta is taken element by element: delta products must not come out of products of
        weights, which are larger by orders of magnitude.
        """
        deltas, size = self.formula.deltas, stop - start
        base = self._buffer("base", size, scratch) if deltas else None
        if base is not None:
            base.copy_(self._read(0, start, stop, scratch))
        count = len(self.job.inputs) - deltas
        x = self._buffer("vectors", count * size, scratch).view(count, size)
        for i in range(count):
            x[i].copy_(self._read(i + deltas, start, stop, scratch))
            if base is not None:
                x[i].sub_(base)
        if self.device.type == "mps" or not self.exact:
            return x
        wide = self._buffer("wide", count * size, scratch, torch.float64)
        return wide.view(count, size).copy_(x)

    def settle(self, parts: Sequence[Partial], note: Note) -> None:
        """Coefficients from the measured parts of the whole tensor, given in order."""
        formula = self.formula.coefficients
        if not isinstance(formula, tuple):
            self.coefficients = formula(self._combine(parts), note)

    def compute(self, start: int, stop: int, scratch: Scratch) -> torch.Tensor:
        """Output elements [start, stop) in the work dtype, 1-D; overwritten by the next call."""
        factors = self._factors(start, stop)
        deltas = self.formula.deltas
        size = stop - start
        total = self._buffer("total", size, scratch)
        term = self._buffer("term", size, scratch)
        base = self._buffer("base", size, scratch) if deltas else None
        if base is not None:
            base.copy_(self._read(0, start, stop, scratch))
        first = True
        for i, factor in enumerate(factors):
            if isinstance(factor, float) and factor == 0.0:
                continue
            target = total if first else term
            target.copy_(self._read(i + deltas, start, stop, scratch))
            if base is not None:
                target.sub_(base)
            self._accumulate(total, target, factor, first)
            first = False
        if first:
            return total.zero_() if base is None else base
        return total if base is None else total.add_(base)

    def _accumulate(
        self, total: torch.Tensor, term: torch.Tensor, factor: float | torch.Tensor, first: bool
    ) -> None:
        if isinstance(factor, float):
            if not first:
                total.add_(term, alpha=factor)
            elif factor != 1.0:
                total.mul_(factor)
            return
        shaped = term.view(-1, self.row if self.vectors == "last" else self.columns)
        shaped.mul_(factor)
        if not first:
            total.add_(term)

    def _read(self, i: int, start: int, stop: int, scratch: Scratch) -> torch.Tensor:
        return self.job.inputs[i].view.read(start, stop, scratch, "raw").to(self.device)

    def _buffer(
        self, key: str, size: int, scratch: Scratch, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        if self.device.type != "cpu":
            return torch.empty(size, dtype=dtype or self.dtype, device=self.device)
        return scratch.tensor(key, size, dtype or self.dtype)

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

    def _column(self, values: Partial) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, self.dtype)


def work_dtype(job: Job) -> torch.dtype:
    """float32, or float64 when an input or the output is float64."""
    wide = job.dtype == "F64" or any(i.view.dtype == "F64" for i in job.inputs)
    return torch.float64 if wide else torch.float32


def _products(x: torch.Tensor) -> torch.Tensor:
    """``x xᵀ`` of (k, n), summed in float64 over runs of ``RUN`` elements: (k, k)."""
    count, size = x.shape
    whole = size - size % RUN
    runs = x[:, :whole].view(count, -1, RUN).transpose(0, 1)  # (runs, k, RUN)
    rest = x[:, whole:]
    total = (rest @ rest.T).double()
    return total + torch.bmm(runs, runs.transpose(1, 2)).double().sum(0)
