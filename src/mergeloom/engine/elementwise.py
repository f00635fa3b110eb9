"""Runs methods that work element by element once facts about the whole tensor are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from mergeloom.engine.inputs import Inputs
from mergeloom.engine.order import Choice, Histogram, Refinement
from mergeloom.engine.randomness import Stream
from mergeloom.engine.scratch import Scratch
from mergeloom.engine.sizes import BLOCK, block_row
from mergeloom.methods import Elementwise, Largest, Note, Totals
from mergeloom.planning import Job
from mergeloom.types import numel


@dataclass
class TotalsFound:
    """The parts of one :class:`Totals` by range, then their sum."""

    parts: dict[int, torch.Tensor] = field(default_factory=dict)
    total: torch.Tensor | None = None

    def settle(self) -> None:
        """Add the parts in order, so that rounding does not depend on the workers."""
        ordered = [self.parts[span] for span in sorted(self.parts)]
        self.total = torch.stack(ordered).sum(0) if ordered else None
        self.parts.clear()


@dataclass
class LargestFound:
    """What the two passes of one :class:`Largest` have found so far."""

    histogram: Histogram = field(default_factory=Histogram)
    refinement: Refinement = field(default_factory=Refinement)
    choices: list[list[Choice]] = field(default_factory=list)


@dataclass(frozen=True)
class Phase:
    """One measuring pass: which measure, and its first or second reading."""

    measure: int
    second: bool


Carried = dict[tuple[int, int, int], int]
"""How many elements equal to each threshold a range may still keep."""


class ElementwiseKernel:
    """One job whose formula is :class:`Elementwise`."""

    def __init__(self, job: Job, formula: Elementwise, device: torch.device, seed: int) -> None:
        self.job = job
        self.formula = formula
        self.inputs = Inputs(job, device)
        self.block_row = block_row(job)
        self.found: list[TotalsFound | LargestFound] = []
        self.plan: list[Phase] = []
        for number, measure in enumerate(formula.measures):
            if isinstance(measure, Largest):
                self.found.append(LargestFound())
                self.plan += [Phase(number, False), Phase(number, True)]
            else:
                self.found.append(TotalsFound())
                self.plan.append(Phase(number, False))
        self.phases = len(self.plan)
        # The input's tensor too: one model may come twice in a slice, with different layers.
        self.streams = [
            Stream(seed, job.name, f"{entry.model}:{entry.tensor}") for entry in job.inputs[1:]
        ]

    def measure(
        self, phase: int, span: int, start: int, stop: int, step: int, scratch: Scratch
    ) -> Any:
        """One range's share of a total, of a histogram, or of the scores near a threshold."""
        wanted = self.plan[phase]
        measure = self.formula.measures[wanted.measure]
        found = self.found[wanted.measure]
        carried = self.begin(span)
        blocks = (
            self._block(a, min(a + step, stop), scratch, carried) for a in range(start, stop, step)
        )
        if isinstance(measure, Totals):
            return torch.stack([measure.of(block).double().cpu() for block in blocks]).sum(0)
        part = Refinement() if wanted.second else Histogram()
        for block in blocks:
            scores = measure.scores(block)
            if isinstance(part, Histogram):
                part.count(scores)
            elif isinstance(found, LargestFound):
                part.collect(scores, found.choices)
        return part

    def absorb(self, phase: int, span: int, part: Any) -> None:
        """Take one range's share."""
        found = self.found[self.plan[phase].measure]
        if isinstance(found, TotalsFound):
            found.parts[span] = part
        elif isinstance(part, Histogram):
            found.histogram.add(part)
        else:
            found.refinement.absorb(span, part)

    def settle(self, phase: int, note: Note) -> None:
        """End a pass."""
        del note
        wanted = self.plan[phase]
        measure, found = self.formula.measures[wanted.measure], self.found[wanted.measure]
        if isinstance(found, TotalsFound):
            found.settle()
        elif wanted.second:
            found.refinement.settle(found.choices)
        elif isinstance(measure, Largest):
            size = numel(self.job.shape)
            counts = measure.counts(found.histogram.nonzero(), size)
            found.choices = found.histogram.locate(counts, size)

    def begin(self, span: int) -> Carried:
        """How many equals of every threshold this range may keep."""
        return {
            (m, s, c): choice.budgets.get(span, 0)
            for m, found in enumerate(self.found)
            if isinstance(found, LargestFound)
            for s, row in enumerate(found.choices)
            for c, choice in enumerate(row)
        }

    def compute(self, start: int, stop: int, scratch: Scratch, carried: Carried) -> torch.Tensor:
        """Output elements [start, stop) in the work dtype, 1-D."""
        return self.formula.apply(self._block(start, stop, scratch, carried))

    def _block(self, start: int, stop: int, scratch: Scratch, carried: Carried) -> ElementBlock:
        base = self.inputs.base(start, stop, scratch)
        deltas = self.inputs.stacked(start, stop, scratch, base)
        return ElementBlock(self, start, base, deltas, carried)


class ElementBlock:
    """See :class:`mergeloom.methods.Block`."""

    def __init__(
        self,
        kernel: ElementwiseKernel,
        start: int,
        base: torch.Tensor,
        deltas: torch.Tensor,
        carried: Carried,
    ) -> None:
        self.base = base
        self.deltas = deltas
        self.shape = kernel.job.shape
        self._kernel = kernel
        self._start = start
        self._carried = carried

    def known(self, measure: int) -> torch.Tensor:
        """The totals of a measure."""
        found = self._kernel.found[measure]
        if not isinstance(found, TotalsFound) or found.total is None:
            raise RuntimeError(f"measure {measure} has no totals yet")
        return found.total

    def threshold(self, measure: int, score: int, choice: int) -> float:
        """The smallest chosen score."""
        return self._choice(measure, score, choice).threshold

    def largest(self, measure: int, score: int, choice: int, scores: torch.Tensor) -> torch.Tensor:
        """The chosen elements of this block."""
        key = (measure, score, choice)
        found = self._choice(measure, score, choice)
        mask, self._carried[key] = found.mask(scores, self._carried[key])
        return mask

    def chance(self, model: int, probability: float | torch.Tensor) -> torch.Tensor:
        """Random ones and zeros, drawn in pieces of ``BLOCK`` elements from the block's start."""
        stream = self._kernel.streams[model]
        size = self.base.numel()
        drawn = stream.draw(self._start, size, BLOCK).to(self.base.device)
        # 1 where the number in [0, 1) is below the probability: the sign of what is left of it.
        return drawn.neg_().add_(probability - 0.5).clamp_(min=0.0).sign_().to(self.base.dtype)

    def _choice(self, measure: int, score: int, choice: int) -> Choice:
        found = self._kernel.found[measure]
        if not isinstance(found, LargestFound):
            raise RuntimeError(f"measure {measure} looks for no largest")
        return found.choices[score][choice]
