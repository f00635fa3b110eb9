"""Evaluates elementwise formulas in torch: on GPUs, in float64, and whatever tiles cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mergeloom.engine.facts import Facts, Numbers
from mergeloom.engine.in_torch.inputs import Inputs
from mergeloom.engine.in_torch.rounding import rounded
from mergeloom.engine.kernel import Output, Place
from mergeloom.engine.order import ALL, Choice, Search, Tallies, below
from mergeloom.engine.scratch import Scratch
from mergeloom.methods import Elementwise, Largest, Totals
from mergeloom.planning import Job

Carried = dict[tuple[int, int, int], int]
"""How many elements equal to each threshold a range may still keep."""

_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


class TorchEvaluation:
    """Evaluates one job's formula; see :class:`mergeloom.engine.elementwise.Evaluation`."""

    blocks = 1

    def __init__(self, job: Job, formula: Elementwise, facts: Facts, device: str) -> None:
        self.job = job
        self.facts = facts
        self.inputs = Inputs(job, device)
        self._formula = formula

    def begin(self, span: int) -> Carried:
        """How many equals of every threshold this range may keep."""
        return {
            (m, s, c): choice.budgets.get(span, 0)
            for m, found in enumerate(self.facts.found)
            if isinstance(found, Search)
            for s, row in enumerate(found.choices)
            for c, choice in enumerate(row)
        }

    def totals(
        self,
        measure: int,
        start: int,
        stop: int,
        scratch: Scratch,
        carried: Carried,
        before: Numbers | None,
    ) -> Numbers:
        """The totals of a block and all ``before``, float64."""
        wanted = self._formula.measures[measure]
        if not isinstance(wanted, Totals):
            raise TypeError(f"measure {measure} has no totals")
        found = _numbers(wanted.of(self._block(start, stop, scratch, carried)))
        return found if before is None else before + found

    def scores(
        self,
        measure: int,
        pieces: Sequence[tuple[int, int]],
        scratch: Scratch,
        carried: Carried,
    ) -> Numbers:
        """The bits of the scores of some pieces, shape (scores, pieces, elements)."""
        found = [np.stack(self._bits(measure, a, b, scratch, carried)) for a, b in pieces]
        return np.stack(found, axis=1)

    def count(
        self,
        measure: int,
        tallies: Tallies,
        start: int,
        stop: int,
        scratch: Scratch,
        carried: Carried,
    ) -> None:
        """Count the scores of a block."""
        rows = self._bits(measure, start, stop, scratch, carried)
        for (row, _), tally in tallies.items():
            tally.add(rows[row])

    def output(
        self, start: int, stop: int, scratch: Scratch, carried: Carried, place: Place | None
    ) -> Output:
        """The block of the output, rounded."""
        del place
        made: Any = self._formula.apply(self._block(start, stop, scratch, carried))
        return rounded(self.job, start, made, scratch)

    def _bits(
        self, measure: int, start: int, stop: int, scratch: Scratch, carried: Carried
    ) -> list[Numbers]:
        wanted = self._formula.measures[measure]
        if not isinstance(wanted, Largest):
            raise TypeError(f"measure {measure} has no scores")
        scores: Any = wanted.scores(self._block(start, stop, scratch, carried))
        return [bits_of(row) for row in scores]

    def _block(self, start: int, stop: int, scratch: Scratch, carried: Carried) -> Any:
        base = self.inputs.base(start, stop, scratch)
        deltas = self.inputs.stacked(start, stop, scratch, base)
        return TorchBlock(self, start, base, deltas, carried)


class TorchBlock:
    """See :class:`mergeloom.methods.Block`."""

    def __init__(
        self,
        evaluation: TorchEvaluation,
        start: int,
        base: torch.Tensor,
        deltas: torch.Tensor,
        carried: Carried,
    ) -> None:
        self.base = base
        self.deltas = deltas
        self.shape = evaluation.job.shape
        self._evaluation = evaluation
        self._facts = evaluation.facts
        self._start = start
        self._carried = carried

    def known(self, measure: int) -> Numbers:
        """The totals of a measure."""
        return self._facts.known(measure)

    def threshold(self, measure: int, score: int, choice: int) -> float:
        """The smallest chosen score."""
        return self._facts.choice(measure, score, choice).threshold

    def keep_largest(
        self, measure: int, score: int, choice: int, values: torch.Tensor
    ) -> torch.Tensor:
        """Zeros for the values whose size is not among the chosen largest."""
        key = (measure, score, choice)
        found = self._facts.choice(*key)
        kept, self._carried[key] = kept_largest(found, values, self._carried[key])
        return kept

    def keep_by_chance(self, model: int, probability: float, values: torch.Tensor) -> torch.Tensor:
        """Zeros for what is not chosen with ``probability``."""
        chosen = self._facts.by_chance(model, self._start, len(values), probability)
        return values * torch.from_numpy(chosen).to(values)

    def keep_by_rank(
        self, model: int, lowest: float, highest: float, values: torch.Tensor
    ) -> torch.Tensor:
        """Zeros for what is not chosen with a probability that rises with the rank."""
        sizes = self.deltas[model].abs()
        chosen = self._facts.by_rank(
            model, self._start, len(values), lambda: bits_of(sizes), lowest, highest
        )
        return values * torch.from_numpy(chosen).to(values)

    def mean_rank(self, model: int) -> torch.Tensor:
        """Each change's share of the largest rank of its row."""
        shares = self._facts.mean_rank(self.deltas[model].abs().cpu().numpy())
        return torch.from_numpy(shares).to(self.base)

    def row_divergence(self, model: int, floor: float) -> torch.Tensor:
        """How much the softmaxes of the rows differ, the same number for a whole row."""
        row = max(1, self.shape[-1]) if self.shape else 1

        def measured() -> Numbers:
            return row_divergence(self.base, self.deltas[model], row, floor).cpu().numpy()

        found = self._facts.row_divergence(model, self._start, len(self.base), measured)
        return torch.from_numpy(found).to(self.base).repeat_interleave(row)


def row_divergence(base: torch.Tensor, delta: torch.Tensor, row: int, floor: float) -> torch.Tensor:
    """Of every row Σ p log(p / q) ≥ 0 of the softmaxes p of base + delta and q of base, plus floor.

    Of a usual fine-tune (changes of 5e-4) that is 1e-7: float32 would see only noise.
    """
    wide = torch.float32 if base.device.type == "mps" else torch.float64
    theirs, delta = base.view(-1, row), delta.view(-1, row)
    p = (theirs + delta).softmax(-1, dtype=wide).add_(floor)
    q = theirs.softmax(-1, dtype=wide).add_(floor)
    return p.div(q).log_().mul_(p).sum(-1).clamp_(min=0.0).to(base.dtype)


def bits_of(scores: torch.Tensor) -> Numbers:
    """Non-negative floats as integers of the same order."""
    bits: Numbers = scores.contiguous().view(_INTEGER[scores.dtype]).cpu().numpy()
    return bits


def _numbers(totals: Any) -> Numbers:
    """A nested list of sums, or a tensor of them, in float64."""
    if isinstance(totals, torch.Tensor):
        return totals.double().cpu().numpy()
    return np.array([_numbers(part) for part in totals])


def kept_largest(choice: Choice, values: torch.Tensor, budget: int) -> tuple[torch.Tensor, int]:
    """Values with zeros where their size is not chosen, and the budget left for equals."""
    if choice.count >= choice.total:
        return values, budget
    if choice.count <= 0:
        return values * 0.0, budget
    if budget == ALL:
        return torch.hardshrink(values, below(choice.threshold, values.itemsize)), budget
    kept = torch.hardshrink(values, choice.threshold)
    if budget:
        equal = (values.abs() == choice.threshold).nonzero().squeeze(1)[:budget]
        kept[equal] = values[equal]
        budget -= len(equal)
    return kept, budget
