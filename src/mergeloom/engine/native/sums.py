"""Runs ``Σ cᵢ xᵢ`` and ``base + Σ cᵢ (xᵢ − base)`` in tiles."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mergeloom.engine.kernel import Kernel, Output, Place
from mergeloom.engine.native.blocks import Inputs, rounded
from mergeloom.engine.native.programs import Program, compiled
from mergeloom.engine.native.values import Values, constant, loaded
from mergeloom.engine.scratch import Scratch, Spare
from mergeloom.methods import Note, WeightedSum
from mergeloom.planning import Job

Numbers = np.ndarray[Any, Any]


class TiledSum(Kernel):
    """One job whose output is a weighted sum of its inputs, each taken as one vector."""

    def __init__(self, job: Job, formula: WeightedSum, spare: Spare) -> None:
        self.job = job
        self._inputs = Inputs(job, spare)
        self.blocks = self._inputs.blocks
        self._formula = formula
        self._parts: dict[int, Numbers] = {}
        self._program: Program | None = None
        self._base, self._summands = _parts(len(job.inputs), deltas=formula.deltas)
        if isinstance(formula.coefficients, tuple):
            self.phases = 0
            self._set_coefficients(formula.coefficients)
        else:
            self.phases = 1
            # A 16-bit output cannot show the difference (a relative 1e-7 in a coefficient) between
            # float32 products and float64 throughout; a 32-bit one can.
            self._measure = _gram(len(job.inputs), deltas=formula.deltas, wide=job.dtype == "F32")

    def measure(
        self, phase: int, span: int, start: int, stop: int, step: int, scratch: Scratch
    ) -> Numbers:
        """The lower triangle of the Gram matrix of elements [start, stop)."""
        del phase, span
        total = np.zeros(self._measure.totals)
        for a in range(start, stop, step):
            piece = a, min(a + step, stop)
            own, wanted = self._inputs, self._measure.inputs
            sources = own.sources(wanted, [piece], scratch, keep=own.keeps)
            self._measure.run([piece], sources, scratch, totals=total)
        return total

    def absorb(self, phase: int, span: int, part: Numbers) -> None:
        """Keep a range's Gram matrix until all are there, to add them in order."""
        del phase
        self._parts[span] = part

    def settle(self, phase: int, note: Note) -> int:
        """Coefficients from the Gram matrix of the whole tensor."""
        formula = self._formula.coefficients
        if not isinstance(formula, tuple):
            count = len(self._summands)
            total = np.zeros(self._measure.totals)
            for span in sorted(self._parts):
                total += self._parts[span]
            gram = np.zeros((count, count))
            rows, columns = _lower(count)
            gram[rows, columns] = gram[columns, rows] = total
            self._set_coefficients([float(c) for c in formula(gram, note)])
        self._parts.clear()
        return phase + 1

    def output(
        self, start: int, stop: int, scratch: Scratch, carried: Any, place: Place | None
    ) -> Output:
        """Output elements [start, stop), rounded."""
        del carried
        if self._program is None:
            raise RuntimeError(f"{self.job.name}: computed before it was measured")
        piece = start, stop
        sources = self._inputs.sources(self._program.inputs, [piece], scratch)
        made = rounded(self.job, self._program, piece, self._inputs, sources, scratch, place)
        self._inputs.forget(piece)
        return made

    def _set_coefficients(self, coefficients: Sequence[float]) -> None:
        """Make the program of the sum; no coefficients at all mean the base alone."""
        given = coefficients if len(coefficients) else [0.0] * len(self._summands)
        terms = [
            x if c == 1.0 else c * x
            for c, x in zip(given, self._summands, strict=True)
            if c != 0.0  # a model without weight is not even read
        ]
        total: Values | None = None
        for term in terms:
            total = term if total is None else total + term
        if self._base is not None:
            total = self._base if total is None else total + self._base
        self._program = compiled(stored=[constant(0.0) if total is None else total])


@functools.cache
def _parts(inputs: int, *, deltas: bool) -> tuple[Values | None, list[Values]]:
    """What is added in the end, if anything, and what is added up with coefficients."""
    base = loaded(0)
    if not deltas:
        return None, [loaded(i) for i in range(inputs)]
    return base, [loaded(i) - base for i in range(1, inputs)]


@functools.cache
def _gram(inputs: int, *, deltas: bool, wide: bool) -> Program:
    """Adds up the products of all pairs of summands: the lower triangle, row by row."""
    _, summands = _parts(inputs, deltas=deltas)
    pairs = [x * y for i, x in enumerate(summands) for y in summands[: i + 1]]
    return compiled(totals=[pair.sum() for pair in pairs], wide=wide)


@functools.cache
def _lower(count: int) -> tuple[Numbers, Numbers]:
    """The rows and columns of a lower triangle, row by row."""
    rows, columns = np.tril_indices(count)
    return rows, columns
